# SPDX-License-Identifier: Apache-2.0
"""``POST /v1/images/edits``: the same fields and checks as generations, in a form.

Stock's route reads a fixed list of form fields and drops the family's own. Here a form
is checked like a JSON body, stock gets a form with the pictures and the protocol's
fields, and the family's checked fields reach its sampling params directly.

A list (``sigmas``) may be a JSON list in one part, or a part for each value under
``sigmas`` or ``sigmas[]`` (the ``openai`` client's way).
"""

import json
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from contextvars import ContextVar
from typing import Any

from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.request_fields import RequestField
from sglang_ext_gen.serving import limits
from sglang_ext_gen.serving.images import FORWARDED, WITHOUT_EFFECT, checked_image_body
from sglang_ext_gen.serving.replies import Refusal, shorten
from sglang_ext_gen.serving.served_model import ServedModel

PATH = "/v1/images/edits"

_IMAGES = ("image", "image[]")
_REFUSED = {
    "mask": "this model edits by words, not by a mask",
    "input_fidelity": "the pictures are always followed closely",
    "url": "this server fetches nothing for a client; send the picture",
}
# Checked fields of the request that this task runs; read by the hook below.
_checked: ContextVar[dict[str, Any]] = ContextVar("checked_edit_fields")


def build_sampling_params(
    original: Callable[..., Any], request_id: str, **kwargs: Any
) -> Any:
    """Around stock's function of this name: the checked fields win."""
    return original(request_id, **{**kwargs, **_checked.get({})})


def check_content_type(headers: Headers) -> None:
    """Raise unless the body is declared as a form with files.

    Raises:
        Refusal: 415, naming the header.
    """
    given = headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != "multipart/form-data":
        raise Refusal(
            415,
            f"Content-Type: {shorten(given)!r} given, expected multipart/form-data",
            code="unsupported_media_type",
        )


async def checked_edit_form(
    headers: Headers, body: bytes, model: ServedModel
) -> tuple[str, bytes]:
    """Check an edit and rewrite it as a form for stock.

    Args:
        headers: Of the request; its content type holds the form's boundary.
        body: The whole form.
        model: The model that would run it.

    Returns:
        Content type and body of the new form. The family's own fields are kept for
        ``build_sampling_params`` in the same task.

    Raises:
        RequestError: Names the field.
        Refusal: No form, or another model was asked for.
    """
    form = await _parse(headers, body)
    files = [file for name in _IMAGES for file in _files(form, name)]
    if not files:
        raise RequestError("image", "missing, expected at least one picture to edit")
    if len(files) > limits.MAX_IMAGES:
        raise RequestError(
            "image", f"{len(files)} pictures given, at most {limits.MAX_IMAGES}"
        )
    fields = _read_fields(form, {field.name: field for field in model.table})
    checked = checked_image_body(fields, model)
    protocol = {
        field.name: checked.pop(field.name)
        for field in FORWARDED
        if field.name in checked
    }
    checked.pop("size", None)
    if "n" in checked:
        checked["num_outputs_per_prompt"] = checked.pop("n")
    _checked.set(checked)
    pictures = [await file.read() for file in files]
    return _write_form({"prompt": checked["prompt"], **protocol}, pictures)


async def _parse(headers: Headers, body: bytes) -> FormData:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(
        headers,
        stream(),
        max_files=limits.MAX_FORM_PARTS,
        max_fields=limits.MAX_FORM_PARTS,
        max_part_size=limits.MAX_JSON_BODY_BYTES,
    )
    try:
        return await parser.parse()
    except (MultiPartException, KeyError, UnicodeDecodeError) as error:
        message = f"the body is not a form: {error}"
        raise Refusal(400, message, code="invalid_form") from error


def _files(form: FormData, name: str) -> list[UploadFile]:
    values = form.getlist(name)
    for value in values:
        if not isinstance(value, UploadFile):
            raise RequestError("image", "a text given, expected a file")
    return [value for value in values if isinstance(value, UploadFile)]


def _read_fields(form: FormData, table: Mapping[str, RequestField]) -> dict[str, Any]:
    """All parts but the pictures, in the types of their fields."""
    known = {**table, **{f.name: f for f in (*FORWARDED, *WITHOUT_EFFECT)}}
    fields: dict[str, Any] = {}
    for key in form:
        name = key.removesuffix("[]")
        if key in _IMAGES:
            continue
        texts = [value for value in form.getlist(key) if isinstance(value, str)]
        if name in _REFUSED or len(texts) != len(form.getlist(key)):
            reason = _REFUSED.get(name, "a file given, expected a text")
            raise RequestError(shorten(name), reason)
        kind = known[name].kind if name in known else "int" if name == "n" else "str"
        if name in fields or (len(texts) > 1 and kind != "floats"):
            raise RequestError(shorten(name), "given twice, expected once")
        fields[name] = _read_value(texts, kind)
    return fields


def _read_value(texts: list[str], kind: str) -> Any:
    """The value that a part means; a text that means none is left to the check."""
    if kind in ("str", "strs"):
        return texts[0]
    values = [_parse_json(text) for text in texts]
    if kind == "floats" and not (len(values) == 1 and isinstance(values[0], list)):
        return values
    return values[0]


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _write_form(fields: Mapping[str, Any], pictures: list[bytes]) -> tuple[str, bytes]:
    """A form with these fields and the pictures as ``image``."""
    boundary = secrets.token_hex(16)
    parts = [
        _part(f'name="{name}"', _form_text(value).encode("utf-8"))
        for name, value in fields.items()
    ]
    parts += [
        _part(f'name="image"; filename="image-{index}"', data)
        for index, data in enumerate(pictures)
    ]
    line = f"--{boundary}\r\n".encode()
    body = b"".join(line + part for part in parts) + f"--{boundary}--\r\n".encode()
    return f"multipart/form-data; boundary={boundary}", body


def _form_text(value: Any) -> str:
    """A field as form text: strings as they are, the rest as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def _part(disposition: str, data: bytes) -> bytes:
    head = f"Content-Disposition: form-data; {disposition}\r\n\r\n"
    return head.encode("utf-8") + data + b"\r\n"
