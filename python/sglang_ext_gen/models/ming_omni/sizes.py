# SPDX-License-Identifier: Apache-2.0
"""The sizes in which the model was trained, and what becomes of a reference picture.

Source: the size tables and the resizing of the official code. A reference is stretched,
never cropped, to the size of the picture; a result of an edit without a size of its own
is resized so that the stretch is undone. Imports neither torch nor SGLang.
"""

from PIL import Image

# Height over width -> (height, width), by the area that a user asks for. The keys are
# rounded differently from the sizes' own ratios and decide which size is nearest.
_LARGE: dict[float, tuple[int, int]] = {
    0.25: (512, 2048), 0.26: (512, 1984), 0.27: (512, 1920), 0.28: (512, 1856),
    0.32: (576, 1792), 0.33: (576, 1728), 0.35: (576, 1664), 0.4: (640, 1600),
    0.42: (640, 1536), 0.48: (704, 1472), 0.5: (704, 1408), 0.52: (704, 1344),
    0.57: (768, 1344), 0.6: (768, 1280), 0.68: (832, 1216), 0.72: (832, 1152),
    0.78: (896, 1152), 0.82: (896, 1088), 0.88: (960, 1088), 0.94: (960, 1024),
    1.0: (1024, 1024), 1.07: (1024, 960), 1.13: (1088, 960), 1.21: (1088, 896),
    1.29: (1152, 896), 1.38: (1152, 832), 1.46: (1216, 832), 1.67: (1280, 768),
    1.75: (1344, 768), 2.0: (1408, 704), 2.09: (1472, 704), 2.4: (1536, 640),
    2.5: (1600, 640), 2.89: (1664, 576), 3.0: (1728, 576), 3.11: (1792, 576),
    3.62: (1856, 512), 3.75: (1920, 512), 3.88: (1984, 512), 4.0: (2048, 512),
}  # fmt: skip
_MIDDLE: dict[float, tuple[int, int]] = {
    0.28: (352, 1280), 0.32: (384, 1184), 0.38: (416, 1088), 0.44: (448, 1024),
    0.52: (480, 928), 0.57: (512, 896), 0.65: (544, 832), 0.75: (576, 768),
    0.83: (608, 736), 0.91: (640, 704), 1.0: (672, 672), 1.1: (704, 640),
    1.21: (736, 608), 1.33: (768, 576), 1.39: (800, 576), 1.53: (832, 544),
    1.69: (864, 512), 1.75: (896, 512), 1.93: (928, 480), 2.0: (960, 480),
    2.21: (992, 448), 2.29: (1024, 448), 2.54: (1056, 416), 2.62: (1088, 416),
    2.69: (1120, 416), 3.0: (1152, 384), 3.08: (1184, 384), 3.17: (1216, 384),
    3.55: (1248, 352), 3.64: (1280, 352),
}  # fmt: skip
_SMALL = {ratio: (h // 2, w // 2) for ratio, (h, w) in _LARGE.items()}
BUCKETS = {512: _SMALL, 672: _MIDDLE, 1024: _LARGE}


def bucket_size(height: int, width: int, highres: int) -> tuple[int, int]:
    """The trained size whose shape is nearest.

    Args:
        height: Of the reference.
        width: Of the reference.
        highres: Which table: 512, 672 or 1024.

    Returns:
        Height and width.
    """
    table = BUCKETS[highres]
    ratio = min(table, key=lambda known: abs(known - height / width))
    return table[ratio]


def unstretched_size(
    drawn: tuple[int, int], original: tuple[int, int]
) -> tuple[int, int]:
    """The size of the result that has the reference's shape again.

    Args:
        drawn: Height and width of the bucket.
        original: Height and width of the reference.
    """
    height, width = drawn
    original_height, original_width = original
    if height / original_height > width / original_width:
        return height, int(original_width * height / original_height)
    return int(original_height * width / original_width), width


def stretched(image: Image.Image, height: int, width: int) -> Image.Image:
    """The reference at the size of the picture."""
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return resized.convert("RGB")
