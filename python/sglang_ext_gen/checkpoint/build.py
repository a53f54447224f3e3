# SPDX-License-Identifier: Apache-2.0
"""Components as modules: built on the meta device, filled strictly; and converted."""

import pkgutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sglang_ext_gen.checkpoint.component import PICKLES, StoredComponent
from sglang_ext_gen.checkpoint.load import load_weights
from sglang_ext_gen.checkpoint.pickles import convert_pickle, load_pickle


def load_component(
    part: StoredComponent[Any],
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    options: Any = None,
    tp_rank: int = 0,
    tp_size: int = 1,
) -> Any:
    """Build the module of a component and fill it.

    Args:
        part: The component, in its checkpoint.
        dtype: Compute dtype.
        device: Where the weights go.
        options: What the component's ``build`` reads; the pipeline config in a server.
        tp_rank: Index of this process in its tensor-parallel group.
        tp_size: Size of that group.

    Raises:
        CheckpointError: The weights do not fit; names the tensor.
        ConfigError: The config does not fit; names the key.
    """
    module: nn.Module = pkgutil.resolve_name(part.component.build)(part, dtype, options)
    filled = {module.get_submodule(name): row for name, row in part.parts.items()}
    for submodule, row in (filled or {module: part}).items():
        if row.file.suffix in PICKLES:
            load_pickle(submodule, row, dtype=dtype, device=device)
            continue
        load_weights(
            submodule,
            row.file,
            row.rules,
            where=row.where,
            device=device,
            tp_rank=tp_rank,
            tp_size=tp_size,
            quantize=row.component.quantizes,
        )
    return module.requires_grad_(False).eval()


def convert_components(parts: Iterable[StoredComponent[Any]]) -> list[Path]:
    """Write the pickles among the components as safetensors, once, beside them.

    Returns:
        What was written.

    Raises:
        CheckpointError: A pickle is refused or is not what it should be.
    """
    return [
        convert_pickle(row)
        for part in parts
        for row in (part, *part.parts.values())
        if row.is_pickle
    ]
