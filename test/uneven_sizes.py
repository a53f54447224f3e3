# SPDX-License-Identifier: Apache-2.0
"""A golden checkpoint with other sizes and the same results.

Units of its feed-forward layers are split in two: both halves have the unit's weights
on the way in, and half of them on the way out. So every number counts, the stored
results hold, and sizes are such as no padding would leave alone.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from checkpoint_damage import copy_checkpoint

_LAYER = r".*\bmlp(_moe_gen|\.experts\.\d+|\.shared_experts)?"
_IN = re.compile(rf"{_LAYER}\.(gate_proj|up_proj|linear_fc1)\.(weight|bias)")
_OUT = re.compile(rf"{_LAYER}\.(down_proj|linear_fc2)\.weight")
_SIZES = ("intermediate_size", "moe_intermediate_size")


def write_uneven(source: Path, target: Path, extra: int) -> Path:
    """Copy a checkpoint and split the first ``extra`` units of every layer."""
    copy_checkpoint(source, target)
    for file in target.rglob("*config.json"):
        values = _widened(json.loads(file.read_text("utf-8")), extra)
        file.write_text(json.dumps(values), "utf-8")
    for file in target.rglob("*.safetensors"):
        tensors = load_file(file)
        split = {name: _split(name, tensors[name], extra) for name in tensors}
        save_file(split, file)
    return target


def _widened(values: Any, extra: int) -> Any:
    if not isinstance(values, dict):
        return values
    return {
        key: value + extra if key in _SIZES else _widened(value, extra)
        for key, value in values.items()
    }


def _split(name: str, tensor: Tensor, extra: int) -> Tensor:
    """Halves first, so that units that a wrong size cuts off are whole ones."""
    if _IN.fullmatch(name):
        return torch.cat([tensor[:extra], tensor])
    if _OUT.fullmatch(name):
        half = tensor[:, :extra] / 2
        return torch.cat([half, half, tensor[:, extra:]], dim=1)
    return tensor
