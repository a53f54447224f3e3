# SPDX-License-Identifier: Apache-2.0
"""Strict loaders of the components that are ours, as SGLang component loaders.

The VAE and the tokenizer are loaded by SGLang itself; the layout check that
precedes every load covers their files too.
"""

from pathlib import Path
from typing import Any

import torch
from sglang.multimodal_gen.runtime.loader.component_loaders.component_loader import (
    ComponentLoader,
)
from sglang.multimodal_gen.runtime.loader.utils import set_default_torch_dtype
from sglang.multimodal_gen.runtime.server_args import ServerArgs
from sglang.multimodal_gen.runtime.utils.precision import resolve_component_precision
from torch import nn

from sglang_ext_gen.layers.fp8_linear import (
    check_fp8_mode,
    finalize_fp8_linears,
    tensor_parallel,
)
from sglang_ext_gen.models.ideogram4.config import (
    Ideogram4TextEncoderConfig,
    Ideogram4TransformerConfig,
)
from sglang_ext_gen.models.ideogram4.dit import Ideogram4Transformer
from sglang_ext_gen.models.ideogram4.pipeline_config import (
    Ideogram4FP8PipelineConfig,
)
from sglang_ext_gen.models.ideogram4.text_encoder import Ideogram4TextEncoder
from sglang_ext_gen.models.ideogram4.weights import (
    TEXT_ENCODER_FILE,
    WEIGHTS_FILE,
    text_encoder_rules,
    transformer_rules,
)
from sglang_ext_gen.weights.layout import has_float8, read_json, read_tensors
from sglang_ext_gen.weights.load import load_weights
from sglang_ext_gen.weights.rules import Rule


def load_transformer(
    folder: Path, *, has_text: bool, dtype: torch.dtype, device: torch.device
) -> Ideogram4Transformer:
    """Build one of the two transformers from its folder.

    Args:
        folder: Holds ``config.json`` and the safetensors file or shards.
        has_text: False for the unconditional transformer.
        dtype: Compute dtype.
        device: Where the weights go.

    Raises:
        CheckpointError: The weights do not fit; names the tensor.
        ConfigError: The config does not fit; names the key.
    """
    config = Ideogram4TransformerConfig.from_dict(
        read_json(folder / "config.json"), f"{folder.name}/config.json"
    )
    names = read_tensors(folder / WEIGHTS_FILE)
    with torch.device("meta"), set_default_torch_dtype(dtype):
        transformer = Ideogram4Transformer(
            config, has_text=has_text, is_quantized=has_float8(names), dtype=dtype
        )
    rules = transformer_rules("conditional" if has_text else "unconditional")
    _fill(transformer, folder / WEIGHTS_FILE, rules, device)
    return transformer


def load_text_encoder(
    folder: Path, *, dtype: torch.dtype, device: torch.device
) -> Ideogram4TextEncoder:
    """Build the language tower from its folder; see ``load_transformer``."""
    config = Ideogram4TextEncoderConfig.from_dict(
        read_json(folder / "config.json"), f"{folder.name}/config.json"
    )
    names = read_tensors(folder / TEXT_ENCODER_FILE)
    with torch.device("meta"):
        encoder = Ideogram4TextEncoder(
            config, is_quantized=has_float8(names), dtype=dtype
        )
    _fill(encoder, folder / TEXT_ENCODER_FILE, text_encoder_rules(names), device)
    return encoder


def _fill(
    module: nn.Module, file: Path, rules: tuple[Rule, ...], device: torch.device
) -> None:
    tp_rank, tp_size = tensor_parallel()
    load_weights(
        module,
        file,
        rules,
        where=f"{file.parent.name}/",
        device=device,
        tp_rank=tp_rank,
        tp_size=tp_size,
    )


class _StrictLoader(ComponentLoader):
    """Takes precision and placement from SGLang, everything else from the folder."""

    precision_key: str

    def component_load_precision(
        self, server_args: ServerArgs, component_name: str
    ) -> str | None:
        """Allow ``component_precisions`` for this component."""
        return server_args.component_precisions.get(component_name)

    def load_customized(
        self, component_model_path: str, server_args: ServerArgs, component_name: str
    ) -> nn.Module:
        """Load strictly, then turn the FP8 weights into the chosen form."""
        dtype = resolve_component_precision(server_args, component_name)
        if dtype is None:
            dtype = resolve_component_precision(server_args, self.precision_key)
        assert dtype is not None, f"no precision for {component_name}"
        device = self.target_device(
            server_args.should_start_component_on_cpu(component_name)
        )
        mode = Ideogram4FP8PipelineConfig.of(server_args).fp8_mode
        check_fp8_mode(mode, dtype)
        module = self.build(Path(component_model_path), component_name, dtype, device)
        finalize_fp8_linears(module, mode, dtype)
        return module

    def build(
        self, folder: Path, component_name: str, dtype: torch.dtype, device: Any
    ) -> nn.Module:
        raise NotImplementedError


class Ideogram4TransformerLoader(_StrictLoader):
    """Loads ``transformer`` or ``unconditional_transformer``."""

    expected_library = "diffusers"
    precision_key = "transformer"

    def build(
        self, folder: Path, component_name: str, dtype: torch.dtype, device: Any
    ) -> nn.Module:
        """Which of the two it is follows from the component's name."""
        has_text = component_name == "transformer"
        return load_transformer(folder, has_text=has_text, dtype=dtype, device=device)


class Ideogram4TextEncoderLoader(_StrictLoader):
    """Loads ``text_encoder``."""

    expected_library = "transformers"
    precision_key = "text_encoder"

    def build(
        self, folder: Path, component_name: str, dtype: torch.dtype, device: Any
    ) -> nn.Module:
        """Only the language tower is built."""
        return load_text_encoder(folder, dtype=dtype, device=device)
