# SPDX-License-Identifier: Apache-2.0
"""The fused norms of stock's diffusion transformers, for a CPU without the kernels.

SGLang's published x86 wheel lacks the two CPU kernels that these layers call; the
layers' own eager code is behind ``torch.compile``, which would need a C++ compiler at
run time. The same arithmetic in plain PyTorch, statistics in float32 as in the
layer's contract. A wheel that has the kernels keeps using them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def norm_scale_shift(
    original: Callable[..., Tensor],
    layer: Any,
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
) -> Tensor:
    """Around ``_NormScaleShift.forward_cpu``: ``norm(x) * (1 + scale) + shift``.

    Args:
        x: [B, S, D].
        shift: [D], [B, D], [B, 1, D], [B, S, D] or [B, F, 1, D].
        scale: As ``shift``.
    """
    if _has_kernel("fused_norm_scale_shift_cpu"):
        return original(layer, x, shift, scale)
    return _modulate(layer.norm(x), shift, scale).to(x.dtype)


def scale_residual_norm_scale_shift(
    original: Callable[..., tuple[Tensor, Tensor]],
    layer: Any,
    residual: Tensor,
    x: Tensor,
    gate: Tensor | int,
    shift: Tensor,
    scale: Tensor,
) -> tuple[Tensor, Tensor]:
    """Around ``_ScaleResidualNormScaleShift.forward_cpu``.

    Returns:
        The modulated norm of ``residual + gate * x``, and that sum.
    """
    if _has_kernel("fused_scale_residual_norm_scale_shift_cpu"):
        return original(layer, residual, x, gate, shift, scale)
    gated = x * (gate if isinstance(gate, int) else _per_token(gate, x))
    total = residual + gated
    return _modulate(layer.norm(total), shift, scale).to(x.dtype), total


def _modulate(normed: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return normed * (1 + _per_token(scale, normed)) + _per_token(shift, normed)


def _per_token(value: Tensor, x: Tensor) -> Tensor:
    """Bring a modulation to a shape that broadcasts with ``x`` [B, S, D]."""
    if value.dim() == 2 and value.shape[0] == x.shape[0]:
        return value[:, None]
    if value.dim() == 4:
        frames = value.shape[1]
        per_frame = value.expand(-1, frames, x.shape[1] // frames, -1)
        return per_frame.flatten(1, 2)
    return value


def _has_kernel(name: str) -> bool:
    return hasattr(torch.ops.sgl_kernel, name)
