# SPDX-License-Identifier: Apache-2.0
"""What ``sglang-ext-gen demo`` asks of Ideogram 4."""

from typing import Any

from sglang_ext_gen.models.ideogram4.caption import (
    Element,
    StyleDescription,
    build_caption,
)

_SIZE = {"width": 512, "height": 384}


def demo_requests() -> list[dict[str, Any]]:
    """One request in plain words and one with a JSON caption."""
    caption = build_caption(
        high_level_description="A red kite over a lighthouse, with a painted sign.",
        style_description=StyleDescription(
            aesthetics="bright, windy",
            lighting="clear morning light",
            medium="gouache on paper",
            art_style="flat shapes with visible brush strokes",
        ),
        background="A pale blue sky above a calm sea.",
        elements=[
            Element(
                "obj", "a white lighthouse with a red lamp", bbox=(250, 80, 900, 300)
            ),
            Element("obj", "a red kite with a long tail", bbox=(80, 520, 420, 820)),
            Element(
                "text",
                "painted in blue capitals on a wooden sign",
                text="OPEN SEA",
                bbox=(760, 480, 880, 860),
            ),
        ],
    )
    return [
        {"prompt": "A red kite over a white lighthouse", "seed": 1, **_SIZE},
        {"prompt": caption, "seed": 2, **_SIZE},
    ]
