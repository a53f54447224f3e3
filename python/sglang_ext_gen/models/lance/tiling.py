# SPDX-License-Identifier: Apache-2.0
"""Large frames through the VAE in overlapping tiles, blended.

Memory of the VAE then depends on the tile, not on the frame. Every tile holds all
frames of a video, so time is exact. Space is not: the VAE's middle attention sees the
whole frame, and a filter near a tile's edge misses what lies beyond, so the result is
close to, but not the same as without tiles (``benchmark/README.md`` has the figures).
A frame that fits into one tile is computed as without tiles.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiling:
    """How a frame is cut.

    Args:
        side: Longest side of a tile, in latents.
        overlap: What neighbours have in common at least, in latents.
    """

    side: int = 32
    overlap: int = 8


def run_tiled(
    run: Callable[[Tensor], Tensor],
    x: Tensor,
    tiling: Tiling,
    *,
    scale_in: int,
    scale_out: int,
) -> Tensor:
    """Apply ``run`` tile by tile.

    Args:
        run: [..., a * scale_in, b * scale_in] -> [..., a * scale_out, b * scale_out].
        x: [..., h * scale_in, w * scale_in], h and w in latents.
        tiling: See there.
        scale_in: Pixels a latent on the side of ``x``.
        scale_out: Pixels a latent on the side of the result.

    Returns:
        What ``run(x)`` would give in one piece, nearly.
    """
    height, width = (size // scale_in for size in x.shape[-2:])
    rows, columns = (_starts(size, tiling) for size in (height, width))
    if len(rows) == len(columns) == 1:
        return run(x)
    total = weight = torch.empty(0)
    for top in rows:
        for left in columns:
            bottom, right = top + tiling.side, left + tiling.side
            tile = x[
                ..., _scaled(top, bottom, scale_in), _scaled(left, right, scale_in)
            ]
            part = run(tile).float()
            if not total.numel():
                shape = (height * scale_out, width * scale_out)
                total = part.new_zeros(*part.shape[:-2], *shape)
                weight = part.new_zeros(shape)
            window = _window(part, tiling.overlap * scale_out)
            place = (
                ...,
                _scaled(top, bottom, scale_out),
                _scaled(left, right, scale_out),
            )
            total[place] += part * window
            weight[place] += window
    return total.div_(weight)


def _starts(length: int, tiling: Tiling) -> list[int]:
    """First latents of the tiles along one side, evenly spread."""
    if length <= tiling.side:
        return [0]
    last, step = length - tiling.side, tiling.side - tiling.overlap
    count = math.ceil(last / step)
    return [round(index * last / count) for index in range(count + 1)]


def _scaled(start: int, end: int, scale: int) -> slice:
    return slice(start * scale, end * scale)


def _window(part: Tensor, overlap: int) -> Tensor:
    """[height, width] weights of a tile: 1 inside, falling towards its edges.

    At the frame's own edges there is no neighbour, so any weight above 0 is whole.
    """
    sides = []
    for size in part.shape[-2:]:
        index = torch.arange(size, device=part.device)
        edge = torch.minimum(index, size - 1 - index) + 1.0
        sides.append((edge / max(overlap, 1)).clamp(max=1.0))
    return sides[0][:, None] * sides[1]
