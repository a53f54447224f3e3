# SPDX-License-Identifier: Apache-2.0
"""What ``sglang-ext-gen demo`` asks of Ming's image generator."""

from typing import Any


def demo_requests() -> list[dict[str, Any]]:
    """A picture from a prompt, and one with words in it."""
    return [
        {
            "prompt": "A red fox on a bench in the snow",
            "width": 256,
            "height": 192,
            "seed": 1,
            "num_inference_steps": 6,
        },
        {
            "prompt": 'A shop sign reading "OPEN 24h"',
            "width": 192,
            "height": 256,
            "seed": 2,
            "num_inference_steps": 6,
        },
    ]
