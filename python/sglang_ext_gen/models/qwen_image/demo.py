# SPDX-License-Identifier: Apache-2.0
"""What ``sglang-ext-gen demo`` asks of Qwen-Image."""

from typing import Any


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
