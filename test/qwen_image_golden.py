# SPDX-License-Identifier: Apache-2.0
"""The golden requests of Qwen-Image as commands."""

import json
from pathlib import Path
from typing import Any

from conftest import GOLDEN_ROOT

_FIELDS = (
    *("prompt", "negative_prompt", "true_cfg_scale", "width", "height"),
    *("num_inference_steps", "seed"),
)


def golden_request(kind: str) -> dict[str, Any]:
    """Fields of the golden case of a kind, without its picture."""
    file = GOLDEN_ROOT / "qwen_image" / kind / "golden.json"
    case = json.loads(file.read_text("utf-8"))["case"]
    return {name: case[name] for name in _FIELDS}


def golden_command(kind: str, checkpoint: str, picture: Path) -> tuple[str, ...]:
    """``generate`` that draws the golden picture of a kind."""
    folder = GOLDEN_ROOT / "qwen_image" / kind
    request = golden_request(kind)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in request.items()]
    output = ("--output", str(picture), "--precision", "float32", "--json")
    return ("generate", str(folder / checkpoint), *flags, *output)
