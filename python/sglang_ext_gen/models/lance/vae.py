# SPDX-License-Identifier: Apache-2.0
"""The Wan 2.2 video VAE: SGLang's class, filled from the vendor's file.

Source: ``Wan2.2_VAE.pth`` of the release and the official latent conventions. The
file is a pickle, so it is read with ``weights_only=True``, never otherwise, and must
be a flat dict of exactly the tensors in ``tensors.vae_specs``. A converted
``Wan2.2_VAE.safetensors`` beside it wins.

Convention of the official code: the noise of a sampled posterior is added after the
mean was normalised and is itself not divided by the latents' deviation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sglang.multimodal_gen.configs.models.vaes import WanVAEConfig
from sglang.multimodal_gen.configs.models.vaes.wanvae import WanVAEArchConfig
from sglang.multimodal_gen.runtime.models.vaes.wanvae import AutoencoderKLWan
from torch import Tensor

from sglang_ext_gen.checkpoint.layout import StoredTensor, check_tensors, read_tensors
from sglang_ext_gen.checkpoint.load import load_weights
from sglang_ext_gen.checkpoint.pickles import (
    convert_pickle,
    describe_tensors,
    read_pickle,
)
from sglang_ext_gen.checkpoint.rules import plan_steps, raise_problems
from sglang_ext_gen.models.lance.config import (
    FRAMES_PER_LATENT,
    LATENT_CHANNELS,
    PIXELS_PER_LATENT,
)
from sglang_ext_gen.models.lance.layout import find_files
from sglang_ext_gen.models.lance.tensors import VaeWidths, vae_specs
from sglang_ext_gen.models.lance.tiling import Tiling, run_tiled
from sglang_ext_gen.models.lance.weights import (
    VAE_DECODER_RULES,
    VAE_PICKLE,
    VAE_RULES,
    VAE_SAFETENSORS,
)

# fmt: off
LATENTS_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557,
    -0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825,
    -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230,
    -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748,
    0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)
LATENTS_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013,
    0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978,
    0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093,
    0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
    0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)
# fmt: on


def load_vae(
    root: Path, *, dtype: torch.dtype, device: torch.device, has_encoder: bool = True
) -> AutoencoderKLWan:
    """Build the VAE from the checkpoint root.

    Args:
        has_encoder: False leaves it on disk; tasks without a source do not need it.

    Raises:
        CheckpointError: There is no VAE file, or it is not exactly this VAE.
    """
    rules = VAE_RULES if has_encoder else VAE_DECODER_RULES
    converted = root / VAE_SAFETENSORS
    if converted.is_file():
        widths = _check(read_tensors(converted), converted.name)
        vae = _build(widths, dtype, has_encoder)
        load_weights(vae, converted, rules, where=converted.name, device=device)
        return vae.eval()
    tensors = read_pickle(root / VAE_PICKLE)
    widths = _check(describe_tensors(tensors, root / VAE_PICKLE), VAE_PICKLE)
    vae = _build(widths, dtype, has_encoder)
    plan = plan_steps(tensors, rules, where=VAE_PICKLE)
    renamed = {
        step.targets[0]: tensors[step.sources[0]].to(device, dtype)
        for step in plan.steps
    }
    vae.load_state_dict(renamed, strict=True, assign=True)
    return vae.eval()


def convert(root: Path) -> list[Path]:
    """Write ``Wan2.2_VAE.safetensors`` beside the pickle, same names and numbers.

    Args:
        root: The checkpoint, or one of its directories.

    Raises:
        CheckpointError: The pickle is not exactly this VAE.
    """
    source = find_files(root).root / VAE_PICKLE
    stored = describe_tensors(read_pickle(source), source)
    return [convert_pickle(source, vae_specs(_check(stored, source.name)))]


@dataclass(frozen=True)
class LatentPosterior:
    """What the encoder says of frames.

    Args:
        mean: [F, h, w, C] float32, normalised.
        deviation: [F, h, w, C] float32, not normalised.
    """

    mean: Tensor
    deviation: Tensor

    def latents(self, noise: Tensor | None) -> Tensor:
        """A sample, or the mean.

        Args:
            noise: [1, C, F, h, w] float32 for a sample, or None for the mean.

        Returns:
            [F, h, w, C] float32.
        """
        if noise is None:
            return self.mean
        return self.mean + self.deviation * _channels_last(noise).to(self.mean.device)


def encode(
    vae: AutoencoderKLWan, pixels: Tensor, tiling: Tiling | None = None
) -> LatentPosterior:
    """Normalised latents of frames.

    Args:
        vae: See ``load_vae``.
        pixels: [1, 3, T, height, width] float32 in [-1, 1], T = 4 k + 1.
        tiling: How large frames are cut; None for not at all.
    """

    def run(part: Tensor) -> Tensor:
        posterior: Any = vae.encode(part.to(vae_dtype(vae)))
        return torch.cat([posterior.mean, posterior.logvar], dim=1).float()

    moments = (
        run(pixels)
        if tiling is None
        else run_tiled(run, pixels, tiling, scale_in=PIXELS_PER_LATENT, scale_out=1)
    )
    mean, logvar = moments.chunk(2, dim=1)
    mean = mean - _statistic(LATENTS_MEAN, pixels)
    return LatentPosterior(
        mean=_channels_last(mean / _statistic(LATENTS_STD, pixels)),
        deviation=_channels_last((0.5 * logvar).exp()),
    )


def _channels_last(latents: Tensor) -> Tensor:
    """[1, C, F, h, w] -> [F, h, w, C]."""
    return latents[0].permute(1, 2, 3, 0)


def decode(
    vae: AutoencoderKLWan, latents: Tensor, tiling: Tiling | None = None
) -> Tensor:
    """Frames of normalised latents.

    Args:
        vae: See ``load_vae``.
        latents: [F, h, w, C] float32.
        tiling: How large frames are cut; None for not at all.

    Returns:
        [1, 3, 4 (F - 1) + 1, 16 h, 16 w] float32 in [-1, 1].
    """
    raw = latents.permute(3, 0, 1, 2)[None]
    raw = raw * _statistic(LATENTS_STD, raw) + _statistic(LATENTS_MEAN, raw)

    def run(part: Tensor) -> Tensor:
        return vae.decode(part.to(vae_dtype(vae))).float().clamp(-1, 1)

    if tiling is None:
        return run(raw)
    return run_tiled(run, raw, tiling, scale_in=1, scale_out=PIXELS_PER_LATENT)


def vae_dtype(vae: AutoencoderKLWan) -> torch.dtype:
    """Compute dtype of a loaded VAE."""
    return next(vae.parameters()).dtype


def _statistic(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device).view(1, -1, 1, 1, 1)


def _build(
    widths: VaeWidths, dtype: torch.dtype, has_encoder: bool
) -> AutoencoderKLWan:
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


def _check(stored: Mapping[str, StoredTensor], where: str) -> VaeWidths:
    widths = VaeWidths.from_tensors(stored, where)
    raise_problems(check_tensors(vae_specs(widths), stored, where=where), where)
    return widths
