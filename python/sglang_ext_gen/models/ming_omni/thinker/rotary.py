# SPDX-License-Identifier: Apache-2.0
"""The "video_rope" rotation in plain torch, for machines without Triton.

SGLang's rotary class for this model shifts positions, so that negative ones stay inside
its table, and calls a Triton kernel. On CPU this does the same, in float32.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def rotate_in_place(
    original: Callable[..., None],
    q: Tensor,
    k: Tensor,
    cos_sin_cache: Tensor,
    positions: Tensor,
    mrope_section: Sequence[int],
    head_size: int,
    rotary_dim: int,
    is_neox_style: bool,
) -> None:
    """Around ``triton_ernie45_rope_fused_inplace``: torch where there is no Triton.

    Frequencies of the row and column sections alternate (even row, odd column), the
    rest belong to time. Only the first ``rotary_dim`` numbers of a head are turned.

    Args:
        original: SGLang's function.
        q: [T, heads * head_size], changed in place.
        k: [T, kv heads * head_size], changed in place.
        cos_sin_cache: [positions, rotary_dim]: cosines, then sines.
        positions: [3, T] indices into the table (time, row, column).
        mrope_section: Frequencies of (row, column, time).
        head_size: d.
        rotary_dim: Turned part of d.
        is_neox_style: Pairs are (j, j + rotary_dim / 2); the other style is not used.
    """
    if q.device.type != "cpu" or not is_neox_style:
        original(
            *(q, k, cos_sin_cache, positions),
            *(mrope_section, head_size, rotary_dim, is_neox_style),
        )
        return
    half = rotary_dim // 2
    frequency = torch.arange(half)
    axis = torch.where(frequency % 2 == 0, 1, 2)
    axis[frequency >= mrope_section[0] + mrope_section[1]] = 0
    # One table row per token and frequency, chosen by that frequency's axis.
    rows = positions[axis].T.long()  # [T, half]
    cos = cos_sin_cache[rows, frequency].float()[:, None]
    sin = cos_sin_cache[rows, half + frequency].float()[:, None]
    for x in (q, k):
        heads = x.view(x.shape[0], -1, head_size)
        first = heads[..., :half].float()
        second = heads[..., half:rotary_dim].float()
        # Both halves before either is written: in float32 these are views of x.
        turned = first * cos - second * sin, second * cos + first * sin
        heads[..., :rotary_dim] = torch.cat(turned, dim=-1).to(x.dtype)
