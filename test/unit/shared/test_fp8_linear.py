# SPDX-License-Identifier: Apache-2.0
"""Weight-only FP8 linears: sharding, modes, casts. The arithmetic is test_fp8_gemm."""

import logging
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from sglang_ext_gen.errors import ConfigError
from sglang_ext_gen.kernels.fp8_gemm import FP8_DTYPE, is_fp8, quantize_rowwise
from sglang_ext_gen.layers import fp8_linear as layers
from sglang_ext_gen.layers.fp8_linear import (
    FP8_MODES,
    ColumnParallelFP8Linear,
    FP8Linear,
    FP8Report,
    MergedColumnParallelFP8Linear,
    RowParallelFP8Linear,
    check_fp8_mode,
    finalize_fp8_linears,
    tensor_parallel,
)

IN, OUT, RANKS = 24, 20, 2
QKV = (16, 8, 8)  # kv heads differ from heads


def snr_db(got: Tensor, expected: Tensor) -> float:
    """Signal-to-noise ratio of ``got`` in dB; infinite where they are equal."""
    noise = (got.double() - expected.double()).pow(2).mean()
    return float(10 * torch.log10(expected.double().pow(2).mean() / noise))


def filled(linear: FP8Linear, seed: int = 0) -> FP8Linear:
    """Write random values, as a checkpoint would hold them, into a whole linear."""
    generator = torch.Generator().manual_seed(seed)
    out_features, in_features = linear.weight.shape
    weight = torch.randn(out_features, in_features, generator=generator)
    weight *= torch.logspace(-1, 1, out_features)[:, None]
    if linear.weight_scale is None:
        linear.weight.data.copy_(weight)
    else:
        w8, scale = quantize_rowwise(weight)
        linear.weight.data.copy_(w8)
        linear.weight_scale.data.copy_(scale)
    if linear.bias is not None:
        linear.bias.data.copy_(torch.randn(out_features, generator=generator))
    return linear


def fill_shard(shard: FP8Linear, whole: FP8Linear, rank: int) -> None:
    """Cut a rank's parameters out of ``whole`` by the marks that the loader reads."""
    for name, param in shard.named_parameters():
        full = whole.get_parameter(name).data
        marks = vars(param)
        if marks:
            dim, sections = marks["tp_dim"], marks["tp_sections"]
            parts = full.split(sections, dim)
            full = torch.cat([part.chunk(RANKS, dim)[rank] for part in parts], dim)
        param.data.copy_(full)


def input_rows(count: int = 5, features: int = IN) -> Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(7))


# --- parameters ---


def test_parameters_of_an_fp8_linear():
    linear = FP8Linear(IN, OUT, dtype=torch.bfloat16)
    assert linear.weight.shape == (OUT, IN)
    assert is_fp8(linear.weight)
    assert linear.weight_scale is not None
    assert linear.weight_scale.shape == (OUT,)
    assert linear.weight_scale.dtype == torch.float32
    assert linear.bias is not None
    assert linear.bias.dtype == torch.bfloat16
    assert list(linear.state_dict()) == ["weight", "weight_scale", "bias"]
    assert not any(param.requires_grad for param in linear.parameters())
    assert not any(vars(param) for param in linear.parameters())


def test_parameters_of_a_plain_linear():
    linear = FP8Linear(IN, OUT, bias=False, is_quantized=False, dtype=torch.bfloat16)
    assert linear.weight.dtype == torch.bfloat16
    assert list(linear.state_dict()) == ["weight"]
    assert not linear.is_quantized


@pytest.mark.parametrize("is_quantized", [True, False], ids=["fp8", "plain"])
def test_marks_for_the_loader(is_quantized):
    def marks(linear: FP8Linear) -> dict[str, dict[str, object]]:
        return {name: vars(param) for name, param in linear.named_parameters()}

    options = {"is_quantized": is_quantized, "tp_size": RANKS}
    names = ["weight", "weight_scale", "bias"] if is_quantized else ["weight", "bias"]

    column = ColumnParallelFP8Linear(IN, OUT, **options)
    split = {"tp_dim": 0, "tp_sections": (OUT,)}
    assert marks(column) == dict.fromkeys(names, split)
    assert column.weight.shape == (OUT // RANKS, IN)

    merged = MergedColumnParallelFP8Linear(IN, QKV, **options)
    split = {"tp_dim": 0, "tp_sections": QKV}
    assert marks(merged) == dict.fromkeys(names, split)
    assert merged.weight.shape == (sum(QKV) // RANKS, IN)
    assert merged.local_output_sizes == (8, 4, 4)

    row = RowParallelFP8Linear(IN, OUT, **options)
    split = {"tp_dim": 1, "tp_sections": (IN,)}
    assert marks(row) == {name: {} for name in names} | {"weight": split}
    assert row.weight.shape == (OUT, IN // RANKS)
    assert row.bias is not None
    assert row.bias.shape == (OUT,)

    assert (column.in_features, column.out_features) == (IN, OUT)
    assert (merged.in_features, merged.out_features) == (IN, sum(QKV))
    assert (row.in_features, row.out_features) == (IN, OUT)


# --- tensor parallelism ---


def test_without_a_process_group_there_is_one_rank(monkeypatch):
    name = "sglang.multimodal_gen.runtime.distributed.parallel_state"
    monkeypatch.delitem(sys.modules, name, raising=False)
    assert tensor_parallel() == (0, 1)
    state = SimpleNamespace(model_parallel_is_initialized=lambda: False)
    monkeypatch.setitem(sys.modules, name, state)
    assert tensor_parallel() == (0, 1)


def test_ranks_come_from_sglangs_group(monkeypatch):
    state = SimpleNamespace(
        model_parallel_is_initialized=lambda: True,
        get_tp_rank=lambda: 1,
        get_tp_world_size=lambda: RANKS,
    )
    name = "sglang.multimodal_gen.runtime.distributed.parallel_state"
    monkeypatch.setitem(sys.modules, name, state)
    assert tensor_parallel() == (1, RANKS)
    assert ColumnParallelFP8Linear(IN, OUT).weight.shape == (OUT // RANKS, IN)
    assert RowParallelFP8Linear(IN, OUT).weight.shape == (OUT, IN // RANKS)
    # The replicated linear is whole on every rank.
    assert FP8Linear(IN, OUT).weight.shape == (OUT, IN)
    assert ColumnParallelFP8Linear(IN, OUT, tp_size=1).weight.shape == (OUT, IN)


@pytest.mark.parametrize("is_quantized", [True, False], ids=["fp8", "plain"])
def test_column_shards_side_by_side_equal_the_whole(is_quantized):
    whole = filled(FP8Linear(IN, OUT, is_quantized=is_quantized))
    x, parts = input_rows(), []
    for rank in range(RANKS):
        shard = ColumnParallelFP8Linear(
            IN, OUT, is_quantized=is_quantized, tp_size=RANKS
        )
        fill_shard(shard, whole, rank)
        parts.append(shard(x))
    torch.testing.assert_close(torch.cat(parts, -1), whole(x))


@pytest.mark.parametrize("is_quantized", [True, False], ids=["fp8", "plain"])
def test_merged_shards_hold_a_share_of_each_matrix(is_quantized):
    whole = filled(FP8Linear(IN, sum(QKV), is_quantized=is_quantized))
    x, parts = input_rows(), []
    for rank in range(RANKS):
        shard = MergedColumnParallelFP8Linear(
            IN, QKV, is_quantized=is_quantized, tp_size=RANKS
        )
        fill_shard(shard, whole, rank)
        parts.append(shard(x).split(shard.local_output_sizes, -1))
    merged = [torch.cat(shares, -1) for shares in zip(*parts, strict=True)]
    torch.testing.assert_close(torch.cat(merged, -1), whole(x))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("is_quantized", [True, False], ids=["fp8", "plain"])
def test_row_shards_sum_to_the_whole(monkeypatch, is_quantized, bias):
    whole = filled(FP8Linear(IN, OUT, bias, is_quantized=is_quantized))
    x, partials, shards = input_rows(), [], []
    inputs = x.chunk(RANKS, -1)
    # First pass: collect what each rank would reduce. Second: hand all the sum.
    monkeypatch.setattr(layers, "all_reduce", lambda t: partials.append(t) or t)
    for rank in range(RANKS):
        shard = RowParallelFP8Linear(
            IN, OUT, bias, is_quantized=is_quantized, tp_size=RANKS
        )
        fill_shard(shard, whole, rank)
        shard(inputs[rank])
        shards.append(shard)
    monkeypatch.setattr(layers, "all_reduce", lambda _: torch.stack(partials).sum(0))
    for shard, part in zip(shards, inputs, strict=True):
        torch.testing.assert_close(shard(part), whole(x), rtol=1e-5, atol=1e-5)


def test_one_rank_needs_no_group():
    x = input_rows()
    whole = filled(FP8Linear(IN, OUT))
    for linear in (
        ColumnParallelFP8Linear(IN, OUT),
        MergedColumnParallelFP8Linear(IN, (12, 8)),
        RowParallelFP8Linear(IN, OUT),
    ):
        assert torch.equal(filled(linear)(x), whole(x))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ColumnParallelFP8Linear(IN, 21, tp_size=2),
        lambda: RowParallelFP8Linear(21, OUT, tp_size=2),
        # The sum divides, the parts do not.
        lambda: MergedColumnParallelFP8Linear(IN, (21, 21), tp_size=2),
    ],
    ids=["column", "row", "merged"],
)
def test_features_that_ranks_cannot_share_are_refused(make):
    with pytest.raises(ConfigError, match="21 features cannot be divided over 2"):
        make()


# --- forward ---


@pytest.mark.parametrize(
    ("dtype", "least"),
    # 50 and not 53 in bfloat16: some CPUs round the weight, too (``fp8_linear``).
    [(torch.float32, 125), (torch.float16, 70), (torch.bfloat16, 50)],
    ids=str,
)
def test_resident_numerics(dtype, least):
    linear = filled(FP8Linear(256, 128, dtype=dtype))
    assert linear.weight_scale is not None
    assert linear.bias is not None
    x = input_rows(33, 256).to(dtype).view(3, 11, 256)
    weight = linear.weight.double() * linear.weight_scale.double()[:, None]
    expected = x.double() @ weight.T + linear.bias.double()
    got = linear(x)
    assert got.dtype == dtype
    assert snr_db(got, expected) > least


@pytest.mark.parametrize("is_quantized", [True, False], ids=["fp8", "plain"])
def test_a_batch_equals_its_samples(is_quantized):
    linear = filled(FP8Linear(IN, OUT, is_quantized=is_quantized))
    x = input_rows(12).view(4, 3, IN)
    singles = torch.cat([linear(x[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(linear(x), singles)


def test_plain_linear_is_an_ordinary_linear():
    linear = filled(FP8Linear(IN, OUT, is_quantized=False))
    expected = nn.functional.linear(input_rows(), linear.weight, linear.bias)
    assert torch.equal(linear(input_rows()), expected)


# --- modes ---


class Model(nn.Module):
    """Two FP8 linears, a plain one, and a module that is none of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.up = filled(FP8Linear(64, 48, dtype=torch.bfloat16))
        self.down = filled(RowParallelFP8Linear(48, 32, bias=False), seed=1)
        self.out = filled(FP8Linear(32, 8, is_quantized=False), seed=2).bfloat16()
        self.norm = nn.LayerNorm(8)


def test_resident_keeps_fp8_and_reports_bytes(caplog):
    module = Model()
    with caplog.at_level(logging.INFO, layers.logger.name):
        report = finalize_fp8_linears(module, "resident", torch.bfloat16)
    fp8, plain = 64 * 48 + 48 * 32, 32 * 8
    assert report == FP8Report(
        mode="resident",
        num_fp8=2,
        num_plain=1,
        bytes_resident=fp8 + 4 * (48 + 32) + 2 * (plain + 48 + 8),
        bytes_bf16=2 * (fp8 + plain + 48 + 8),
    )
    assert report.bytes_resident < 0.6 * report.bytes_bf16
    assert is_fp8(module.up.weight)
    assert [record.getMessage() for record in caplog.records] == [
        "Model: 2 FP8 linears, mode resident, and 1 plain ones: 0.0 MiB in "
        "memory, 0.0 MiB if all were bf16"
    ]


@pytest.mark.parametrize(
    ("dtype", "least"),
    [(torch.float32, 125), (torch.float16, 65), (torch.bfloat16, 48)],
    ids=str,
)
def test_expanded_equals_resident(dtype, least):
    resident, expanded = Model().up, Model().up
    report = finalize_fp8_linears(expanded, "expanded", dtype)
    assert {param.dtype for param in expanded.parameters()} == {dtype}
    assert expanded.weight_scale is None
    assert not expanded.is_quantized
    assert list(expanded.state_dict()) == ["weight", "bias"]
    assert report.num_fp8 == 1
    assert report.bytes_resident == dtype.itemsize * (64 * 48 + 48)
    x = input_rows(9, 64).to(dtype)
    assert expanded(x).dtype == dtype
    # The weight is rounded to ``dtype`` here, and the output in both.
    assert snr_db(expanded(x), resident(x)) > least


def test_plain_modules_finalize_in_the_modes_that_can_serve_them():
    module = filled(FP8Linear(8, 8, is_quantized=False))
    before = module.weight.clone()
    for mode in ("resident", "expanded"):
        report = finalize_fp8_linears(module, mode, torch.float32)
        assert (report.num_fp8, report.num_plain) == (0, 1)
        assert torch.equal(module.weight, before)


@pytest.mark.parametrize(
    ("mode", "dtype", "message"),
    [
        ("int8", torch.bfloat16, r"'int8' is unknown; use one of \('resident', 'exp"),
        ("resident", torch.float64, r"cannot compute in torch\.float64; use one of"),
        ("w8a8", torch.float32, "compute dtype is float32; use mode 'resident' or"),
        ("w8a8", torch.bfloat16, "no CUDA device is visible; use mode 'resident' or"),
    ],
)
def test_modes_that_cannot_work_are_refused_before_any_change(
    monkeypatch, mode, dtype, message
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    module = Model()
    with pytest.raises(ConfigError, match=message):
        check_fp8_mode(mode, dtype)
    with pytest.raises(ConfigError, match=message):
        finalize_fp8_linears(module, mode, dtype)
    assert is_fp8(module.up.weight)


@pytest.fixture
def cuda_of(monkeypatch):
    """Pretend that a CUDA device of a given capability is there."""

    def pretend(capability: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")

    return pretend


def test_w8a8_needs_fp8_tensor_cores(cuda_of):
    cuda_of((8, 0))
    with pytest.raises(ConfigError, match=r"8\.9 or newer\); Some GPU has \(8, 0\)"):
        check_fp8_mode("w8a8", torch.bfloat16)
    cuda_of((9, 0))
    for mode in FP8_MODES:
        check_fp8_mode(mode, torch.bfloat16)


def test_w8a8_needs_fp8_weights(cuda_of):
    cuda_of((9, 0))
    module = FP8Linear(8, 8, is_quantized=False)
    with pytest.raises(ConfigError, match="FP8Linear has no FP8 weights"):
        finalize_fp8_linears(module, "w8a8", torch.bfloat16)


def test_w8a8_calls_sglangs_gemm(monkeypatch, cuda_of):
    """The operands SGLang's op takes: [K, N] weight, [N] scale, bias of x's dtype."""
    cuda_of((9, 0))

    def apply_fp8_linear(x, weight, weight_scale, bias):
        assert x.is_contiguous()
        assert weight.shape == (IN, OUT)
        assert weight.stride() == (1, IN)
        assert weight_scale.shape == (OUT,)
        return x @ (weight.float() * weight_scale).to(x.dtype) + bias

    name = "sglang.srt.layers.quantization.fp8_utils"
    stand_in = SimpleNamespace(apply_fp8_linear=apply_fp8_linear)
    monkeypatch.setitem(sys.modules, name, stand_in)
    linear = filled(FP8Linear(IN, OUT, dtype=torch.float32))
    x = input_rows(6).bfloat16().view(2, 3, IN).transpose(0, 1)
    expected = linear(x)
    finalize_fp8_linears(linear, "w8a8", torch.bfloat16)
    assert is_fp8(linear.weight)
    assert linear.bias is not None
    assert linear.bias.dtype == torch.bfloat16
    assert snr_db(linear(x), expected) > 45


@pytest.mark.gpu
def test_w8a8_on_the_gpu():
    resident, w8a8 = (filled(FP8Linear(256, 128)).cuda() for _ in range(2))
    finalize_fp8_linears(w8a8, "w8a8", torch.bfloat16)
    x = input_rows(64, 256).bfloat16().cuda()
    # Activations keep 3 bits of mantissa: about 31 dB.
    assert snr_db(w8a8(x), resident(x)) > 27


# --- casts ---

CASTS = {
    "to": lambda module: module.to(torch.bfloat16),
    "to_device_and_dtype": lambda module: module.to("cpu", torch.bfloat16),
    "to_tensor": lambda module: module.to(torch.zeros(1, dtype=torch.bfloat16)),
    "bfloat16": lambda module: module.bfloat16(),
    "type": lambda module: module.type(torch.bfloat16),
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
def test_a_cast_of_the_model_leaves_fp8_and_scales_alone(cast):
    linear = filled(FP8Linear(IN, OUT, dtype=torch.float32))
    bits = {n: v.view(torch.uint8).clone() for n, v in linear.state_dict().items()}
    cast(nn.Sequential(linear))
    after = linear.state_dict()
    assert after["weight"].dtype == FP8_DTYPE
    assert after["weight_scale"].dtype == torch.float32
    assert after["bias"].dtype == torch.bfloat16
    for name in ("weight", "weight_scale"):
        assert torch.equal(after[name].view(torch.uint8), bits[name])


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
def test_a_cast_reaches_weights_that_are_not_fp8(cast):
    plain = filled(FP8Linear(IN, OUT, is_quantized=False, dtype=torch.float32))
    expanded = filled(FP8Linear(IN, OUT))
    finalize_fp8_linears(expanded, "expanded", torch.float32)
    for linear in (plain, expanded):
        cast(linear)
        assert {p.dtype for p in linear.parameters()} == {torch.bfloat16}


def test_moves_take_everything_along():
    linear = filled(ColumnParallelFP8Linear(IN, OUT, tp_size=2))
    linear.to("meta", torch.bfloat16)
    assert {param.device.type for param in linear.parameters()} == {"meta"}
    assert is_fp8(linear.weight)
    linear.to_empty(device="cpu")
    assert {param.device.type for param in linear.parameters()} == {"cpu"}
    assert [p.dtype for p in linear.parameters()] == [
        FP8_DTYPE,
        torch.float32,
        torch.bfloat16,
    ]


def test_marks_survive_a_cast():
    linear = ColumnParallelFP8Linear(IN, OUT, tp_size=2).to(torch.bfloat16)
    assert all(vars(param)["tp_dim"] == 0 for param in linear.parameters())
