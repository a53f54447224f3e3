# SPDX-License-Identifier: Apache-2.0
"""The golden requests of Qwen-Image as commands."""

import json
from pathlib import Path

from conftest import GOLDEN_ROOT

_FIELDS = (
    *("prompt", "negative_prompt", "true_cfg_scale", "width", "height"),
    *("num_inference_steps", "seed"),
)


def golden_command(kind: str, checkpoint: str, picture: Path) -> tuple[str, ...]:
    """``generate`` that draws the golden picture of a kind."""
    folder = GOLDEN_ROOT / "qwen_image" / kind
    case = json.loads((folder / "golden.json").read_text("utf-8"))["case"]
    flags = [f"--{name.replace('_', '-')}={case[name]}" for name in _FIELDS]
    output = ("--output", str(picture), "--precision", "float32", "--json")
    return ("generate", str(folder / checkpoint), *flags, *output)
