# SPDX-License-Identifier: Apache-2.0
"""Reference pictures of an edit: what is accepted, and to which size each goes.

Source: size rule of the diffusers 0.37 edit pipelines. Every resize maps the whole
picture to the whole target, without crop or padding, so an edit neither shifts nor
zooms. Imports neither torch nor SGLang.
"""

import math
import os
from collections.abc import Sequence

from PIL import Image, UnidentifiedImageError

from sglang_ext_gen.errors import RequestError

# The transformer's table has 4096 positions for text; every picture takes about 200.
MAX_REFERENCES = 10
MAX_REFERENCE_FILE_BYTES = 32 << 20
MAX_REFERENCE_PIXELS = 64 << 20
MAX_REFERENCE_ASPECT = 16
_SIDE_MULTIPLE = 32
_URLS = ("http://", "https://", "data:")


def size_for_pixels(pixels: int, width: int, height: int) -> tuple[int, int]:
    """Width and height in multiples of 32, of about ``pixels`` and the same shape."""
    ratio = width / height
    wide = math.sqrt(pixels * ratio)
    high = wide / ratio
    return (
        max(round(wide / _SIDE_MULTIPLE), 1) * _SIDE_MULTIPLE,
        max(round(high / _SIDE_MULTIPLE), 1) * _SIDE_MULTIPLE,
    )


def check_references(
    images: str | Sequence[str] | None, most: int = MAX_REFERENCES
) -> None:
    """Check number, size and format of the pictures before a request is queued.

    Args:
        images: Paths. A URL (``http:``, ``data:``) is left to the worker; over HTTP
            there are none.
        most: How many the checkpoint takes.

    Raises:
        RequestError: Names ``image_path``, the picture's place and the limit.
    """
    paths = [images] if isinstance(images, str) else list(images or ())
    if not paths:
        raise RequestError(
            "image_path", "missing, expected at least one picture to edit"
        )
    if len(paths) > most:
        raise RequestError("image_path", f"{len(paths)} pictures given, at most {most}")
    for index, path in enumerate(paths):
        if not path.startswith(_URLS):
            _check_file(f"picture {index + 1}", path)


def _check_file(name: str, path: str) -> None:
    if not os.path.isfile(path):
        raise RequestError("image_path", f"{name}: {path} is no file")
    size = os.path.getsize(path)
    if size > MAX_REFERENCE_FILE_BYTES:
        raise RequestError(
            "image_path", f"{name} has {size} bytes, at most {MAX_REFERENCE_FILE_BYTES}"
        )
    try:
        # Opening reads the header only: the size is known before any pixel.
        with Image.open(path) as image:
            _check_size(name, *image.size)
            image.load()
    except RequestError:
        raise
    except Image.DecompressionBombError as error:
        raise RequestError(
            "image_path", f"{name} has more than {MAX_REFERENCE_PIXELS} pixels"
        ) from error
    except UnidentifiedImageError as error:
        raise RequestError(
            "image_path", f"{name} is no picture that can be read"
        ) from error
    except (OSError, ValueError, SyntaxError) as error:
        raise RequestError("image_path", f"{name} is damaged: {error}") from error


def _check_size(name: str, width: int, height: int) -> None:
    if width * height > MAX_REFERENCE_PIXELS:
        raise RequestError(
            "image_path",
            f"{name} is {width}x{height}, at most {MAX_REFERENCE_PIXELS} pixels",
        )
    if max(width, height) > MAX_REFERENCE_ASPECT * min(width, height):
        raise RequestError(
            "image_path",
            f"{name} is {width}x{height}, beyond the aspect ratio of "
            f"{MAX_REFERENCE_ASPECT}:1",
        )
