# SPDX-License-Identifier: Apache-2.0
"""The golden drawing requests of Ming, for every door."""

from pathlib import Path
from typing import Any

from conftest import Golden

CASES = ("t2i", "t2i_text", "edit", "t2i_cfg1", "edit_bucket")
# golden.json's thresholds. The files have one level of rounding on top.
TENSOR_DB, FILE_DB, BF16_DB = 60.0, 48.0, 27.0


def golden_request(golden: Golden, name: str) -> dict[str, Any]:
    """Fields of a golden case, as Python and the command line take them."""
    case = golden.json["cases"][name]
    texts = [item["text"] for item in case["content"] if item["type"] == "text"]
    images = [item["image"] for item in case["content"] if item["type"] == "image"]
    request: dict[str, Any] = {
        "prompt": texts[0],
        "num_inference_steps": case["steps"],
        "guidance_scale": case["cfg"],
        "seed": case["seed"],
    }
    if images:
        request["image_path"] = str(golden.path / images[0])
    if "highres" in case:
        request["highres"] = case["highres"]
    else:
        request |= {"height": case["height"], "width": case["width"]}
    return request


def golden_png(golden: Golden, name: str) -> Path:
    return golden.path / golden.json["cases"][name]["image_png"]
