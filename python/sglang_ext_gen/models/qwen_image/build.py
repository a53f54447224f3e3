# SPDX-License-Identifier: Apache-2.0
"""The transformer with FP8 weights: stock's class, filled by our loader.

Stock's loader first gathers all weights of a component. Ours quantises each tensor as
it is read and closes a shard before it opens the next one. As released, the
transformer is stock's loader's, as all other components are.
"""

import logging
from typing import Any

import torch
from sglang.multimodal_gen.runtime.layers.linear import (
    ColumnParallelLinear,
    RowParallelLinear,
)
from sglang.multimodal_gen.runtime.loader.component_loaders.transformer_loader import (
    TransformerLoader,
)
from sglang.multimodal_gen.runtime.loader.utils import (
    finalize_loaded_model,
    initialize_model,
)
from sglang.multimodal_gen.runtime.server_args import ServerArgs
from torch import nn

from sglang_ext_gen.checkpoint.component import StoredComponent
from sglang_ext_gen.checkpoint.layout import read_json
from sglang_ext_gen.diffusion.component_loader import strict_loader
from sglang_ext_gen.models.qwen_image.checkpoint import TRANSFORMER
from sglang_ext_gen.models.qwen_image.config import TransformerConfig
from sglang_ext_gen.models.qwen_image.dit import QwenImageExtTransformer
from sglang_ext_gen.models.qwen_image.quantization import RowwiseFP8Config

logger = logging.getLogger(__name__)
_MIB = 2**20


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
        **stock_options: Any,
    ) -> nn.Module:
        """Load the transformer in the format that ``weight_format`` names."""
        config: Any = server_args.pipeline_config
        if config.weight_format != "fp8":
            return super().load_customized(
                component_model_path, server_args, component_name, **stock_options
            )
        server_args.model_paths[component_name] = component_model_path
        ours = strict_loader(TRANSFORMER)()
        model: Any = ours.load_customized(
            component_model_path, server_args, component_name
        )
        model.post_load_weights()
        _log_sizes(model)
        return finalize_loaded_model(model)


def fp8_transformer(
    part: StoredComponent[TransformerConfig], dtype: torch.dtype, options: Any
) -> nn.Module:
    """The transformer, unfilled on the meta device, its linears with FP8 weights.

    Args:
        part: Whose config file stock's class reads.
        dtype: Of biases, norms and the few plain weights.
        options: The pipeline config; its ``dit_config`` takes over what the file says.
    """
    released = read_json(part.folder / part.component.config_file)
    options.dit_config.update_model_arch(dict(released))
    del released["_class_name"]
    inputs = {
        "config": options.dit_config,
        "hf_config": released,
        "quant_config": RowwiseFP8Config(),
    }
    model = initialize_model(
        QwenImageExtTransformer, inputs, dtype, torch.device("meta")
    )
    for linear in model.modules():
        _mark_shards(linear)
    return model


def _mark_shards(linear: Any) -> None:
    """Tell our loader how stock cuts a linear over the tensor-parallel ranks."""
    if isinstance(linear, ColumnParallelLinear):
        for parameter in linear.parameters():
            vars(parameter).update(tp_dim=0, tp_sections=(linear.output_size,))
    elif isinstance(linear, RowParallelLinear):
        vars(linear.weight).update(tp_dim=1, tp_sections=(linear.input_size,))


def _log_sizes(model: nn.Module) -> None:
    parameters = dict(model.named_parameters())
    scales = [name for name in parameters if name.endswith(".weight_scale")]
    bf16 = sum(2 * p.numel() for name, p in parameters.items() if name not in scales)
    logger.info(
        "%s: %d linears with FP8 weights, %.1f MiB in memory, %.1f MiB in bf16",
        type(model).__name__,
        len(scales),
        sum(parameter.nbytes for parameter in parameters.values()) / _MIB,
        bf16 / _MIB,
    )
