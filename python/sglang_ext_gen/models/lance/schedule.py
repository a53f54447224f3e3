# SPDX-License-Identifier: Apache-2.0
"""Times, guidance and the Euler step of Lance.

Source: the official inference code. Time runs from 1 (noise) to 0 (clean) in N
steps; the velocity points from data to noise. (BAGEL, its ancestor, places N points
and takes N - 1 steps.)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sglang_ext_gen.models.lance.tasks import RenormType

_NORM_EPS = 1e-8


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance of a request.

    Args:
        scale: 1 is the conditional velocity alone.
        interval: Guidance acts at times in (low, high].
        renorm_type: Against which norm the result is shortened: of all latents
            (``global``), of each token (``channel``), or not at all.
        renorm_min: The shortest it may get, as a share.
    """

    scale: float
    interval: tuple[float, float]
    renorm_type: RenormType
    renorm_min: float

    def is_active(self, time: float) -> bool:
        """Whether the unconditional branch runs at this time."""
        low, high = self.interval
        return self.scale > 1.0 and low < time <= high


def make_times(num_inference_steps: int, shift: float) -> Tensor:
    """Times at which the model runs, and the end.

    Returns:
        [N + 1] float32, falling from 1 to 0.
    """
    times = torch.linspace(1, 0, num_inference_steps + 1)
    return shift * times / (1 + (shift - 1) * times)


def blend_guidance(
    conditional: Tensor, unconditional: Tensor, guidance: Guidance
) -> Tensor:
    """Guided velocity.

    Args:
        conditional: [B, I, C] float32; pinned tokens take part in the norm.
        unconditional: [B, I, C] float32.
        guidance: Scale and renormalisation.

    Returns:
        [B, I, C] float32.
    """
    blended = unconditional + guidance.scale * (conditional - unconditional)
    if guidance.renorm_type == "none":
        return blended
    dims = (-1,) if guidance.renorm_type == "channel" else (-2, -1)
    wanted = torch.linalg.vector_norm(conditional, dim=dims, keepdim=True)
    found = torch.linalg.vector_norm(blended, dim=dims, keepdim=True)
    return blended * (wanted / (found + _NORM_EPS)).clamp(guidance.renorm_min, 1.0)


def euler_step(latents: Tensor, velocity: Tensor, time: Tensor, end: Tensor) -> Tensor:
    """Integrate the velocity from ``time`` down to ``end``, all float32.

    Args:
        latents: [B, I, C] at ``time``.
        velocity: [B, I, C] d(latents) / d(time).
        time: Scalar in (0, 1], 1 is pure noise.
        end: Scalar below ``time``.

    Returns:
        [B, I, C] at ``end``.
    """
    return latents - velocity * (time - end)
