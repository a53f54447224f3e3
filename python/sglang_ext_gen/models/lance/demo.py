# SPDX-License-Identifier: Apache-2.0
"""What ``sglang-ext-gen demo`` asks of Lance."""

from typing import Any


def demo_requests() -> list[dict[str, Any]]:
    """Two pictures of different shape; a source would have to come from the user."""
    return [
        {
            "prompt": "A red fox on a bench in the snow",
            "width": 256,
            "height": 192,
            "num_inference_steps": 4,
            "seed": 1,
        },
        {
            "prompt": "Three paper boats on a pond",
            "width": 192,
            "height": 256,
            "num_inference_steps": 4,
            "seed": 2,
        },
    ]
