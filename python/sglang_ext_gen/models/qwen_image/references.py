# SPDX-License-Identifier: Apache-2.0
"""Reference pictures of an edit: how many, and to which size each goes.

Source: size rule of the diffusers 0.37 edit pipelines. Every resize maps the whole
picture to the whole target, without crop or padding, so an edit neither shifts nor
zooms. Imports neither torch nor SGLang.
"""

import math
from collections.abc import Sequence

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.media.images import as_paths, picture_size

# The transformer's table has 4096 positions for text; every picture takes about 200.
MAX_REFERENCES = 10
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
    paths = as_paths(images)
    if not paths:
        raise RequestError(
            "image_path", "missing, expected at least one picture to edit"
        )
    if len(paths) > most:
        raise RequestError("image_path", f"{len(paths)} pictures given, at most {most}")
    for index, path in enumerate(paths):
        if not path.startswith(_URLS):
            picture_size(path, f"picture {index + 1}")
