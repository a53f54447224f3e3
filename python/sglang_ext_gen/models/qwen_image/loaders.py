# SPDX-License-Identifier: Apache-2.0
"""The transformer with FP8 weights, quantised shard by shard while it is loaded.

Stock's loader first gathers all weights of a component. Here each tensor is quantised
as it is read and its shard is closed before the next one is opened.
"""

import logging
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from sglang.multimodal_gen.runtime.layers.linear import LinearBase, RowParallelLinear
from sglang.multimodal_gen.runtime.loader.component_loaders.transformer_loader import (
    TransformerLoader,
)
from sglang.multimodal_gen.runtime.loader.utils import (
    finalize_loaded_model,
    initialize_model,
)
from sglang.multimodal_gen.runtime.server_args import ServerArgs
from sglang.multimodal_gen.runtime.utils.precision import resolve_component_precision
from torch import Tensor, nn

from sglang_ext_gen.checkpoint.layout import read_json, read_tensors
from sglang_ext_gen.errors import CheckpointError
from sglang_ext_gen.kernels.fp8_gemm import quantize_rowwise
from sglang_ext_gen.models.qwen_image.dit import QwenImageExtTransformer
from sglang_ext_gen.models.qwen_image.layout import WEIGHTS_FILE
from sglang_ext_gen.models.qwen_image.quantization import (
    RowwiseFP8Config,
    RowwiseFP8LinearMethod,
)

logger = logging.getLogger(__name__)


class QwenImageTransformerLoader(TransformerLoader):
    """Stock's loader, or ours where FP8 weights are asked for."""

    # SGLang lets the last class that names a component load it in every pipeline;
    # this one is for ours alone, which name it in ``component_loaders``.
    component_names = []  # noqa: RUF012

    def load_customized(
        self,
        component_model_path: str,
        server_args: ServerArgs,
        component_name: str,
        cpu_offload_flag: bool = False,
    ) -> nn.Module:
        """Load the transformer in the format that ``weight_format`` names."""
        config: Any = server_args.pipeline_config
        if config.weight_format == "released":
            return super().load_customized(
                component_model_path, server_args, component_name, cpu_offload_flag
            )
        dtype = resolve_component_precision(server_args, component_name)
        dtype = dtype or resolve_component_precision(server_args, "transformer")
        assert dtype is not None, "the pipeline config has a dit_precision"
        starts_on_cpu = server_args.should_start_component_on_cpu(component_name)
        server_args.model_paths[component_name] = component_model_path
        return load_fp8_transformer(
            Path(component_model_path),
            config.dit_config,
            dtype,
            self.target_device(starts_on_cpu or cpu_offload_flag),
        )


def load_fp8_transformer(
    folder: Path, dit_config: Any, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """Build the transformer and fill it from bf16 shards, with FP8 linears.

    Args:
        folder: Holds ``config.json`` and the safetensors file or shards.
        dit_config: Stock's config; takes over what ``config.json`` says.
        dtype: Compute dtype; of biases, norms and the few plain weights.
        device: Where the weights go.

    Raises:
        CheckpointError: A tensor is missing, unknown or of another shape.
    """
    released = read_json(folder / "config.json")
    dit_config.update_model_arch(dict(released))
    released.pop("_class_name", None)
    model: Any = initialize_model(
        QwenImageExtTransformer,
        {
            "config": dit_config,
            "hf_config": released,
            "quant_config": RowwiseFP8Config(),
        },
        dtype,
        torch.device("meta"),
    )
    _fill(model, folder / WEIGHTS_FILE, device)
    model.post_load_weights()
    finalize_loaded_model(model)
    _log_sizes(model)
    return model


def _fill(model: nn.Module, file: Path, device: torch.device) -> None:
    stored = read_tensors(file)
    missing = {name for name, _ in model.named_parameters()}
    for shard in sorted({tensor.file for tensor in stored.values()}):
        names = [name for name, tensor in stored.items() if tensor.file == shard]
        with safe_open(shard, framework="pt") as content:
            for name in names:
                if name not in missing:
                    raise CheckpointError(f"transformer/: {name} has no parameter")
                tensor = content.get_tensor(name).to(device)
                missing -= _write(model, name, tensor)
    if missing:
        raise CheckpointError(
            f"transformer/: {len(missing)} parameters without a tensor, such as "
            f"{min(missing)}"
        )


def _write(model: nn.Module, name: str, tensor: Tensor) -> set[str]:
    """Put one released tensor in its place; returns the names of what it filled."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    is_fp8 = isinstance(module, LinearBase) and isinstance(
        module.quant_method, RowwiseFP8LinearMethod
    )
    if not is_fp8 or leaf != "weight":
        _place(module, leaf, tensor, name)
        return {name}
    # Quantised before it is cut for tensor parallelism: a scale covers a whole row.
    weight, scale = quantize_rowwise(tensor)
    _place(module, "weight", weight, name)
    _place(module, "weight_scale", scale, name)
    return {name, f"{path}.weight_scale"}


def _place(module: nn.Module, leaf: str, tensor: Tensor, name: str) -> None:
    """Make a parameter real with this rank's part of ``tensor``."""
    empty = getattr(module, leaf)
    part = _rank_part(module, leaf, empty, tensor)
    if part.shape != empty.shape:
        raise CheckpointError(
            f"transformer/: {name} has shape {tuple(tensor.shape)}, expected "
            f"{tuple(empty.shape)} on this rank"
        )
    parameter = nn.Parameter(
        part.to(empty.dtype, copy=True, memory_format=torch.contiguous_format),
        requires_grad=False,
    )
    vars(parameter).update(vars(empty))
    setattr(module, leaf, parameter)


def _rank_part(
    module: Any, leaf: str, parameter: nn.Parameter, tensor: Tensor
) -> Tensor:
    """The part that stock's parallel linears hold; whole for everything else."""
    if not isinstance(module, LinearBase) or not hasattr(module, "tp_rank"):
        return tensor
    is_row_parallel = isinstance(module, RowParallelLinear)
    if is_row_parallel and leaf != "weight":
        return tensor
    # To a type checker the ranks of a linear are tensors or modules.
    rank, ranks = cast(Any, module).tp_rank, cast(Any, module).tp_size
    dim = 1 if is_row_parallel else 0
    size = parameter.shape[dim]
    if tensor.ndim != parameter.ndim or tensor.shape[dim] != size * ranks:
        return tensor  # refused by its shape
    return tensor.narrow(dim, rank * size, size)


def _log_sizes(model: nn.Module) -> None:
    parameters = dict(model.named_parameters())
    scales = [name for name in parameters if name.endswith(".weight_scale")]
    mib = 2**20
    resident = sum(parameter.nbytes for parameter in parameters.values())
    bf16 = sum(
        2 * parameter.numel()
        for name, parameter in parameters.items()
        if not name.endswith(".weight_scale")
    )
    logger.info(
        "%s: %d linears with FP8 weights, %.1f MiB in memory, %.1f MiB in bf16",
        type(model).__name__,
        len(scales),
        resident / mib,
        bf16 / mib,
    )
