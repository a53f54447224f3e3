# SPDX-License-Identifier: Apache-2.0
"""The bytes of a picture or video that a chat request points at.

A ``data:`` URL, a URL that the house's policy allows (``serving/urls.py``), or a file
inside the folder that the operator opened with ``SGLANG_EXT_GEN_MEDIA_FOLDER``.
"""

import base64
import binascii
from pathlib import Path
from typing import Any

from sglang_ext_gen import envs
from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.serving import urls


def read(source: Any, field: str) -> bytes:
    """Fetch or decode.

    Args:
        source: Bytes, text, or SGLang's object with the client's text in ``url``.
        field: ``image`` or ``video``, for messages.

    Raises:
        RequestError: It is not allowed, not there, empty or too large.
    """
    source = getattr(source, "url", source)  # SGLang's ImageData and VideoData
    if isinstance(source, bytes):
        data = source
    elif not isinstance(source, str):
        raise RequestError(field, f"cannot read a {type(source).__name__}")
    elif source.startswith("data:"):
        data = _decode(source, field)
    elif source.startswith(("http://", "https://")):
        data = urls.fetch(source, field)
    else:
        data = _file(source.removeprefix("file://"), field)
    if not data or len(data) > urls.MAX_MEDIA_BYTES:
        raise RequestError(
            field, f"{len(data)} bytes given, expected 1 to {urls.MAX_MEDIA_BYTES}"
        )
    return data


def _decode(url: str, field: str) -> bytes:
    header, comma, payload = url.partition(",")
    if not comma or not header.endswith(";base64"):
        raise RequestError(field, "a data: URL must be base64")
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(field, f"the data: URL is not base64: {error}") from error


def _file(path: str, field: str) -> bytes:
    folder = envs.media_folder()
    if folder is None:
        raise RequestError(
            field,
            "a file path given; the operator can open a folder for them with "
            f"{envs.MEDIA_FOLDER.name}",
        )
    file = Path(path).resolve()
    if not file.is_relative_to(Path(folder).resolve()) or not file.is_file():
        raise RequestError(field, "no such file in the folder opened for media")
    return file.read_bytes()
