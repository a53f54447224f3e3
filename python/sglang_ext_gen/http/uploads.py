# SPDX-License-Identifier: Apache-2.0
"""Multipart forms: their fields as one JSON object, their files in a folder.

A form has no types: a field that is text for the family stays text, any other is read
as JSON. A list is a JSON list in one part, or a part for each value under ``name`` or,
as OpenAI's client sends it, ``name[]``. Files are written to a new temporary folder,
under names that the client cannot choose; the folder goes with the request, or with
the video job that reads it.
"""

import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.http.errors import Refusal, shorten
from sglang_ext_gen.media import limits
from sglang_ext_gen.request.fields import Kind

MEDIA_TYPE = "multipart/form-data"
# Stock tells videos by these.
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")
# No other suffix says anything about a file.
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", *VIDEO_SUFFIXES)
_TEXT_KINDS = ("str", "strs")
_LIST_KINDS = ("floats", "strs")


@dataclass(frozen=True)
class Upload:
    """A file of a form, written to ``path``."""

    field: str
    path: Path
    media_type: str = ""  # as the client declared it


@dataclass(frozen=True)
class Form:
    """Fields by their names without ``[]``, in the types of their kinds; and files."""

    fields: dict[str, Any]
    files: tuple[Upload, ...] = ()


async def read_form(
    headers: Headers, body: bytes, kinds: Mapping[str, Kind], folder: Path
) -> Form:
    """Parse a form and write its files into ``folder``.

    Args:
        headers: Of the request; they hold the boundary.
        body: The whole body, already bounded.
        kinds: Name -> kind of the fields that are known.
        folder: See ``media/upload_folders.py``.

    Raises:
        Refusal: 400, the form is damaged or has too many parts.
        RequestError: A field is given twice, or both as a file and as a text.
    """
    parsed = await _parse(headers, body)
    try:
        texts: dict[str, list[str]] = {}
        files: list[Upload] = []
        for name, value in parsed.multi_items():
            if isinstance(value, UploadFile):
                path = folder / f"{len(files)}{_suffix(value.filename)}"
                path.write_bytes(await value.read())
                files.append(Upload(name, path, value.content_type or ""))
            else:
                texts.setdefault(name.removesuffix("[]"), []).append(value)
    finally:
        await parsed.close()
    fields = {
        name: _typed(name, given, kinds.get(name)) for name, given in texts.items()
    }
    return Form(fields, tuple(files))


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
    except (MultiPartException, KeyError, ValueError) as error:
        message = f"the body is not a multipart form: {error}"
        raise Refusal(400, message, code="invalid_form") from error


def _typed(name: str, texts: list[str], kind: Kind | None) -> Any:
    """The value of a field; a text that means none is left to the field's check."""
    values = texts if kind in _TEXT_KINDS else [_from_json(text) for text in texts]
    if kind == "floats" and not isinstance(values[0], list):
        return values
    if len(values) == 1:
        return values[0]
    if kind not in _LIST_KINDS:
        raise RequestError(shorten(name), "given twice, expected once")
    return values


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _suffix(filename: str | None) -> str:
    suffix = PurePosixPath(filename or "").suffix.lower()
    return suffix if suffix in _SUFFIXES else ""
