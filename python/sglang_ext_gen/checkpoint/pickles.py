# SPDX-License-Identifier: Apache-2.0
"""Tensors from a vendor's pickle, without running any code in it.

A ``.pt`` or ``.pth`` file is read with ``weights_only=True``, never otherwise, and must
be a flat dict of exactly the expected tensors. ``convert_pickle`` writes the same
tensors as safetensors once, beside the pickle, where the loaders prefer them.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sglang_ext_gen.checkpoint.component import PICKLES, Stored, StoredComponent
from sglang_ext_gen.checkpoint.layout import StoredTensor, check_tensors
from sglang_ext_gen.checkpoint.rules import Plan, plan_steps, raise_problems
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


def stored_in(part: StoredComponent[Any]) -> Stored:
    """What is in a component's file, also where that is a pickle.

    Raises:
        CheckpointError: See ``read_pickle`` and ``read_tensors``.
    """
    if part.file.suffix not in PICKLES:
        return part.stored
    return describe_tensors(read_pickle(part.file), part.file)


def checked_pickle(part: StoredComponent[Any]) -> tuple[dict[str, Tensor], Plan]:
    """The tensors of a component's pickle, exactly those of its specs, and their way.

    Raises:
        CheckpointError: See ``read_pickle``; or tensors are missing, left over or of
            another shape.
    """
    file = part.folder / part.component.file
    where = f"{part.folder.name}/{part.component.file}"
    tensors = read_pickle(file)
    stored = describe_tensors(tensors, file)
    specs = part.component.specs(part.config, stored)
    raise_problems(check_tensors(specs, stored, where=where), where)
    rules = part.component.rules
    return tensors, plan_steps(
        tensors, rules(stored) if callable(rules) else rules, where=where
    )


def convert_pickle(part: StoredComponent[Any]) -> Path:
    """Write a safetensors file beside a pickle, same names and numbers.

    Raises:
        CheckpointError: See ``checked_pickle``.
    """
    tensors, _ = checked_pickle(part)
    target = (part.folder / part.component.file).with_suffix(".safetensors")
    temporary = target.with_name(f".{target.name}")
    save_file({name: t.contiguous() for name, t in tensors.items()}, temporary)
    temporary.replace(target)
    return target


def load_pickle(
    module: nn.Module,
    part: StoredComponent[Any],
    *,
    dtype: torch.dtype,
    device: torch.device | str,
) -> None:
    """Fill a module, built on the meta device without computed buffers, from a pickle.

    Raises:
        CheckpointError: See ``checked_pickle``.
    """
    tensors, plan = checked_pickle(part)
    renamed = {
        step.targets[0]: tensors[step.sources[0]].to(device, dtype)
        for step in plan.steps
    }
    module.load_state_dict(renamed, strict=True, assign=True)
