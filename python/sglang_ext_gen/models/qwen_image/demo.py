# SPDX-License-Identifier: Apache-2.0
"""What ``sglang-ext-gen demo`` asks of Qwen-Image."""

import tempfile
from pathlib import Path
from typing import Any

from PIL import Image


def demo_requests() -> list[dict[str, Any]]:
    """A picture without guidance and one with a negative prompt."""
    size = {"width": 256, "height": 192, "num_inference_steps": 4}
    return [
        {"prompt": "A red kite over a white lighthouse", "seed": 1, **size},
        {
            "prompt": "A shop window with the words OPEN SEA",
            "negative_prompt": "blurry",
            "seed": 2,
            **size,
        },
    ]


def edit_demo_requests() -> list[dict[str, Any]]:
    """An edit of one picture and one of two, both written here."""
    folder = Path(tempfile.mkdtemp(prefix="qwen-image-demo-"))
    paths = []
    for name, size in (("wide", (96, 64)), ("tall", (48, 80))):
        picture = Image.radial_gradient("L").resize(size).convert("RGB")
        paths.append(str(folder / f"{name}.png"))
        picture.save(paths[-1])
    size = {"width": 256, "height": 192, "num_inference_steps": 4}
    size["reference_pixels"] = 256 * 256
    return [
        {"prompt": "make it blue", "image_path": paths[:1], "seed": 1, **size},
        {
            "prompt": "put the first picture into the second",
            "negative_prompt": " ",
            "image_path": paths,
            "seed": 2,
            **size,
        },
    ]
