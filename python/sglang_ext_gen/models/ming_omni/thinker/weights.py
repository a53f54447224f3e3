# SPDX-License-Identifier: Apache-2.0
"""Where each tensor of the released thinker goes, and strict, streamed loading.

SGLang reads the shards and hands over one tensor at a time; each is written into its
parameter at once and let go, so nothing but the parameters accumulates. The loader
proves, by ``tensors.py``, that every tensor of the release came exactly once with its
shape and nothing else came, and, by the names here, that every parameter was filled.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from sglang_ext_gen.checkpoint.layout import TensorSpec
from sglang_ext_gen.checkpoint.rules import raise_problems
from sglang_ext_gen.errors import CheckpointError
from sglang_ext_gen.models.ming_omni.tensors import query_token_name
from sglang_ext_gen.models.ming_omni.thinker.checkpoint import WEIGHTS_FILE

# On disk but never used: the official code computes their output and drops it.
SKIPPED = "vision.deepstack_merger_list."
# What a quantisation method of SGLang adds to a linear and fills by itself.
_QUANTISED = ("_scale", "_scale_inv", "_scale_2", "input_scale")

_EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.(\w+)")
_GATED = re.compile(r"(.*\.(?:mlp|shared_experts))\.(gate|up)_proj\.(\w+)")
_HEAD_NORM = re.compile(r"(.*\.attention)\.([qk])_norm\.weight")
_EXPERT_SHARD = {"gate": ("w13", "w1"), "up": ("w13", "w3"), "down": ("w2", "w2")}
_HEAD_NORMS = {"q": "query_layernorm", "k": "key_layernorm"}


@dataclass(frozen=True)
class Target:
    """Where a tensor goes: a parameter or buffer, and which part of it."""

    name: str
    shard: int | str | None = None
    expert: int | None = None


def target_of(name: str) -> Target | None:
    """The place of a disk tensor in our module tree; None where it is not used."""
    if name.startswith(SKIPPED):
        return None
    if name.startswith("vision."):
        return Target(name.replace(".attn.qkv.", ".attn.qkv_proj."))
    if match := _EXPERT.fullmatch(name):
        experts, index, part, kind = match.groups()
        packed, shard = _EXPERT_SHARD[part]
        return Target(f"{experts}.{packed}_{kind}", shard, int(index))
    if match := _GATED.fullmatch(name):
        owner, part, kind = match.groups()
        return Target(f"{owner}.gate_up_proj.{kind}", 0 if part == "gate" else 1)
    if match := _HEAD_NORM.fullmatch(name):
        return Target(f"{match[1]}.{_HEAD_NORMS[match[2]]}.weight")
    return Target(name)


def load_thinker(
    module: nn.Module,
    weights: Iterable[tuple[str, Tensor]],
    specs: Iterable[TensorSpec],
) -> set[str]:
    """Fill ``module`` from a stream of tensors.

    Args:
        module: SGLang modules; parameters carry SGLang's ``weight_loader``.
        weights: Disk name and tensor, one at a time.
        specs: Everything that must come, from ``tensors.thinker_specs``.

    Returns:
        Names of the parameters and buffers that were filled.

    Raises:
        CheckpointError: A tensor is unknown, missing, given twice or of another shape,
            or a parameter was not filled; names the first few.
    """
    from sglang.srt.model_loader.weight_utils import default_weight_loader

    expected = {spec.name: spec.shape for spec in specs}
    places = _places(module)
    filled: set[str] = set()
    problems: list[str] = []
    for name, tensor in weights:
        shape = expected.pop(name, None)
        if shape != tuple(tensor.shape):
            problems.append(_problem(name, tensor, shape))
            continue
        target = target_of(name)
        if target is None:
            continue
        place = places[target.name]
        loader = getattr(place, "weight_loader", default_weight_loader)
        _write(loader, place, tensor, target)
        filled.add(target.name)
    problems += [f"{name} is missing" for name in expected]
    problems += [
        f"parameter {name} was not filled"
        for name in places.keys() - filled
        if not name.endswith(_QUANTISED) and not name.startswith("query_tokens.")
    ]
    raise_problems(problems, "the thinker")
    return filled


def load_query_tokens(
    tokens: Mapping[str, nn.Parameter], folder: Path
) -> Iterator[str]:
    """Fill the learnable query tokens from ``mlp/``; yields the names of scales.

    Raises:
        CheckpointError: A scale is missing or of another shape.
    """
    file = folder / "mlp" / WEIGHTS_FILE
    if not tokens:
        return
    if not file.is_file():
        raise CheckpointError(f"{file} is missing; it holds the query tokens")
    with safe_open(file, framework="pt") as stored:
        names = set(stored.keys())
        for scale, parameter in tokens.items():
            name = query_token_name(int(scale.partition("x")[0]))
            if name not in names:
                raise CheckpointError(f"{file} lacks {name}")
            tensor = stored.get_tensor(name)
            if tensor.shape != parameter.shape:
                raise CheckpointError(
                    f"{file}: {name} has shape {tuple(tensor.shape)}, expected "
                    f"{tuple(parameter.shape)}"
                )
            parameter.data.copy_(tensor)
            yield scale


def _places(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name."""
    return dict(module.state_dict(keep_vars=True))


def _write(loader: Any, place: Tensor, tensor: Tensor, target: Target) -> None:
    if target.expert is not None:
        loader(
            place, tensor, target.name, shard_id=target.shard, expert_id=target.expert
        )
    elif target.shard is not None:
        loader(place, tensor, target.shard)
    else:
        loader(place, tensor)


def _problem(name: str, tensor: Tensor, shape: tuple[int, ...] | None) -> str:
    if shape is None:
        return f"{name} is not part of this release, or comes twice"
    return f"{name} has shape {tuple(tensor.shape)}, expected {shape}"
