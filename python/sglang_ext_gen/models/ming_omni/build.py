# SPDX-License-Identifier: Apache-2.0
"""The image generator's modules, built on the meta device for their weights."""

from pathlib import Path
from typing import Any

import torch
from sglang.multimodal_gen.configs.models.vaes.flux import FluxVAEConfig
from sglang.multimodal_gen.runtime.loader.utils import set_default_torch_dtype
from sglang.multimodal_gen.runtime.models.vaes.autoencoder import AutoencoderKL

from sglang_ext_gen.checkpoint.build import convert_components
from sglang_ext_gen.checkpoint.component import StoredComponent
from sglang_ext_gen.checkpoint.layout import read_json
from sglang_ext_gen.models.ming_omni.byt5 import GlyphEncoder
from sglang_ext_gen.models.ming_omni.checkpoint import (
    GLYPH_ENCODER,
    has_glyphs,
)
from sglang_ext_gen.models.ming_omni.config import (
    AutoencoderConfig,
    TransformerConfig,
)
from sglang_ext_gen.models.ming_omni.connector import ConditionEncoder
from sglang_ext_gen.models.ming_omni.dit import ZImageTransformer
from sglang_ext_gen.models.ming_omni.tensors import bridge_widths


def condition_encoder(
    part: StoredComponent[Any], dtype: torch.dtype, options: Any
) -> ConditionEncoder:
    """Connector, and the projections of ``mlp/``."""
    connector, bridge = part.parts["connector"], part.parts["bridge"]
    _, thinker_width = bridge_widths(bridge.stored)
    with torch.device("meta"):
        encoder = ConditionEncoder(bridge.config, connector.config, thinker_width)
    return encoder.to(dtype)


def glyph_encoder(
    part: StoredComponent[Any], dtype: torch.dtype, options: Any
) -> GlyphEncoder:
    """ByT5 and its mapper."""
    with torch.device("meta"):
        return GlyphEncoder(part.parts["encoder"].config).to(dtype)


def transformer(
    part: StoredComponent[TransformerConfig], dtype: torch.dtype, options: Any
) -> ZImageTransformer:
    """The transformer, this rank's part of it."""
    # SGLang chooses the attention for the default dtype.
    with torch.device("meta"), set_default_torch_dtype(dtype):
        return ZImageTransformer(part.config, dtype=dtype)


def vae(
    part: StoredComponent[AutoencoderConfig], dtype: torch.dtype, options: Any
) -> AutoencoderKL:
    """The VAE, in SGLang's own class."""
    config = FluxVAEConfig()
    config.update_model_arch(
        {
            "act_fn": "silu",
            "mid_block_add_attention": part.config.mid_block_add_attention,
            **read_json(part.folder / "config.json"),
        }
    )
    config.post_init()
    with torch.device("meta"):
        return AutoencoderKL(config).to(dtype)


def convert(path: Path) -> list[Path]:
    """Write the pickles of ``byt5/`` as safetensors, once; returns what was written.

    Raises:
        CheckpointError: A pickle is refused or is not what it should be.
    """
    return convert_components([GLYPH_ENCODER.at(path)] if has_glyphs(path) else [])
