# SPDX-License-Identifier: Apache-2.0
"""Linear with row-wise FP8 weights: ``y = x @ (w8 * scale[:, None]).T + bias``.

Shapes: M rows of activations (all leading dims of ``x``), N output features,
K input features. ``w8`` is [N, K] float8_e4m3fn, ``scale`` is [N] float32.
Activations are never quantised.

Order of operations, the same in the kernel and in the reference: the FP8
values are converted exactly (every e4m3 value fits in fp16, bf16 and float32),
multiplied with the activations, summed in float32, and only the finished sum is
multiplied by the scale of its row and rounded once to the activation's dtype.
This is the most accurate order, since the scaled weight is never rounded. It
deviates from the vendor's code and stock SGLang, which round ``w8 * scale`` to
the compute dtype first (about one bf16 ulp per weight).

Source of the format: the released checkpoint ``ideogram-ai/ideogram-4-fp8``.
The Triton kernel lives in ``fp8_gemm_triton.py`` and is imported at its first
use on a GPU, so that this module needs nothing but torch.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

FP8_DTYPE = torch.float8_e4m3fn
FP8_MAX = 448.0  # largest finite e4m3fn value
MIN_SCALE = 1e-8  # vendor's floor: an all-zero row keeps a usable scale
# First CUDA capability with FP8 units (Ada): conversion of e4m3, FP8 products.
FP8_CAPABILITY = (8, 9)
# First one that multiplies bfloat16 (Ampere); the kernel converts to it by itself.
BFLOAT16_CAPABILITY = (8, 0)

# e4m3 bits moved into a float16 keep their meaning up to the exponent bias,
# which is 7 in e4m3 and 15 in float16.
_E4M3_PER_HALF = 2.0 ** (15 - 7)


def is_fp8(tensor: Tensor) -> bool:
    """Whether ``tensor`` holds float8_e4m3fn values, the one FP8 format used."""
    return tensor.dtype == FP8_DTYPE


def fp8_linear(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Weight-only FP8 linear by the best means the device of ``x`` offers.

    CUDA with capability 8.9 or newer, or 8.0 and bfloat16: the Triton kernel. Other
    CUDA, and bfloat16 on
    a CPU with units for it: the weight is dequantised for the call, which rounds once
    more. Other CPUs: ``fp8_linear_reference``.

    Args:
        x: [..., K] float16, bfloat16 or float32; any strides.
        weight: [N, K] float8_e4m3fn; any strides.
        weight_scale: [N] float32.
        bias: [N] floating point, or None.

    Returns:
        [..., N] in the dtype of ``x``.

    Raises:
        ValueError: Shapes or dtypes do not fit together.
    """
    _check_operands(x, weight, weight_scale, bias)
    if x.is_cuda:
        if has_fp8_kernel(x.device, x.dtype):
            from sglang_ext_gen.kernels.fp8_gemm_triton import fp8_linear_triton

            return fp8_linear_triton(x, weight, weight_scale, bias)
    elif x.dtype != torch.bfloat16 or not has_bfloat16_units():
        return fp8_linear_reference(x, weight, weight_scale, bias)
    bias = None if bias is None else bias.to(x.dtype)
    return F.linear(x, dequantize_rowwise(weight, weight_scale, x.dtype), bias)


def fp8_linear_reference(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None
) -> Tensor:
    """``fp8_linear`` in plain torch, on any device; defines the numerics.

    Computes in float32 (float64 for float64 ``x``) whatever the activation's
    dtype. Half-precision GEMMs would be slower on CPUs without bf16 units, and
    unscaled sums (weights up to 448) can overflow float16.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    y = F.linear(x.to(dtype), _half_from_e4m3(weight).to(dtype))
    # The scale multiplies the [M, N] output, not the [N, K] weight.
    scale = weight_scale.to(dtype)
    if bias is None:
        y = y.mul_(scale * _E4M3_PER_HALF)
    else:
        y = torch.addcmul(bias.to(dtype), y, scale, value=_E4M3_PER_HALF)
    return y.to(x.dtype)


def quantize_rowwise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise a matrix to FP8 by the vendor's rule, ``scale = max|row| / 448``.

    Quantise before slicing columns for tensor parallelism: a scale covers its
    whole row.

    Args:
        weight: [N, K] floating point.

    Returns:
        ``(w8, scale)``: [N, K] float8_e4m3fn and [N] float32, both contiguous.

    Raises:
        ValueError: ``weight`` is not a matrix of finite numbers.
    """
    if weight.ndim != 2:
        raise ValueError(f"weight must be [out, in], got shape {tuple(weight.shape)}")
    weight = weight.float()
    row_max = weight.abs().amax(dim=1)
    if not row_max.isfinite().all():
        row = int((~row_max.isfinite()).nonzero()[0])
        raise ValueError(f"weight row {row} has infinite or NaN values")
    scale = (row_max / FP8_MAX).clamp_(min=MIN_SCALE)
    # max|row| / scale may round to just above 448; torch's cast does not saturate.
    scaled = (weight / scale[:, None]).clamp_(-FP8_MAX, FP8_MAX)
    return scaled.to(FP8_DTYPE).contiguous(), scale


def dequantize_rowwise(
    weight: Tensor, weight_scale: Tensor, dtype: torch.dtype
) -> Tensor:
    """``w8 * scale[:, None]`` computed in float32 and rounded once to ``dtype``."""
    values = _half_from_e4m3(weight).float()
    return values.mul_((weight_scale * _E4M3_PER_HALF)[:, None]).to(dtype)


@cache
def has_fp8_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the Triton kernel runs on ``device`` with activations of ``dtype``."""
    if device.type != "cuda":
        return False
    is_bfloat16 = dtype == torch.bfloat16
    needed = BFLOAT16_CAPABILITY if is_bfloat16 else FP8_CAPABILITY
    return torch.cuda.get_device_capability(device) >= needed


@cache
def has_bfloat16_units() -> bool:
    """Whether this CPU multiplies bfloat16 matrices faster than float32 ones."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def _half_from_e4m3(weight: Tensor) -> Tensor:
    """``weight / 256`` as float16, exact for every finite value.

    Moves sign, exponent and mantissa to their float16 places. torch converts
    e4m3 one scalar at a time on CPU: this is 10 to 18 times faster (measured on
    one AVX2 core, 768 x 768: 0.15 ms against 2.7 ms). NaN codes, which no
    quantiser here writes, come out as finite numbers.
    """
    bits = weight.view(torch.int8).to(torch.int16)
    bits <<= 7
    bits &= -0x4001  # clears the copy of the sign that widening left in bit 14
    return bits.view(torch.float16)


def _check_operands(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None
) -> None:
    """Refuse operands that do not fit, before a kernel reads out of bounds."""
    if weight.ndim != 2 or not is_fp8(weight):
        raise ValueError(
            f"weight must be [out, in] {FP8_DTYPE}, got {tuple(weight.shape)} "
            f"{weight.dtype}"
        )
    out_features, in_features = weight.shape
    if x.ndim == 0 or x.shape[-1] != in_features:
        raise ValueError(
            f"x must end in the weight's {in_features} input features, got shape "
            f"{tuple(x.shape)}"
        )
    if weight_scale.shape != (out_features,) or weight_scale.dtype != torch.float32:
        raise ValueError(
            f"weight_scale must be [{out_features}] torch.float32 (one number per "
            f"weight row), got {tuple(weight_scale.shape)} {weight_scale.dtype}"
        )
    if bias is not None and bias.shape != (out_features,):
        raise ValueError(f"bias must be [{out_features}], got {tuple(bias.shape)}")
