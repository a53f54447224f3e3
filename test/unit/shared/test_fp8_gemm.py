# SPDX-License-Identifier: Apache-2.0
"""The FP8 GEMM against float64, by signal-to-noise ratio.

Without a GPU the Triton kernel is run by Triton's interpreter and is compiled for
Hopper; with one it is also run as it is used.
"""

import importlib.util
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from sglang_ext_gen.kernels import fp8_gemm
from sglang_ext_gen.kernels.fp8_gemm import (
    FP8_DTYPE,
    FP8_MAX,
    MIN_SCALE,
    dequantize_rowwise,
    fp8_linear,
    fp8_linear_reference,
    is_fp8,
    quantize_rowwise,
)

# Least signal-to-noise ratio in dB by dtype. Rounding the result once to 8 and 11 bits
# of mantissa gives about 56 and 74 dB; summing in float32 gives 133 dB and more. The
# interpreter cuts bfloat16 off instead of rounding it, which costs 6 dB.
MIN_SNR = {torch.bfloat16: 53.0, torch.float16: 70.0, torch.float32: 125.0}
MIN_SNR_INTERPRETED = MIN_SNR | {torch.bfloat16: 45.0}

# (M, N, K): none a multiple of a block size, some smaller than one.
RAGGED = [(1, 64, 64), (5, 33, 70), (37, 100, 130), (64, 17, 257)]


def snr_db(got: Tensor, expected: Tensor) -> float:
    """Signal-to-noise ratio of ``got`` in dB; infinite where they are equal."""
    noise = (got.double() - expected.double()).pow(2).mean()
    return float(10 * torch.log10(expected.double().pow(2).mean() / noise))


def operands(
    shape: tuple[int, int, int], dtype: torch.dtype, *, bias: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """x, FP8 weight, scale and bias; the weight's rows differ in size by up to 100."""
    m, n, k = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(m, k, generator=generator).to(dtype)
    rows = torch.logspace(-1, 1, n)[torch.randperm(n, generator=generator)]
    w8, scale = quantize_rowwise(torch.randn(n, k, generator=generator) * rows[:, None])
    b = torch.randn(n, generator=generator).to(dtype) if bias else None
    return x, w8, scale, b


def exact(x: Tensor, w8: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """The product in float64, from torch's own conversion of FP8."""
    y = x.double() @ (w8.double() * scale.double()[:, None]).T
    return y if bias is None else y + bias.double()


# --- reference ---


@pytest.mark.parametrize("dtype", MIN_SNR, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("shape", RAGGED, ids=str)
def test_reference_is_as_exact_as_its_dtype(shape, bias, dtype):
    args = operands(shape, dtype, bias=bias)
    got = fp8_linear_reference(*args)
    assert got.dtype == dtype
    assert snr_db(got, exact(*args)) > MIN_SNR[dtype]


@pytest.mark.parametrize("has_units", [True, False])
@pytest.mark.parametrize("shape", RAGGED, ids=str)
def test_bfloat16_on_a_cpu_with_and_without_units_for_it(monkeypatch, shape, has_units):
    monkeypatch.setattr(fp8_gemm, "has_bfloat16_units", lambda: has_units)
    args = operands(shape, torch.bfloat16)
    # The units take a weight that was rounded to bfloat16, too.
    least = MIN_SNR[torch.bfloat16] - (3 if has_units else 0)
    assert snr_db(fp8_linear(*args), exact(*args)) > least


def test_reference_in_float64():
    args = operands((5, 33, 70), torch.float64)
    torch.testing.assert_close(fp8_linear_reference(*args), exact(*args))


def test_unscaled_sums_beyond_float16_do_not_overflow():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(8, 4096, generator=generator).half()
    w8, scale = quantize_rowwise(torch.rand(16, 4096, generator=generator))
    assert (x.float() @ w8.float().T).min() > torch.finfo(torch.float16).max
    got = fp8_linear(x, w8, scale)
    assert snr_db(got, exact(x, w8, scale, None)) > MIN_SNR[torch.float16]


def test_each_fp8_value_is_converted_exactly():
    codes = torch.arange(256, dtype=torch.uint8)
    values = codes[(codes & 0x7F) != 0x7F].view(FP8_DTYPE)  # all but the two NaNs
    identity = torch.eye(1).to(FP8_DTYPE)
    one = torch.ones(1)
    assert torch.equal(
        fp8_linear(values.float()[:, None], identity, one)[:, 0], values.float()
    )
    weight = values[:, None].contiguous()
    ones = torch.ones(len(values))
    assert torch.equal(fp8_linear(torch.eye(1), weight, ones)[0], values.float())
    for dtype in MIN_SNR:
        assert torch.equal(
            dequantize_rowwise(weight, ones, dtype)[:, 0], values.to(dtype)
        )


@pytest.mark.parametrize("lead", [(), (1,), (3,), (2, 3), (2, 0, 3), (2, 1, 3, 2)])
def test_leading_dims(lead):
    _, w8, scale, bias = operands((1, 33, 70), torch.float32)
    x = torch.randn(*lead, 70, generator=torch.Generator().manual_seed(1))
    got = fp8_linear(x, w8, scale, bias)
    assert got.shape == (*lead, 33)
    expected = exact(x, w8, scale, bias)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-4)


def test_strides():
    x, w8, scale, bias = operands((8, 33, 70), torch.float32)
    expected = fp8_linear(x, w8, scale, bias)
    spread = torch.zeros(70, 16).T[::2]
    spread.copy_(x)
    column_major = w8.view(torch.uint8).T.contiguous().T.view(FP8_DTYPE)
    assert not spread.is_contiguous()
    assert not column_major.is_contiguous()
    torch.testing.assert_close(fp8_linear(spread, column_major, scale, bias), expected)


@pytest.mark.parametrize("dtype", MIN_SNR, ids=str)
def test_a_batch_equals_its_rows(dtype):
    x, w8, scale, bias = operands((6, 33, 70), dtype)
    batch = fp8_linear(x.view(3, 2, 70), w8, scale, bias)
    singles = torch.stack(
        [fp8_linear(row, w8, scale, bias) for row in x.view(3, 2, 70)]
    )
    assert snr_db(singles, batch) > MIN_SNR[dtype]


# --- quantiser ---


def test_quantizer_follows_the_vendor_rule():
    weight = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [1e-9, 0.0, -3e-9]])
    w8, scale = quantize_rowwise(weight)
    assert is_fp8(w8)
    assert scale.dtype == torch.float32
    torch.testing.assert_close(scale, torch.tensor([2.0 / 448, MIN_SCALE, MIN_SCALE]))
    assert w8.float()[0].tolist() == [224.0, -448.0, 112.0]
    assert w8.float()[1].tolist() == [0.0, 0.0, 0.0]


def test_quantizer_round_trip():
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    w8, scale = quantize_rowwise(weight)
    # 3 bits of mantissa: measured 31.5 dB for normal values.
    assert snr_db(dequantize_rowwise(w8, scale, torch.float32), weight) > 30
    again, same_scale = quantize_rowwise(dequantize_rowwise(w8, scale, torch.float32))
    assert torch.equal(again.view(torch.uint8), w8.view(torch.uint8))
    torch.testing.assert_close(same_scale, scale)


def test_quantizer_never_writes_nan():
    # Rounding can lift max|row| / scale above 448, which e4m3 cannot hold.
    weight = torch.rand(4096, 4, generator=torch.Generator().manual_seed(0)) * 1e3
    w8, _ = quantize_rowwise(weight.bfloat16())
    assert w8.float().abs().amax(dim=1).eq(FP8_MAX).all()


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(3), r"must be \[out, in\], got shape \(3,\)"),
        (torch.tensor([[1.0], [float("nan")]]), "row 1 has infinite or NaN"),
        (torch.tensor([[float("inf")], [1.0]]), "row 0 has infinite or NaN"),
    ],
)
def test_quantizer_refuses(weight, message):
    with pytest.raises(ValueError, match=message):
        quantize_rowwise(weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(2, 5)}, r"x must end in the weight's 4 input features"),
        ({"x": torch.tensor(1.0)}, r"got shape \(\)"),
        ({"weight": torch.zeros(3, 4)}, r"weight must be .*float8.*got .*float32"),
        ({"weight": torch.zeros(3).to(FP8_DTYPE)}, r"weight must be \[out, in\]"),
        ({"weight_scale": torch.ones(4)}, r"weight_scale must be \[3\].*\(4,\)"),
        ({"weight_scale": torch.ones(3, 1)}, r"one number per weight row"),
        ({"weight_scale": torch.ones(3).double()}, r"torch.float32 .*float64"),
        ({"bias": torch.ones(4)}, r"bias must be \[3\], got \(4,\)"),
    ],
)
def test_operands_that_do_not_fit_are_refused(changes, message):
    good: dict[str, Any] = {
        "x": torch.zeros(2, 4),
        "weight": torch.zeros(3, 4).to(FP8_DTYPE),
        "weight_scale": torch.ones(3),
        "bias": torch.zeros(3),
    }
    assert fp8_linear(**good).shape == (2, 3)
    with pytest.raises(ValueError, match=message):
        fp8_linear(**(good | changes))


# --- kernel ---


@pytest.fixture(scope="module")
def interpreted():
    """The kernel's module, made while Triton interprets (``TRITON_INTERPRET=1``).

    A second copy of it, and the knob instead of the variable: the variable would
    count only before Triton's first import, and then for all tests.
    """
    triton = pytest.importorskip("triton", reason="Triton runs on Linux only")
    source = importlib.util.find_spec("sglang_ext_gen.kernels.fp8_gemm_triton")
    assert source is not None
    assert source.origin is not None
    spec = importlib.util.spec_from_file_location("interpreted", source.origin)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = True
        spec.loader.exec_module(module)
    return module


def run_interpreted(module: ModuleType, tile: tuple[int, ...], *args: Any) -> Tensor:
    # The interpreter cannot multiply bfloat16.
    return module.fp8_linear_triton(
        *args, tile=module.Tile(*tile), dot_dtype=torch.float32
    )


@pytest.mark.parametrize("dtype", MIN_SNR, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("shape", RAGGED, ids=str)
def test_kernel_interpreted(interpreted, shape, bias, dtype):
    args = operands(shape, dtype, bias=bias)
    got = run_interpreted(interpreted, (16, 32, 64), *args)
    assert got.shape == shape[:2]
    assert got.dtype == dtype
    assert snr_db(got, exact(*args)) > MIN_SNR_INTERPRETED[dtype]


@pytest.mark.parametrize("tile", [(16, 16, 16), (32, 16, 128), (64, 128, 32)], ids=str)
def test_kernel_tiles(interpreted, tile):
    # More row tiles than one group has, the last group incomplete.
    args = operands((16 * 11 + 3, 40, 50), torch.float32)
    got = run_interpreted(interpreted, tile, *args)
    assert snr_db(got, exact(*args)) > MIN_SNR[torch.float32]


def test_kernel_strides_and_leading_dims(interpreted):
    x, w8, scale, bias = operands((12, 33, 70), torch.float32)
    spread = torch.zeros(70, 24).T[::2]
    spread.copy_(x)
    column_major = w8.view(torch.uint8).T.contiguous().T.view(FP8_DTYPE)
    got = run_interpreted(interpreted, (16, 32, 32), spread, column_major, scale, bias)
    assert snr_db(got, exact(x, w8, scale, bias)) > MIN_SNR[torch.float32]
    for lead in [(2, 6), (3, 2, 2)]:
        batch = run_interpreted(
            interpreted, (16, 32, 32), x.view(*lead, 70), w8, scale, bias
        )
        assert torch.equal(batch, got.view(*lead, 33))
    none = run_interpreted(interpreted, (16, 32, 32), x[:0], w8, scale, bias)
    assert none.shape == (0, 33)


def test_kernel_uses_float16_products_as_they_are(interpreted):
    args = operands((5, 33, 70), torch.float16)
    got = interpreted.fp8_linear_triton(*args, tile=interpreted.Tile(16, 32, 32))
    assert snr_db(got, exact(*args)) > MIN_SNR[torch.float16]


def test_kernel_refuses_other_dtypes(interpreted):
    with pytest.raises(ValueError, match=r"x must be one of torch\.float16"):
        interpreted.fp8_linear_triton(*operands((1, 8, 8), torch.float64))


def test_each_number_of_rows_has_a_tuner():
    kernel = pytest.importorskip("sglang_ext_gen.kernels.fp8_gemm_triton")
    limits = list(kernel.TILES)
    assert limits[-1] is None
    assert limits[:-1] == sorted(limits[:-1])
    for tiles in kernel.TILES.values():
        assert len(tiles) == len(set(tiles)) > 1


@pytest.mark.parametrize(
    ("capability", "dtype", "uses_kernel"),
    [
        ((7, 5), torch.bfloat16, False),
        ((8, 0), torch.bfloat16, True),
        ((8, 0), torch.float16, False),
        ((8, 9), torch.float16, True),
        ((9, 0), torch.bfloat16, True),
    ],
)
def test_which_gpus_the_kernel_serves(monkeypatch, capability, dtype, uses_kernel):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    fp8_gemm.has_fp8_kernel.cache_clear()
    assert fp8_gemm.has_fp8_kernel(torch.device("cuda", 0), dtype) is uses_kernel
    assert not fp8_gemm.has_fp8_kernel(torch.device("cpu"), dtype)
    fp8_gemm.has_fp8_kernel.cache_clear()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", MIN_SNR, ids=str)
@pytest.mark.parametrize(
    "shape", [*RAGGED, (1, 4608, 4608), (200, 512, 1024), (4096, 512, 1024)]
)
def test_kernel_on_the_gpu(shape, dtype):
    x, w8, scale, bias = operands(shape, dtype)
    assert bias is not None
    got = fp8_linear(x.cuda(), w8.cuda(), scale.cuda(), bias.cuda())
    assert snr_db(got.cpu(), exact(x, w8, scale, bias)) > MIN_SNR[dtype]
