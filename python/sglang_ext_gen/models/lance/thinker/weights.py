# SPDX-License-Identifier: Apache-2.0
"""Where each released tensor goes in the thinker, streamed and proved.

SGLang hands over one tensor at a time. The weights of generation are not used, and
nothing of them stays in memory.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn

from sglang_ext_gen.checkpoint.layout import TensorSpec
from sglang_ext_gen.checkpoint.rules import raise_problems
from sglang_ext_gen.models.lance.weights import BUNDLED_VISION

_UNUSED = ("vae2llm.", "llm2vae.", "time_embedder.", "latent_pos_embed.")
_GENERATION = "_moe_gen"
# One row a token, then padding.
_VOCABULARY = (
    "language_model.model.embed_tokens.weight",
    "language_model.lm_head.weight",
)
_QKV = re.compile(r"(.*\.self_attn)\.([qkv])_proj\.(weight|bias)")
_GATED = re.compile(r"(.*\.mlp)\.(gate|up)_proj\.weight")


@dataclass(frozen=True)
class Target:
    """A parameter, and which part of it a tensor fills."""

    name: str
    shard: int | str | None = None


def is_used(name: str) -> bool:
    """Whether a released tensor is the thinker's."""
    return _GENERATION not in name and not name.startswith(_UNUSED)


def target_of(name: str) -> Target:
    """The place of a used tensor in our module tree."""
    if name.startswith(BUNDLED_VISION):
        return Target("visual." + name.removeprefix(BUNDLED_VISION))
    name = name.removeprefix("language_model.")
    if match := _QKV.fullmatch(name):
        return Target(f"{match[1]}.qkv_proj.{match[3]}", match[2])
    if match := _GATED.fullmatch(name):
        return Target(f"{match[1]}.gate_up_proj.weight", int(match[2] == "up"))
    return Target(name)


def read_vision(file: Path) -> Iterator[tuple[str, Tensor]]:
    """The standalone vision tower, under the names of a bundled one."""
    with safe_open(str(file), framework="pt") as stream:
        for name in stream.keys():
            yield BUNDLED_VISION + name, stream.get_tensor(name)


def load(
    module: nn.Module,
    weights: Iterable[tuple[str, Tensor]],
    specs: Iterable[TensorSpec],
    num_tokens: int,
) -> set[str]:
    """Fill every parameter; returns their names.

    Args:
        module: Its parameters may carry SGLang's ``weight_loader``.
        weights: Names and tensors as released.
        specs: What must come, of the used tensors.
        num_tokens: Length of the tokenizer; later vocabulary rows are left on disk.

    Raises:
        CheckpointError: A tensor is missing, left over, given twice or of another
            shape, or a parameter stays empty.
    """
    expected = {spec.name: spec.shape for spec in specs if is_used(spec.name)}
    parameters = dict(module.named_parameters())
    filled: set[str] = set()
    problems: list[str] = []
    for name, tensor in weights:
        if not is_used(name):
            continue
        shape = expected.pop(name, None)
        target = target_of(name)
        if shape is None or target.name not in parameters:
            problems.append(f"{name} has no place or came twice")
        elif tuple(tensor.shape) != shape:
            problems.append(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
        else:
            used = tensor[:num_tokens] if name in _VOCABULARY else tensor
            _write(parameters[target.name], used, target)
            filled.add(target.name)
    problems += [f"{name} is missing" for name in expected]
    problems += [f"nothing fills {name}" for name in parameters.keys() - filled]
    raise_problems(problems, "Lance")
    return filled


def _write(parameter: nn.Parameter, tensor: Tensor, target: Target) -> None:
    loader = getattr(parameter, "weight_loader", None)  # SGLang's, on split parameters
    if loader is None:
        parameter.data.copy_(tensor)
    elif target.shard is None:
        loader(parameter, tensor)
    else:
        loader(parameter, tensor, target.shard)
