# SPDX-License-Identifier: Apache-2.0
"""Tensors from a vendor's pickle, without running any code in it.

A ``.pt`` or ``.pth`` file is read with ``weights_only=True``, never otherwise, and must
be a flat dict of exactly the expected tensors. ``convert_pickle`` writes the same
tensors as safetensors once, beside the pickle, where the loaders prefer them.
"""

import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sglang_ext_gen.checkpoint.layout import (
    StoredTensor,
    TensorSpec,
    check_tensors,
    read_tensors,
)
from sglang_ext_gen.checkpoint.load import load_weights
from sglang_ext_gen.checkpoint.rules import Rule, plan_steps, raise_problems
from sglang_ext_gen.errors import CheckpointError

_CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def read_pickle(file: Path) -> dict[str, Tensor]:
    """A state dict of tensors on the CPU.

    Raises:
        CheckpointError: It is missing, is not a zip pickle of plain tensors, or asks
            for anything else to be built (a sign of a malicious file).
    """
    if not file.is_file():
        raise CheckpointError(f"{file} is missing")
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{file} is refused: it is not a plain file of tensors ({reason}). "
            "Download it again from the release"
        ) from error
    is_flat = isinstance(loaded, Mapping) and all(
        isinstance(name, str) and isinstance(tensor, Tensor)
        for name, tensor in loaded.items()
    )
    if not is_flat:
        raise CheckpointError(f"{file} is refused: it is not a flat dict of tensors")
    return dict(loaded)


def describe_tensors(
    tensors: Mapping[str, Tensor], file: Path
) -> dict[str, StoredTensor]:
    """The tensors of a pickle in the words of a safetensors header."""
    return {
        name: StoredTensor(
            name,
            _CODES.get(tensor.dtype, str(tensor.dtype)),
            tuple(tensor.shape),
            tensor.nbytes,
            0,
            file,
        )
        for name, tensor in tensors.items()
    }


def checked_pickle(
    file: Path, specs: Iterable[TensorSpec], where: str
) -> dict[str, Tensor]:
    """The tensors of a pickle, exactly those that ``specs`` names.

    Raises:
        CheckpointError: See ``read_pickle``; or tensors are missing, left over or of
            another shape.
    """
    tensors = read_pickle(file)
    raise_problems(
        check_tensors(specs, describe_tensors(tensors, file), where=where), where
    )
    return tensors


def convert_pickle(file: Path, specs: Iterable[TensorSpec]) -> Path:
    """Write a safetensors file beside a pickle, same names and numbers.

    Raises:
        CheckpointError: See ``checked_pickle``.
    """
    target = file.with_suffix(".safetensors")
    tensors = checked_pickle(file, specs, file.name)
    temporary = target.with_name(f".{target.name}")
    save_file({name: t.contiguous() for name, t in tensors.items()}, temporary)
    temporary.replace(target)
    return target


def load_pickle(
    module: nn.Module,
    file: Path,
    specs: Sequence[TensorSpec],
    rules: Sequence[Rule],
    *,
    where: str,
    dtype: torch.dtype,
    device: torch.device | str,
) -> None:
    """Fill a module from a pickle, or from the converted file beside it.

    Args:
        module: Built on the meta device, without computed buffers.
        file: The pickle.
        specs: What it must hold.
        rules: Where each tensor goes.
        where: Component for messages.
        dtype: Of the parameters.
        device: Where they go.

    Raises:
        CheckpointError: See ``checked_pickle``.
    """
    converted = file.with_suffix(".safetensors")
    if converted.is_file():
        stored = read_tensors(converted)
        raise_problems(check_tensors(specs, stored, where=where), where)
        load_weights(module, converted, rules, where=where, device=device)
        return
    tensors = checked_pickle(file, specs, where)
    plan = plan_steps(tensors, rules, where=where)
    renamed = {
        step.targets[0]: tensors[step.sources[0]].to(device, dtype)
        for step in plan.steps
    }
    module.load_state_dict(renamed, strict=True, assign=True)
