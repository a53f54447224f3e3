# SPDX-License-Identifier: Apache-2.0
"""Reference pictures of a request: limits, checks, reading.

A picture is checked in the user's process before the request is queued, and read again
in the worker. Imports neither torch nor SGLang.
"""

import os
import warnings
from collections.abc import Sequence

from PIL import Image, UnidentifiedImageError

from sglang_ext_gen.errors import RequestError

MAX_FILE_BYTES = 32 << 20
MAX_PIXELS = 64_000_000
MAX_ASPECT_RATIO = 16
FIELD = "image_path"


def as_paths(images: str | Sequence[str] | None) -> list[str]:
    """The field's value as a list."""
    return [images] if isinstance(images, str) else list(images or ())


def check_references(paths: Sequence[str], most: int) -> list[tuple[int, int]]:
    """Check number, size and format of pictures.

    Args:
        paths: Local files.
        most: How many the model takes.

    Returns:
        Height and width of each.

    Raises:
        RequestError: Names the field, the picture's place and the limit.
    """
    if len(paths) > most:
        raise RequestError(FIELD, f"{len(paths)} pictures given, at most {most}")
    sizes = []
    for index, path in enumerate(paths):
        image = read_reference(path, f"picture {index + 1}")
        sizes.append((image.height, image.width))
    return sizes


def read_reference(path: str, name: str = "the picture") -> Image.Image:
    """One still picture, in RGB.

    Args:
        path: A local file.
        name: What to call it in messages.

    Raises:
        RequestError: It is missing, damaged, animated, or beyond a limit.
    """
    if not os.path.isfile(path):
        raise RequestError(FIELD, f"{name}: there is no file {path}")
    if (size := os.path.getsize(path)) > MAX_FILE_BYTES:
        raise RequestError(FIELD, f"{name} has {size} bytes, at most {MAX_FILE_BYTES}")
    try:
        # Opening reads the header only: the size is known before any pixel, and
        # checked below, so Pillow need not warn of it.
        with _opened(path) as image:
            _check_size(name, *image.size)
            if getattr(image, "n_frames", 1) > 1:  # only some formats have frames
                raise RequestError(FIELD, f"{name} is animated; send a still picture")
            return image.convert("RGB")
    except RequestError:
        raise
    except Image.DecompressionBombError as error:
        raise RequestError(FIELD, f"{name} has over {MAX_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        raise RequestError(FIELD, f"{name} is no picture that can be read") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise RequestError(FIELD, f"{name} is damaged: {error}") from error


def _opened(path: str) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path)


def _check_size(name: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise RequestError(
            FIELD, f"{name} is {width}x{height}, at most {MAX_PIXELS} pixels"
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise RequestError(
            FIELD,
            f"{name} is {width}x{height}, beyond the aspect ratio of "
            f"{MAX_ASPECT_RATIO}:1",
        )
