# SPDX-License-Identifier: Apache-2.0
"""Reference pictures of a request: limits, checks, reading.

A picture is checked in the user's process before the request is queued, and read again
in the worker. Imports neither torch nor SGLang.
"""

import functools
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO

from PIL import Image

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.media.limits import MAX_MEDIA_PIXELS

MAX_FILE_BYTES = 32 << 20
MAX_PIXELS = MAX_MEDIA_PIXELS
MAX_ASPECT_RATIO = 16
FIELD = "image_path"


def as_paths(images: str | Sequence[str] | None) -> list[str]:
    """The field's value as a list."""
    return [images] if isinstance(images, str) else list(images or ())


def check_references(paths: Sequence[str], most: int) -> list[tuple[int, int]]:
    """Height and width of pictures, checked; ``most`` is how many the model takes.

    Raises:
        RequestError: Names the field, the picture's place and the limit.
    """
    if len(paths) > most:
        raise RequestError(FIELD, f"{len(paths)} pictures given, at most {most}")
    return [
        picture_size(path, f"picture {index + 1}") for index, path in enumerate(paths)
    ]


def picture_size(path: str, name: str) -> tuple[int, int]:
    """Height and width of a picture that can be read to its end.

    Asked again for an unchanged file it answers from memory: a server decodes pictures
    in a thread before the request's own check asks. Raises as ``opened_picture``.
    """
    state = os.stat(path) if os.path.isfile(path) else None
    stamp = None if state is None else (state.st_mtime_ns, state.st_size, state.st_ino)
    return _picture_size(path, name, stamp)


@functools.lru_cache(maxsize=256)
def _picture_size(path: str, name: str, stamp: object) -> tuple[int, int]:
    with opened_picture(path, name) as image:
        image.load()
        return image.height, image.width


def read_reference(path: str) -> Image.Image:
    """The still picture in a local file, in RGB; raises as ``opened_picture``."""
    with opened_picture(path, "the picture") as image:
        return image.convert("RGB")


@contextmanager
def opened_picture(source: str | bytes, name: str) -> Iterator[Image.Image]:
    """A still picture whose pixels are read within the block.

    Args:
        source: A local file, or what is in one.
        name: What to call it in messages.

    Raises:
        RequestError: It is missing, damaged, animated, or beyond a limit; also where
            the block reads pixels that are damaged.
    """
    if isinstance(source, str) and not os.path.isfile(source):
        raise RequestError(FIELD, f"{name}: there is no file {source}")
    size = len(source) if isinstance(source, bytes) else os.path.getsize(source)
    if size > MAX_FILE_BYTES:
        raise RequestError(FIELD, f"{name} has {size} bytes, at most {MAX_FILE_BYTES}")
    try:
        # Opening reads the header only: the size is known before any pixel.
        with _open(source) as image:
            check_dimensions(FIELD, name, *image.size)
            # Only some formats have frames; those of MPO are a camera's previews.
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                raise RequestError(FIELD, f"{name} is animated; send a still picture")
            yield image
    except RequestError:
        raise
    except Image.DecompressionBombError as error:
        raise RequestError(FIELD, f"{name} has over {MAX_PIXELS} pixels") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise RequestError(
            FIELD, f"{name} is not a readable picture: {error}"
        ) from error


def _open(source: str | bytes) -> Image.Image:
    with warnings.catch_warnings():
        # Its size is checked right after.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(BytesIO(source) if isinstance(source, bytes) else source)


def check_dimensions(field: str, name: str, width: int, height: int) -> None:
    """Refuse a picture or a frame beyond the limits by its header.

    Raises:
        RequestError: For ``field``; says the limit.
    """
    if width * height > MAX_PIXELS:
        raise RequestError(
            field, f"{name} is {width}x{height}, at most {MAX_PIXELS} pixels"
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise RequestError(
            field,
            f"{name} is {width}x{height}, beyond the aspect ratio of "
            f"{MAX_ASPECT_RATIO}:1",
        )
