# SPDX-License-Identifier: Apache-2.0
"""Strict loaders of the components that are ours, as SGLang component loaders.

The VAE and the tokenizer are loaded by SGLang itself; the layout check that
precedes every load covers their files too.
"""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from sglang.multimodal_gen.runtime.loader.utils import set_default_torch_dtype
from torch import nn

from sglang_ext_gen.checkpoint.layout import has_float8, read_json, read_tensors
from sglang_ext_gen.checkpoint.load import load_weights
from sglang_ext_gen.checkpoint.rules import Rule
from sglang_ext_gen.diffusion.component_loader import StrictLoader
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


class _FP8Loader(StrictLoader):
    """Loads strictly, then turns the FP8 weights into the chosen form."""

    def build(
        self,
        path: Path,
        config: Ideogram4FP8PipelineConfig,
        dtype: torch.dtype,
        device: Any,
    ) -> nn.Module:
        """Load the folder's component; ``config.fp8_mode`` is the form."""
        check_fp8_mode(config.fp8_mode, dtype)
        module = self.load_folder(path, dtype, device)
        finalize_fp8_linears(module, config.fp8_mode, dtype)
        return module

    @abstractmethod
    def load_folder(self, folder: Path, dtype: torch.dtype, device: Any) -> nn.Module:
        """Build and fill the module."""


class Ideogram4TransformerLoader(_FP8Loader):
    """Loads ``transformer``."""

    expected_library = "diffusers"
    precision_key = "transformer"
    has_text = True

    def load_folder(self, folder: Path, dtype: torch.dtype, device: Any) -> nn.Module:
        """With or without text, as the class says."""
        return load_transformer(
            folder, has_text=self.has_text, dtype=dtype, device=device
        )


class Ideogram4UnconditionalLoader(Ideogram4TransformerLoader):
    """Loads ``unconditional_transformer``."""

    has_text = False


class Ideogram4TextEncoderLoader(_FP8Loader):
    """Loads ``text_encoder``."""

    expected_library = "transformers"
    precision_key = "text_encoder"

    def load_folder(self, folder: Path, dtype: torch.dtype, device: Any) -> nn.Module:
        """Only the language tower is built."""
        return load_text_encoder(folder, dtype=dtype, device=device)
