# SPDX-License-Identifier: Apache-2.0
"""Frames to latents and back through the Wan 2.2 video VAE, SGLang's class.

Source: the official latent conventions. The file of the release is a pickle; how it is
read is in ``checkpoint/pickles.py``.

Convention of the official code: the noise of a sampled posterior is added after the
mean was normalised and is itself not divided by the latents' deviation.
"""

from dataclasses import dataclass
from typing import Any

import torch
from sglang.multimodal_gen.runtime.models.vaes.wanvae import AutoencoderKLWan
from torch import Tensor

from sglang_ext_gen.models.lance.config import PIXELS_PER_LATENT
from sglang_ext_gen.models.lance.tiling import Tiling, run_tiled

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
        vae: Loaded.
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
        vae: Loaded.
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
