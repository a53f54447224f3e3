# SPDX-License-Identifier: Apache-2.0
"""Write small random checkpoints in a released layout.

Tensors come from a family's ``TensorSpec`` list, never from our modules, so that a
checkpoint and the rules that load it are two independent statements. Each tensor has
its own random stream, seeded by (seed, stream, name): the same seed gives the same
bytes, and adding a tensor changes no other.

Values keep activations near unit size, and nothing is left at a value that would hide
a bug (norm weights are not 1, biases and scales not constant).
"""

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sglang_ext_gen.checkpoint.component import Component
from sglang_ext_gen.checkpoint.layout import FLOAT8, TensorSpec
from sglang_ext_gen.errors import ConfigError

FLOAT8_MAX = 448.0  # largest e4m3 value
MIN_SCALE = 1e-8  # for rows of zeros
_NORM_SPREAD = 0.1
_BIAS_STD = 0.1

# From the general float32 values of a tensor to the values to store instead.
Adjust = Callable[[Tensor], Tensor]


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``path`` only when it is complete.

    Raises:
        ConfigError: ``path`` exists and is not an empty folder.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} exists already; give a new or an empty folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as temp:
        folder = Path(temp) / path.name
        folder.mkdir()
        yield folder
        folder.rename(path)


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Write a config the way the released ones are: indented, one final newline."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=2, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), file, metadata={"format": "pt"})


def write_component(
    root: Path,
    component: Component[Any],
    values: Mapping[str, Any] | None,
    specs: Iterable[TensorSpec] | None = None,
    *,
    seed: int,
    streams: Mapping[str, float] | None = None,
    adjust: Mapping[str, Adjust] | None = None,
) -> None:
    """Write config and random weights of a component, as a pickle where released so.

    Args:
        root: The folder that holds the component's.
        component: Its row.
        values: Of the config file; None where it is written already.
        specs: By default the row's, for no tensors on disk.
        seed, streams, adjust: See ``random_tensors``; by default one stream of the
            component's name.
    """
    part = component.at(root)
    if values is not None:
        write_json(part.folder / component.config_file, values)
    if specs is None:
        specs = component.specs(part.config, {})
    streams = streams or {component.name: 1.0}
    tensors = random_tensors(specs, seed=seed, streams=streams, adjust=adjust)
    file = part.folder / component.file
    if part.is_pickle:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(tensors, file)
    else:
        write_tensors(file, tensors)


def split_into_shards(file: Path, most_bytes: int) -> None:
    """Replace a safetensors file by shards and their index, as large releases are.

    Args:
        file: The file; the shards get its name with a number.
        most_bytes: Of a shard's tensors; one tensor may have more.
    """
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in load_file(file).items():
        if size + tensor.nbytes > most_bytes and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(shards, start=1):
        shard = f"{file.stem}-{number:05d}-of-{len(shards):05d}{file.suffix}"
        write_tensors(file.with_name(shard), tensors)
        weight_map |= dict.fromkeys(tensors, shard)
    total = sum(tensor.nbytes for tensors in shards for tensor in tensors.values())
    write_json(
        file.with_name(f"{file.name}.index.json"),
        {"metadata": {"total_size": total}, "weight_map": weight_map},
    )
    file.unlink()


def random_tensors(
    specs: Iterable[TensorSpec],
    *,
    seed: int,
    streams: Mapping[str, float],
    adjust: Mapping[str, Adjust] | None = None,
) -> dict[str, Tensor]:
    """Random values for every spec: FP8 with its scales, the rest bfloat16.

    Args:
        specs: Names, shapes and dtypes.
        seed: Same seed, same values.
        streams: Names of the random streams and their weights (squares add up to
            1). Components that share a stream get related values.
        adjust: Tensors that need other values or another dtype, by name. FP8
            weights are adjusted before they are quantised.
    """
    adjust = adjust or {}
    tensors: dict[str, Tensor] = {}
    for spec in specs:
        if spec.name in tensors:  # a scale, made with its weight
            continue
        values = _draw(spec, seed, streams)
        is_adjusted = spec.name in adjust
        if is_adjusted:
            values = adjust[spec.name](values)
        if spec.dtypes == FLOAT8:
            tensors[spec.name], tensors[f"{spec.name}_scale"] = quantize_rows(values)
        else:
            tensors[spec.name] = values if is_adjusted else values.bfloat16()
    return tensors


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Row-wise e4m3 by the vendor's rule, scale = max|row| / 448.

    Args:
        weight: [out, in] float32.

    Returns:
        float8_e4m3fn [out, in] and its float32 scale [out].
    """
    scale = (weight.abs().amax(dim=1) / FLOAT8_MAX).clamp(min=MIN_SCALE)
    return (weight / scale[:, None]).to(torch.float8_e4m3fn), scale


def _draw(spec: TensorSpec, seed: int, streams: Mapping[str, float]) -> Tensor:
    """Norm weights near 1, small biases, matrices with unit gain (1 / sqrt(in))."""
    noise = torch.zeros(spec.shape)
    for stream, weight in streams.items():
        digest = hashlib.sha256(f"{seed}/{stream}/{spec.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        noise += weight * torch.randn(spec.shape, generator=generator)
    if len(spec.shape) > 1:
        return noise / math.sqrt(math.prod(spec.shape[1:]))
    if spec.name.endswith(".bias"):
        return _BIAS_STD * noise
    return 1 + _NORM_SPREAD * noise
