# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding: plain, and with three position axes (mRoPE).

Source: the rotary embeddings of Qwen3-VL and of the Ideogram 4 transformer
(interleaved mRoPE, half-split rotation).

Angles are computed in float32 from float32 frequencies that are never stored
as a module buffer: a module-wide cast to bfloat16 would round them, and at
position 65536 a rounding of 0.2 % is many turns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def inverse_frequencies(head_dim: int, theta: float, device: torch.device) -> Tensor:
    """Frequencies ``theta ** (-2j / d)`` for j below d / 2.

    Returns:
        [d / 2] float32.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
    return 1.0 / (theta ** (exponents / head_dim))


def interleaved_axes(
    head_dim: int, mrope_section: tuple[int, int, int], device: torch.device
) -> Tensor:
    """Which position axis (0 t, 1 h, 2 w) turns each frequency.

    Axes interleave (t, h, w, t, h, w, ...) while the section of h or w lasts;
    all later frequencies belong to t, so ``mrope_section[0]`` plays no part.

    Returns:
        [d / 2] int64.
    """
    frequency = torch.arange(head_dim // 2, device=device)
    axis = torch.zeros_like(frequency)
    for candidate in (1, 2):
        is_turn = frequency % 3 == candidate
        axis[is_turn & (frequency < 3 * mrope_section[candidate])] = candidate
    return axis


def rope_cos_sin(
    positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Rotation of one-dimensional positions.

    Args:
        positions: [..., S] any number type.
        head_dim: d.
        theta: Base of the frequencies.
        dtype: Of the result; the angles are float32 whatever it is.

    Returns:
        cos and sin, each [..., S, 1, d / 2], to be broadcast over heads.
    """
    frequencies = inverse_frequencies(head_dim, theta, positions.device)
    angles = positions.float()[..., None] * frequencies
    return angles.cos().to(dtype).unsqueeze(-2), angles.sin().to(dtype).unsqueeze(-2)


def mrope_cos_sin(
    position_ids: Tensor,
    head_dim: int,
    theta: float,
    mrope_section: tuple[int, int, int],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Rotation of three-axis positions, interleaved sections.

    Args:
        position_ids: [..., S, 3] positions (t, h, w).
        head_dim: d.
        theta: Base of the frequencies.
        mrope_section: Frequencies that h and w may turn, see
            ``interleaved_axes``.
        dtype: Of the result; the angles are float32 whatever it is.

    Returns:
        cos and sin, each [..., S, 1, d / 2].
    """
    device = position_ids.device
    frequencies = inverse_frequencies(head_dim, theta, device)
    axis = interleaved_axes(head_dim, mrope_section, device)
    angles = position_ids.float()[..., axis] * frequencies
    return angles.cos().to(dtype).unsqueeze(-2), angles.sin().to(dtype).unsqueeze(-2)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate half-split pairs (x[j], x[j + d / 2]).

    Args:
        x: [B, S, H, d].
        cos: [B, S, 1, d / 2].
        sin: [B, S, 1, d / 2].

    Returns:
        [B, S, H, d] in the dtype of ``x``.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def axes_rotation(
    position_ids: Tensor, axes_dims: Sequence[int], theta: float
) -> Tensor:
    """Rotation of positions on several axes, each with channels of its own.

    Angles are computed in float64, as tables of the Z-Image family are.

    Args:
        position_ids: [S, axes] integers.
        axes_dims: Channels of a head that each axis turns.
        theta: Base of the frequencies of every axis.

    Returns:
        [S, d / 2] complex64 of length 1.
    """
    parts = []
    for axis, size in enumerate(axes_dims):
        exponents = torch.arange(
            0, size, 2, dtype=torch.float64, device=position_ids.device
        )
        frequencies = 1.0 / theta ** (exponents / size)
        parts.append(position_ids[:, axis, None].double() * frequencies)
    angles = torch.cat(parts, dim=-1).float()
    return torch.polar(torch.ones_like(angles), angles)


def apply_rotation(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate adjacent pairs (x[2 j], x[2 j + 1]), in float32.

    Args:
        x: [B, S, H, d].
        rotation: [S, d / 2] complex64.

    Returns:
        [B, S, H, d] in the dtype of ``x``.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    rotated = torch.view_as_real(pairs * rotation[:, None])
    return rotated.flatten(-2).to(x.dtype)
