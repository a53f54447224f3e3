# SPDX-License-Identifier: Apache-2.0
"""Noise levels, guidance and Euler steps of the image generator.

Source: diffusers' FlowMatchEulerDiscreteScheduler as the official pipeline sets it up:
``sigma_min`` 0, and the shift that the checkpoint's file states. The official code
means to switch dynamic shifting on, but its assignment has no effect; so do its ports.

The last noise level but one is already 0, so the last step changes nothing.
"""

import math

import torch
from torch import Tensor

from sglang_ext_gen.models.ming_omni.config import SchedulerConfig

# Of the official pipeline, for a file that asks for dynamic shifting.
_BASE_TOKENS, _BASE_SHIFT, _SHIFT_PER_TOKEN = 256, 0.5, 0.65 / 3840


def make_sigmas(config: SchedulerConfig, steps: int, num_tokens: int) -> Tensor:
    """Noise levels from 1 to 0.

    Args:
        config: Of ``scheduler/scheduler_config.json``.
        steps: Number of steps.
        num_tokens: Image tokens of one frame; counts only with dynamic shifting.

    Returns:
        [steps + 1] float32, falling; the last two are 0 if there are two steps or more.
    """
    # As the scheduler: time steps in float32, shifted in float32.
    times = torch.linspace(config.num_train_timesteps, 0, steps, dtype=torch.float64)
    sigmas = (times / config.num_train_timesteps).float()
    if config.use_dynamic_shifting:
        mu = _BASE_SHIFT + (num_tokens - _BASE_TOKENS) * _SHIFT_PER_TOKEN
        factor = math.exp(mu)
        sigmas = factor * sigmas / (1 + (factor - 1) * sigmas)
    else:
        sigmas = config.shift * sigmas / (1 + (config.shift - 1) * sigmas)
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def model_time(sigma: Tensor, config: SchedulerConfig) -> Tensor:
    """What the transformer is told: 0 at pure noise, 1 at the picture."""
    timesteps = config.num_train_timesteps
    return (timesteps - sigma * timesteps) / timesteps


def combine(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Guidance of the release: 1 + ``scale`` is what others call the scale."""
    return conditional + scale * (conditional - unconditional)


def uses_guidance(scale: float) -> bool:
    """Whether the unconditional branch runs; at 1 exactly it does not."""
    return scale > 1.0


def euler_step(latents: Tensor, output: Tensor, sigma: Tensor, after: Tensor) -> Tensor:
    """From one noise level to the next, all float32.

    Args:
        latents: [B, C, h, w] at ``sigma``.
        output: [B, C, h, w] of the model, which points to the picture.
        sigma: Scalar.
        after: Scalar below.
    """
    return latents + (after - sigma) * -output


def draw_noise(seed: int, channels: int, height: int, width: int) -> Tensor:
    """Initial latents of one picture, the same on every device.

    Returns:
        [1, channels, height, width] float32 on the CPU.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(
        (1, channels, height, width), generator=generator, dtype=torch.float32
    )
