# SPDX-License-Identifier: Apache-2.0
"""The bytes of a medium that a client sends or names, within the package's policy.

A medium is bytes, a ``data:`` URL, an ``http(s)`` URL (``fetch.py`` says which)
or a file in the folder that ``SGLANG_EXT_GEN_MEDIA_FOLDER`` names. Every failure is the
client's: a ``RequestError`` with the reason.
"""

import base64
import binascii
from pathlib import Path
from typing import Any

from sglang_ext_gen import envs
from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.media import fetch, limits


def read_media(source: Any, field: str) -> bytes:
    """Decode, fetch or read one medium.

    Args:
        source: Bytes, text, SGLang's object with the client's text in ``url``, or a
            dict of that form.
        field: ``image``, ``video`` or ``audio``, for messages.

    Raises:
        RequestError: It is not allowed, not there, empty or too large.
    """
    source = getattr(source, "url", source)  # SGLang's ImageData and VideoData
    if isinstance(source, dict):
        source = source.get("url", source)
    if isinstance(source, bytes):
        data = source
    elif not isinstance(source, str):
        raise RequestError(field, f"cannot read a {type(source).__name__}")
    elif source.startswith("data:"):
        data = _data_url(source, field)
    elif source.startswith(("http://", "https://")):
        data = fetch.fetch(source, field)
    else:
        data = _file(source.removeprefix("file://"), field)
    if not data:
        raise RequestError(field, "the file is empty")
    if len(data) > limits.MAX_MEDIA_BYTES:
        raise RequestError(
            field, f"{len(data)} bytes given, at most {limits.MAX_MEDIA_BYTES} allowed"
        )
    return data


def _data_url(url: str, field: str) -> bytes:
    header, comma, payload = url.partition(",")
    if not comma or not header.endswith(";base64"):
        raise RequestError(field, "a data: URL must be base64")
    if len(payload) > limits.MAX_MEDIA_BYTES // 3 * 4 + 4:
        raise RequestError(field, f"at most {limits.MAX_MEDIA_BYTES} bytes are allowed")
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(field, f"the data: URL is not base64: {error}") from error


def _file(name: str, field: str) -> bytes:
    folder = envs.media_folder()
    if folder is None:
        raise RequestError(
            field,
            "give bytes, a data: URL or an http(s) URL; file names are only allowed "
            f"in the folder that {envs.MEDIA_FOLDER.name} names",
        )
    root = Path(folder).resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root) or not path.is_file():
        raise RequestError(field, "there is no such file in the media folder")
    if path.stat().st_size > limits.MAX_MEDIA_BYTES:
        raise RequestError(field, f"the file exceeds {limits.MAX_MEDIA_BYTES} bytes")
    return path.read_bytes()
