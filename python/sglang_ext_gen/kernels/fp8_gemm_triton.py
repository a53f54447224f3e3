# SPDX-License-Identifier: Apache-2.0
"""Triton kernel of ``fp8_linear``; numerics as ``fp8_gemm.py`` states.

Weights cross memory as FP8, one byte each, and are converted in registers. The
kernel computes the transposed product ``y.T = w8 @ x.T``: Hopper's matrix unit
reads its left operand from registers, so converted weights need not go back to
shared memory, and its 64-wide side covers output features instead of padding a
single activation row to 64.

Imported only where Triton is present; see ``fp8_gemm.fp8_linear``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
import triton.testing
from torch import Tensor

# Four e4m3 bytes in $2 -> four bfloat16 in $0 and $1. Two bytes at a time are put
# into the upper halves of 16 bits; sign, exponent and mantissa move to their places,
# and 2**120 makes up for the other exponent bias, denormals included. Exact for every
# finite value, without F2F, the slowest instruction of the plain conversion.
_PAIR = """
    prmt.b32 pair, $2, 0, {bytes};
    shr.u32 value, pair, 4;
    and.b32 value, value, 0x07f007f0;
    lop3.b32 value, pair, 0x80008000, value, 0xEA;
    fma.rn.bf16x2 {out}, value, scale, zero;"""
BFLOAT16_FROM_E4M3: Any = tl.constexpr(
    "{ .reg .b32 pair, value, scale, zero;"
    "\n    mov.b32 scale, 0x7B807B80;\n    mov.b32 zero, 0x80008000;"
    + _PAIR.format(bytes="0x1404", out="$0")
    + _PAIR.format(bytes="0x3424", out="$1")
    + "\n}"
)


@triton.jit
def _widen(w, DTYPE: tl.constexpr):
    """Weights as ``DTYPE``: the bytes of e4m3 as bfloat16, or e4m3 as anything."""
    if w.dtype != tl.uint8:
        return w.to(DTYPE)
    tl.static_assert(DTYPE == tl.bfloat16)
    return tl.inline_asm_elementwise(
        BFLOAT16_FROM_E4M3, "=r,=r,r", [w], dtype=tl.bfloat16, is_pure=True, pack=4
    )


@triton.jit(do_not_specialize=["M"])
def fp8_gemm_kernel(
    x_ptr,
    w_ptr,  # e4m3, or its bytes for products in bfloat16
    scale_ptr,
    bias_ptr,  # None: no bias
    y_ptr,
    M,
    N,
    K,
    stride_xm,
    stride_xk,
    stride_wn,
    stride_wk,
    stride_ym,
    DOT_DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """One [BLOCK_N, BLOCK_M] tile of ``y.T``; ``y`` has unit stride along N."""
    # Tiles are numbered so that GROUP_M row tiles reuse a weight tile from L2.
    tile = tl.program_id(0)
    tiles_m = (M + BLOCK_M - 1) // BLOCK_M
    tiles_n = (N + BLOCK_N - 1) // BLOCK_N
    first_m = tile // (GROUP_M * tiles_n) * GROUP_M
    group_m = tl.minimum(tiles_m - first_m, GROUP_M)
    in_group = tile % (GROUP_M * tiles_n)
    tile_m = first_m + in_group % group_m
    tile_n = in_group // group_m

    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # 64-bit rows: M * N passes 2**31 for batches of large pictures.
    m_row = m.to(tl.int64)
    n_row = n.to(tl.int64)
    w_ptrs = w_ptr + n_row[:, None] * stride_wn + k[None, :] * stride_wk
    x_ptrs = x_ptr + m_row[None, :] * stride_xm + k[:, None] * stride_xk
    w_mask = n[:, None] < N
    x_mask = m[None, :] < M

    acc = tl.full((BLOCK_N, BLOCK_M), 0.0, dtype=tl.float32)
    for k_start in range(0, K, BLOCK_K):
        k_left = K - k_start
        w = tl.load(w_ptrs, mask=w_mask & (k[None, :] < k_left), other=0.0)
        x = tl.load(x_ptrs, mask=x_mask & (k[:, None] < k_left), other=0.0)
        # "ieee": float32 activations are not rounded to TF32.
        acc = tl.dot(_widen(w, DOT_DTYPE), x.to(DOT_DTYPE), acc, input_precision="ieee")
        w_ptrs += BLOCK_K * stride_wk
        x_ptrs += BLOCK_K * stride_xk

    acc *= tl.load(scale_ptr + n, mask=n < N, other=0.0)[:, None]
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
    y_ptrs = y_ptr + m_row[:, None] * stride_ym + n[None, :]
    y = tl.trans(acc).to(y_ptr.dtype.element_ty)
    tl.store(y_ptrs, y, mask=(m[:, None] < M) & (n[None, :] < N))


class Tile(NamedTuple):
    """How one program covers ``y``: block sizes in rows, outputs and inputs."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 3

    def sizes(self) -> dict[str, int]:
        """The kernel's compile-time sizes."""
        return {
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "BLOCK_K": self.block_k,
            "GROUP_M": 8,
        }

    def schedule(self) -> dict[str, int]:
        """Triton's own launch options."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


# Candidates by the largest number of rows that they serve; the last entry serves
# any. Few rows (time embedding, adaLN, short prompts) are bound by reading the
# weights: small blocks of outputs keep all processors reading, deep in K. Many
# rows are bound by arithmetic: large blocks, since each converted weight then
# serves up to 256 rows.
TILES: dict[int | None, tuple[Tile, ...]] = {
    16: (
        Tile(16, 32, 256, num_stages=4),
        Tile(16, 64, 128, num_stages=5),
        Tile(16, 64, 256, num_stages=4),
        Tile(16, 128, 128, num_stages=4),
    ),
    64: (
        Tile(32, 64, 128, num_stages=4),
        Tile(32, 128, 128, num_stages=4),
        Tile(64, 64, 128, num_stages=4),
        Tile(64, 128, 128, num_warps=8),
    ),
    256: (
        Tile(64, 64, 128, num_stages=4),
        Tile(64, 128, 128, num_warps=8),
        Tile(128, 64, 128),
        Tile(128, 128, 64, num_warps=8, num_stages=4),
    ),
    None: (
        Tile(128, 128, 64, num_warps=8, num_stages=4),
        Tile(128, 128, 128, num_warps=8),
        Tile(128, 256, 64, num_warps=8),
        Tile(256, 128, 64, num_warps=8),
    ),
}

# Where a block of 256 rows or outputs does not fit the registers.
_NARROW = ((8, 0), (12, 0))


def tiles_for(tiles: tuple[Tile, ...], capability: tuple[int, int]) -> tuple[Tile, ...]:
    """Those candidates whose accumulators stay in registers."""
    if capability not in _NARROW:
        return tiles
    return tuple(tile for tile in tiles if max(tile.block_m, tile.block_n) < 256)


def _prune(configs: list[Any], _: Any, **__: Any) -> list[Any]:
    """The same for Triton's tuner."""
    capability = torch.cuda.get_device_capability()
    return [c for c in configs if tiles_for((_tile_of(c),), capability)]


def _tile_of(config: Any) -> Tile:
    sizes = config.kwargs
    return Tile(sizes["BLOCK_M"], sizes["BLOCK_N"], sizes["BLOCK_K"])


# One tuner per entry. Each (N, K) is timed once per machine: the choice is kept
# in Triton's cache on disk.
_TUNED = {
    max_rows: triton.autotune(
        [triton.Config(tile.sizes(), **tile.schedule()) for tile in tiles],
        key=["N", "K"],
        prune_configs_by={"early_config_prune": _prune},
        do_bench=partial(triton.testing.do_bench, warmup=5, rep=20),
        cache_results=True,
    )(fp8_gemm_kernel)
    for max_rows, tiles in TILES.items()
}

_TL_DTYPE: dict[torch.dtype, Any] = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
}


def fp8_linear_triton(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    tile: Tile | None = None,
    dot_dtype: torch.dtype | None = None,
) -> Tensor:
    """Run the kernel; operands as in ``fp8_gemm.fp8_linear``, not checked again.

    Args:
        tile: Fixed block sizes. Default: the tuned ones.
        dot_dtype: Type of the factors of each product. Default: that of ``x``.
            Triton's interpreter, which can neither tune nor multiply bfloat16,
            needs both.

    Raises:
        ValueError: ``x`` is not float16, bfloat16 or float32.
    """
    if x.dtype not in _TL_DTYPE:
        names = ", ".join(str(dtype) for dtype in _TL_DTYPE)
        raise ValueError(f"x must be one of {names}, got {x.dtype}")
    out_features, in_features = weight.shape
    rows = x.reshape(-1, in_features)
    m = rows.shape[0]
    y = x.new_empty(m, out_features)
    if y.numel() > 0:
        dot = _TL_DTYPE[dot_dtype or x.dtype]
        if dot == tl.bfloat16:
            weight = weight.view(torch.uint8)
        kernel = _tuned_for(m) if tile is None else fp8_gemm_kernel
        options = {} if tile is None else tile.sizes() | tile.schedule()
        with torch.cuda.device_of(x):
            kernel[_grid(m, out_features)](
                *(rows, weight, weight_scale, bias, y),
                *(m, out_features, in_features),
                *(*rows.stride(), *weight.stride(), y.stride(0)),
                DOT_DTYPE=dot,
                **options,
            )
    return y.view(*x.shape[:-1], out_features)


def _tuned_for(m: int) -> Any:
    """The tuner that serves ``m`` rows."""
    served = (limit for limit in _TUNED if limit is not None and m <= limit)
    return _TUNED[next(served, None)]


def _grid(m: int, n: int) -> Callable[[dict[str, int]], tuple[int]]:
    """Number of programs, once the block sizes are known."""

    def tiles(sizes: dict[str, int]) -> tuple[int]:
        tiles_m = triton.cdiv(m, sizes["BLOCK_M"])
        return (tiles_m * triton.cdiv(n, sizes["BLOCK_N"]),)

    return tiles
