# SPDX-License-Identifier: Apache-2.0
"""Lance's denoising loop without SGLang's stages around it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lazy import LazyModule

CPU = torch.device("cpu")
generation = LazyModule("sglang_ext_gen.models.lance.generation")
runtime = LazyModule("sglang.multimodal_gen.runtime.managers.forward_context")


@torch.no_grad()
def velocities(transformer: Any, latents: Tensor, loop: Any, index: int) -> Tensor:
    """[k B, I, C] of all branches that a step needs, outside of any request."""
    with runtime.set_forward_context(0, attn_metadata=None, forward_batch=None):
        return transformer(latents, **loop.inputs(index))


@torch.no_grad()
def denoise(
    transformer: Any,
    conditionings: Sequence[Any],
    latents: Tensor,
    times: Tensor,
    guidance: Any,
) -> list[Tensor]:
    """[B, I, C] noise -> [B, I, C] latents after each step, all float32."""
    loop = generation.start(transformer, conditionings, times, guidance, CPU)
    steps = []
    for index in range(len(loop.guided)):
        found = velocities(transformer, latents, loop, index)
        latents = loop.advance(index, latents, found)
        steps.append(latents)
    return steps
