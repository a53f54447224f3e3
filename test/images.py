# SPDX-License-Identifier: Apache-2.0
"""Comparing pictures."""

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor


def read_rgb(source: bytes | Path) -> np.ndarray:
    """A picture, from a file or from a file's bytes, as [H, W, 3] uint8."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def psnr(image: bytes | Path, reference: bytes | Path) -> float:
    """Peak signal-to-noise ratio of two 8-bit pictures in dB; infinite when equal.

    Raises:
        ValueError: The pictures differ in size.
    """
    first, second = read_rgb(image), read_rgb(reference)
    if first.shape != second.shape:
        raise ValueError(f"sizes differ: {first.shape} and {second.shape}")
    error = np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255.0**2 / error)


def decibels(image: "Tensor", reference: "Tensor") -> float:
    """Peak signal-to-noise ratio in dB of two tensors of equal shape in [0, 1]."""
    error = float((image.float() - reference.float()).square().mean())
    return math.inf if error == 0 else -10 * math.log10(error)
