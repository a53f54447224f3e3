# SPDX-License-Identifier: Apache-2.0
"""Logit-normal time schedule with resolution shift, and the Euler step.

Source: the vendor's scheduler (also in SGLang and diffusers).

Time runs from 0 (pure noise) to 1 (clean image); the transformer predicts the
velocity d(latents) / d(time). The last step ends at ``T_MAX`` as in the vendor's
code; diffusers ends at exactly 1, a difference beyond 80 dB in the picture.
"""

import math

import torch
from torch import Tensor

# Times at signal-to-noise ratios of exp(-18) and exp(15), the vendor's limits.
T_MIN = 1.0 / (1.0 + math.exp(9.0))
T_MAX = 1.0 / (1.0 + math.exp(-7.5))
# The schedule's mean is given for pictures of this many pixels.
REFERENCE_PIXELS = 512 * 512


def make_times(
    num_inference_steps: int, height: int, width: int, mu: float, std: float
) -> Tensor:
    """Times at which the transformer runs, and where the last step ends.

    Args:
        num_inference_steps: N.
        height: Picture height in pixels; larger pictures get noisier times.
        width: Picture width in pixels.
        mu: Mean of the logit-normal distribution at ``REFERENCE_PIXELS``.
        std: Its standard deviation.

    Returns:
        [N + 1] float32, rising from ``T_MIN`` to ``T_MAX``.
    """
    shifted_mu = mu + 0.5 * math.log(height * width / REFERENCE_PIXELS)
    grid = torch.linspace(1.0, 0.0, num_inference_steps + 1, dtype=torch.float64)
    normal = torch.special.ndtri(grid)  # -inf and +inf at the ends: clamped below
    times = 1.0 - torch.sigmoid(shifted_mu + std * normal)
    return times.clamp(T_MIN, T_MAX).float()


def blend_guidance(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance.

    Args:
        conditional: [B, I, C] float32 velocity of the conditional transformer.
        unconditional: [B, I, C] float32 velocity of the unconditional one.
        scale: 1 is the conditional velocity alone.

    Returns:
        [B, I, C] float32.
    """
    return scale * conditional + (1.0 - scale) * unconditional


def euler_step(latents: Tensor, velocity: Tensor, time: Tensor, end: Tensor) -> Tensor:
    """Integrate the velocity from ``time`` to ``end``, all float32.

    Args:
        latents: [B, I, C] at ``time``.
        velocity: [B, I, C] d(latents) / d(time).
        time: Scalar in [0, 1], 0 is pure noise.
        end: Scalar above ``time``.

    Returns:
        [B, I, C] at ``end``.
    """
    return latents + velocity * (end - time)
