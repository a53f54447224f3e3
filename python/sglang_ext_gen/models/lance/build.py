# SPDX-License-Identifier: Apache-2.0
"""The modules of Lance, unfilled, and converting the VAE's pickle."""

from pathlib import Path
from typing import Any

import torch
from sglang.multimodal_gen.configs.models.vaes import WanVAEConfig
from sglang.multimodal_gen.configs.models.vaes.wanvae import WanVAEArchConfig
from sglang.multimodal_gen.runtime.models.vaes.wanvae import AutoencoderKLWan

from sglang_ext_gen.checkpoint.build import convert_components
from sglang_ext_gen.checkpoint.component import StoredComponent
from sglang_ext_gen.models.lance.checkpoint import VAE, find_files
from sglang_ext_gen.models.lance.config import (
    FRAMES_PER_LATENT,
    LATENT_CHANNELS,
    PIXELS_PER_LATENT,
    LanceTransformerConfig,
    LanceVisionConfig,
)
from sglang_ext_gen.models.lance.mot import LanceTransformer
from sglang_ext_gen.models.lance.tensors import VaeWidths
from sglang_ext_gen.models.lance.vae import LATENTS_MEAN, LATENTS_STD
from sglang_ext_gen.models.lance.vision import LanceVisionTransformer


def transformer(
    part: StoredComponent[LanceTransformerConfig], dtype: torch.dtype, options: Any
) -> LanceTransformer:
    """The decoder; ``options.weight_format`` says whether its layers hold FP8."""
    with torch.device("meta"):
        return LanceTransformer(part.config, options.weight_format == "fp8").to(dtype)


def vision(
    part: StoredComponent[LanceVisionConfig], dtype: torch.dtype, options: Any
) -> LanceVisionTransformer:
    """The vision tower."""
    with torch.device("meta"):
        return LanceVisionTransformer(part.config).to(dtype)


def vae(
    part: StoredComponent[None], dtype: torch.dtype, options: Any
) -> AutoencoderKLWan:
    """SGLang's Wan VAE."""
    return _wan(part, dtype, has_encoder=True)


def vae_decoder(
    part: StoredComponent[None], dtype: torch.dtype, options: Any
) -> AutoencoderKLWan:
    """The same without its encoder."""
    return _wan(part, dtype, has_encoder=False)


def convert(path: Path) -> list[Path]:
    """Write ``Wan2.2_VAE.safetensors`` beside the pickle, same names and numbers.

    Args:
        path: The checkpoint, or one of its directories.

    Raises:
        CheckpointError: The pickle is not exactly this VAE.
    """
    return convert_components([VAE.at(find_files(path).root)])


def _wan(
    part: StoredComponent[None], dtype: torch.dtype, has_encoder: bool
) -> AutoencoderKLWan:
    widths = VaeWidths.from_tensors(part.stored)
    config = WanVAEConfig(
        arch_config=WanVAEArchConfig(
            base_dim=widths.encoder,
            decoder_base_dim=widths.decoder,
            z_dim=LATENT_CHANNELS,
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=PIXELS_PER_LATENT,
            scale_factor_temporal=FRAMES_PER_LATENT,
            latents_mean=LATENTS_MEAN,
            latents_std=LATENTS_STD,
        ),
        load_encoder=has_encoder,
        # Parallel encoding changes the latents of sources; decoding does not need it.
        use_parallel_encode=False,
        use_parallel_decode=False,
    )
    with torch.device("meta"):
        return AutoencoderKLWan(config).to(dtype)
