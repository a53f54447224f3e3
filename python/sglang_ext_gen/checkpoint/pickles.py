# SPDX-License-Identifier: Apache-2.0
"""Tensors from a vendor's pickle, without running any code in it.

A ``.pt`` or ``.pth`` file is judged by ``pickle_layout.py`` first, as in ``doctor``, is
read with ``weights_only=True``, never otherwise, and must be a flat dict of exactly the
expected tensors. ``convert_pickle`` writes the same tensors as safetensors once, beside
the pickle, where the loaders prefer them.
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sglang_ext_gen.checkpoint.component import StoredComponent
from sglang_ext_gen.checkpoint.layout import check_tensors
from sglang_ext_gen.checkpoint.pickle_layout import read_pickle_layout, refused
from sglang_ext_gen.checkpoint.rules import Plan, plan_steps, raise_problems


def read_pickle(file: Path) -> dict[str, Tensor]:
    """A state dict of tensors on the CPU.

    Raises:
        CheckpointError: It is missing, is not a zip pickle of plain tensors, or asks
            for anything else to be built (a sign of a malicious file).
    """
    stored = read_pickle_layout(file)
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise refused(file, reason) from error
    found = {name: tuple(tensor.shape) for name, tensor in loaded.items()}
    if found != {name: tensor.shape for name, tensor in stored.items()}:
        raise refused(file, "two readers find different tensors in it")
    return dict(loaded)


def checked_pickle(part: StoredComponent[Any]) -> tuple[dict[str, Tensor], Plan]:
    """The tensors of a component's pickle, exactly those of its specs, and their way.

    Raises:
        CheckpointError: See ``read_pickle``; or tensors are missing, left over or of
            another shape.
    """
    file = part.folder / part.component.file
    where = f"{part.folder.name}/{part.component.file}"
    tensors = read_pickle(file)
    stored = read_pickle_layout(file)
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
