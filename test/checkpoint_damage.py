# SPDX-License-Identifier: Apache-2.0
"""Ways to break a checkpoint, for tests of ``doctor``, of the layout and of loading.

Each function of ``DAMAGES`` changes one thing in a copy of an Ideogram 4 checkpoint
and returns the text that any report of it must contain: the name of the file, tensor
or key. Files are edited as bytes, so that nothing under test is used to make them.
"""

import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_WEIGHT = "layers.1.feed_forward.w2.weight"
_NORM = "layers.0.attention.norm_q.weight"


@dataclass(frozen=True)
class RawTensor:
    """A safetensors entry and its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def read_raw(file: Path) -> dict[str, RawTensor]:
    """All entries of a safetensors file."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    header.pop("__metadata__", None)
    return {
        name: RawTensor(
            entry["dtype"], tuple(entry["shape"]), data[slice(*entry["data_offsets"])]
        )
        for name, entry in header.items()
    }


def write_raw(file: Path, tensors: dict[str, RawTensor]) -> None:
    """Write a safetensors file, whatever the entries say."""
    header, offset = {}, 0
    for name, tensor in tensors.items():
        end = offset + len(tensor.data)
        header[name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    data = b"".join(tensor.data for tensor in tensors.values())
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


class RunsACommand:
    """Unpickling this makes the file ``marker``."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def copy_checkpoint(source: Path, target: Path) -> Path:
    """A writable copy of a checkpoint, also of one that is read only."""
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for folder in (target, *target.rglob("*/")):
        folder.chmod(0o755)
    return target


def missing_weights(checkpoint: Path) -> str:
    """No weights of a component."""
    (checkpoint / "vae" / _WEIGHTS).unlink()
    return f"vae/{_WEIGHTS}"


def missing_config(checkpoint: Path) -> str:
    """No config of a component."""
    (checkpoint / "unconditional_transformer" / "config.json").unlink()
    return "unconditional_transformer/config.json"


def damaged_config(checkpoint: Path) -> str:
    """A config that is cut in the middle."""
    file = checkpoint / "text_encoder" / "config.json"
    file.write_text(file.read_text("utf-8")[:100], "utf-8")
    return "text_encoder/config.json"


def unknown_config_key(checkpoint: Path) -> str:
    """A config key of another architecture."""
    file = checkpoint / "transformer" / "config.json"
    config = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({**config, "num_experts": 8}), "utf-8")
    return "num_experts"


def truncated_weights(checkpoint: Path) -> str:
    """A download that stopped before the end."""
    file = checkpoint / "transformer" / _WEIGHTS
    file.write_bytes(file.read_bytes()[:-1000])
    return f"transformer/{_WEIGHTS}"


def truncated_header(checkpoint: Path) -> str:
    """A download that stopped early."""
    file = checkpoint / "text_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    return "text_encoder/model.safetensors"


def missing_tensor(checkpoint: Path) -> str:
    """A norm weight is not there."""
    return _edit(checkpoint / "transformer", _NORM, None)


def missing_scale(checkpoint: Path) -> str:
    """An FP8 weight without its scale."""
    return _edit(checkpoint / "transformer", f"{_WEIGHT}_scale", None)


def stray_scale(checkpoint: Path) -> str:
    """A scale whose weight is not FP8."""
    scale = RawTensor("F32", (2,), bytes(8))
    return _edit(
        checkpoint / "transformer", "embed_image_indicator.weight_scale", scale
    )


def extra_tensor(checkpoint: Path) -> str:
    """A tensor that belongs to no part of the model."""
    extra = RawTensor("BF16", (4,), bytes(8))
    name = "layers.0.attention.gate.weight"
    return _edit(checkpoint / "unconditional_transformer", name, extra)


def wrong_shape(checkpoint: Path) -> str:
    """The same number of elements in another shape."""
    weight = _stored(checkpoint / "transformer", _WEIGHT)
    turned = replace(weight, shape=weight.shape[::-1])
    return _edit(checkpoint / "transformer", _WEIGHT, turned)


def wrong_dtype(checkpoint: Path) -> str:
    """One weight is stored as bfloat16 among FP8 ones."""
    weight = _stored(checkpoint / "transformer", _WEIGHT)
    wider = RawTensor("BF16", weight.shape, bytes(2 * len(weight.data)))
    return _edit(checkpoint / "transformer", _WEIGHT, wider)


DAMAGES: tuple[Callable[[Path], str], ...] = (
    missing_weights,
    missing_config,
    damaged_config,
    unknown_config_key,
    truncated_weights,
    truncated_header,
    missing_tensor,
    missing_scale,
    stray_scale,
    extra_tensor,
    wrong_shape,
    wrong_dtype,
)


def _stored(folder: Path, name: str) -> RawTensor:
    return read_raw(folder / _WEIGHTS)[name]


def _edit(folder: Path, name: str, tensor: RawTensor | None) -> str:
    """Put ``tensor`` in the place of ``name``; None removes it."""
    tensors = read_raw(folder / _WEIGHTS)
    tensors.pop(name, None)
    if tensor is not None:
        tensors[name] = tensor
    write_raw(folder / _WEIGHTS, tensors)
    return name
