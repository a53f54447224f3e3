# SPDX-License-Identifier: Apache-2.0
"""Multipart forms: their fields as one JSON object, their files in a folder.

A form has no types: a field that is text for the family stays text, any other is read
as JSON. A list comes as JSON or, as OpenAI's client sends it, as repeated ``name[]``.
Files are written to a new temporary folder, under names that the client cannot choose;
the folder goes with the request, or with the video job that reads it.
"""

import json
import shutil
import tempfile
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.serving.replies import Refusal, shorten

MAX_FILES = 16
MAX_FIELDS = 64
MAX_FIELD_BYTES = 1 << 20
_FOLDER_PREFIX = "sglang-ext-gen-upload-"
# Only these say anything about a file; stock tells videos by them.
_KNOWN_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp",
    ".mp4", ".mov", ".mkv", ".webm", ".avi",
)  # fmt: skip


@dataclass(frozen=True)
class Form:
    """A parsed form.

    Args:
        fields: Name -> value, typed.
        files: (field name, path, media type) of each file, in order.
    """

    fields: dict[str, Any]
    files: tuple[tuple[str, Path, str], ...]


def is_form(headers: Headers) -> bool:
    """Whether a body is declared as a multipart form."""
    media_type = headers.get("content-type", "").partition(";")[0]
    return media_type.strip().lower() == "multipart/form-data"


async def read_form(
    headers: Headers, body: bytes, texts: frozenset[str], folder: Path
) -> Form:
    """Parse a form and write its files into ``folder``.

    Args:
        headers: Of the request; they hold the boundary.
        body: The whole body, already bounded.
        texts: Names of the fields that are text.
        folder: See ``new_folder``.

    Raises:
        Refusal: 400, the form is damaged or has too many parts.
        RequestError: A field is given twice or is no value of its kind.
    """

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(
        headers,
        stream(),
        max_files=MAX_FILES,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    try:
        parsed = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        message = f"the body is not a multipart form: {error}"
        raise Refusal(400, message, code="invalid_form") from error
    fields: dict[str, Any] = {}
    files: list[tuple[str, Path, str]] = []
    try:
        for name, value in parsed.multi_items():
            if isinstance(value, UploadFile):
                path = folder / f"{len(files)}{_suffix(value.filename)}"
                path.write_bytes(await value.read())
                files.append((name, path, value.content_type or ""))
            else:
                _add(fields, name, value, texts)
    finally:
        await parsed.close()
    return Form(fields, tuple(files))


def new_folder() -> Path:
    """A new temporary folder for the files of one request."""
    return Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX))


def release(path: str | Path) -> None:
    """Delete the upload folder that holds ``path``; any other path is left alone."""
    folder = Path(path).parent
    is_ours = folder.name.startswith(_FOLDER_PREFIX)
    if is_ours and folder.parent == Path(tempfile.gettempdir()):
        shutil.rmtree(folder, ignore_errors=True)


def _add(fields: dict[str, Any], name: str, text: str, texts: frozenset[str]) -> None:
    is_item = name.endswith("[]")
    key = name.removesuffix("[]")
    value = text if key in texts else _parse(text)
    if is_item:
        fields.setdefault(key, []).append(value)
        return
    if key in fields:
        raise RequestError(shorten(key), "given twice, expected once")
    fields[key] = value


def _parse(text: str) -> Any:
    """Numbers, lists and objects; what is no JSON stays text, for the check to say."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _suffix(filename: str | None) -> str:
    suffix = PurePosixPath(filename or "").suffix.lower()
    return suffix if suffix in _KNOWN_SUFFIXES else ""
