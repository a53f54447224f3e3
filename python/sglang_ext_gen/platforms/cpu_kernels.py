# SPDX-License-Identifier: Apache-2.0
"""What stock's models call on a CPU and the published packages do not contain.

Two fused norms: SGLang's x86 wheel lacks their CPU kernels, and the layers' own eager
code is behind ``torch.compile``, which would need a C++ compiler at run time. The
same arithmetic in plain PyTorch; a wheel that has the kernels keeps using them.

Rotary positions of the Qwen-VL text encoders: the language-model runtime's class
imports a kernel of vLLM when it is constructed, and the encoders never call it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sglang_ext_gen.errors import CheckpointError
from sglang_ext_gen.layers.rotary import (
    apply_rotary,
    interleaved_axes,
    inverse_frequencies,
)

KERNELS = ("fused_norm_scale_shift_cpu", "fused_scale_residual_norm_scale_shift_cpu")


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
    if has_kernel(KERNELS[0]):
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
    if has_kernel(KERNELS[1]):
        return original(layer, residual, x, gate, shift, scale)
    gated = x * (gate if isinstance(gate, int) else _per_token(gate, x))
    total = residual + gated
    return _modulate(layer.norm(total), shift, scale).to(x.dtype), total


class QwenVLTextRope(nn.Module):
    """Three-axis rotary positions, as the encoders of stock's Qwen-VL call them.

    Args:
        head_dim: d.
        theta: Base of the frequencies.
        mrope_section: Frequencies of (t, h, w); together d / 2.
        is_interleaved: Axes take turns (Qwen3-VL) instead of blocks (Qwen2.5-VL).
    """

    def __init__(
        self,
        head_dim: int,
        theta: float,
        mrope_section: tuple[int, int, int],
        is_interleaved: bool,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.theta = theta
        self.mrope_section = mrope_section
        self.is_interleaved = is_interleaved

    def forward_native(
        self, positions: Tensor, query: Tensor, key: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rotate query and key.

        Args:
            positions: [3, N].
            query: [N, H * d].
            key: [N, K * d].
        """
        device = positions.device
        if self.is_interleaved:
            axis = interleaved_axes(self.head_dim, self.mrope_section, device)
        else:
            counts = torch.tensor(self.mrope_section, device=device)
            axis = torch.arange(3, device=device).repeat_interleave(counts)
        frequencies = inverse_frequencies(self.head_dim, self.theta, device)
        angles = positions.T.float()[:, axis] * frequencies  # [N, d / 2]
        cos, sin = (
            value.to(query.dtype)[:, None] for value in (angles.cos(), angles.sin())
        )
        rotated = (
            apply_rotary(x.view(x.shape[0], -1, self.head_dim), cos, sin).flatten(1)
            for x in (query, key)
        )
        return next(rotated), next(rotated)


def build_qwen_vl_text_rope(
    original: Callable[..., Any], config: Any, *, mrope_interleaved: bool = False
) -> QwenVLTextRope:
    """Around stock's function of this name; ``original`` cannot run here."""
    from sglang.srt.utils.hf_transformers.common import get_rope_config

    theta, scaling = get_rope_config(config)
    if not scaling or "mrope_section" not in scaling:
        raise CheckpointError("the config of the Qwen-VL encoder has no mrope_section")
    head_dim = config.hidden_size // config.num_attention_heads
    if getattr(config, "head_dim", None):
        head_dim = config.head_dim
    return QwenVLTextRope(
        head_dim, theta, tuple(scaling["mrope_section"]), mrope_interleaved
    )


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


def has_kernel(name: str) -> bool:
    """Whether the published kernels include one; they must be loaded."""
    return hasattr(torch.ops.sgl_kernel, name)
