# SPDX-License-Identifier: Apache-2.0
"""What every benchmark says about itself, and how pictures are compared."""

import math
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def tell(progress: str) -> None:
    print(progress, file=sys.stderr, flush=True)


def decibels(first: Path, second: Path) -> float:
    """Peak signal-to-noise ratio of two pictures; 100 at most, JSON has no infinity."""
    pixels = []
    for file in (first, second):
        with Image.open(file) as image:
            pixels.append(np.asarray(image.convert("RGB"), dtype=np.float64))
    error = float(np.mean((pixels[0] - pixels[1]) ** 2)) / 255**2
    return round(-10 * math.log10(max(error, 1e-10)), 1)


def hardware() -> str:
    """The GPU, or the processor and its cores."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        info = Path("/proc/cpuinfo").read_text("utf-8")
        names = [line for line in info.splitlines() if line.startswith("model name")]
        name = names[0].partition(":")[2].strip()
    except (OSError, IndexError):
        name = platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def commit() -> str:
    """Commit of the checkout, with ``-dirty`` when files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            command, cwd=here, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
