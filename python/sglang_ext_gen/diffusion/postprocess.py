# SPDX-License-Identifier: Apache-2.0
"""From what a VAE decodes to pixels that are rounded as the references round them."""

from torch import Tensor


def to_levels(decoded: Tensor) -> Tensor:
    """8-bit levels of decoded pixels, rounded half to even.

    Args:
        decoded: Float32, black at -1 and white at 1.

    Returns:
        Float32 from 0 to 255.
    """
    return ((decoded * 0.5 + 0.5).clamp(0, 1) * 255).round()


def from_levels(levels: Tensor) -> Tensor:
    """Pixels in [0, 1] that SGLang, which truncates, turns into exactly these levels.

    A quarter of a level above the byte is safe from the rounding error of
    ``level / 255 * 255``.
    """
    return ((levels + 0.25) / 255).clamp(0, 1)
