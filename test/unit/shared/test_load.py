# SPDX-License-Identifier: Apache-2.0
"""Strict loading into small modules: what arrives, and what is refused."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sglang_ext_gen.checkpoint.load import LoadReport, load_weights
from sglang_ext_gen.checkpoint.rules import KEEP_NAME, Merge, Rename, Rule, Skip, Split
from sglang_ext_gen.errors import CheckpointError, ConfigError
from sglang_ext_gen.kernels.fp8_gemm import quantize_rowwise

FP8 = torch.float8_e4m3fn


class Linear(nn.Module):
    """A quantised linear, optionally split over ``tp_size`` ranks."""

    def __init__(
        self,
        sections: Sequence[int],
        columns: int,
        *,
        tp_size: int = 1,
        tp_dim: int | None = None,
    ) -> None:
        super().__init__()
        shape = [sum(sections), columns]
        if tp_dim is not None:
            shape[tp_dim] //= tp_size
        self.weight = nn.Parameter(torch.empty(shape, dtype=FP8), requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty(shape[0]))
        if tp_dim is not None:
            split = [self.weight] if tp_dim == 1 else [self.weight, self.weight_scale]
            for parameter in split:
                parameter.tp_dim = tp_dim  # type: ignore[attr-defined]
                parameter.tp_sections = tuple(sections) if tp_dim == 0 else (columns,)  # type: ignore[attr-defined]


class Model(nn.Module):
    """One of everything: FP8, plain, persistent and computed buffers."""

    mean: Tensor
    frequency: Tensor

    def __init__(self, **tp: int) -> None:
        super().__init__()
        self.qkv = Linear((4, 2, 2), 6, **(tp and {**tp, "tp_dim": 0}))
        self.out = Linear((6,), 8, **(tp and {**tp, "tp_dim": 1}))
        self.norm = nn.RMSNorm(6, dtype=torch.bfloat16)
        self.register_buffer("mean", torch.empty(3))
        frequency = torch.arange(4, dtype=torch.float32, device="cpu")
        self.register_buffer("frequency", frequency, persistent=False)


RULES: tuple[Rule, ...] = (
    Merge(("q.{p}", "k.{p}", "v.{p}"), "qkv.{p}"),
    Skip("visual.**", "unused"),
    KEEP_NAME,
)


def quantized(name: str, rows: int, columns: int) -> dict[str, Tensor]:
    return {
        f"{name}.weight": torch.randn(rows, columns).to(FP8),
        f"{name}.weight_scale": torch.rand(rows),
    }


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        **quantized("q", 4, 6),
        **quantized("k", 2, 6),
        **quantized("v", 2, 6),
        **quantized("out", 6, 8),
        "norm.weight": torch.randn(6).bfloat16(),
        "mean": torch.randn(3),
        "visual.blocks.0.weight": torch.randn(2).to(FP8),  # skipped: needs no scale
    }


def load(
    module: nn.Module, tensors: dict[str, Tensor], path: Path, **kwargs
) -> LoadReport:
    file = path / "m.safetensors"
    save_file(tensors, file)
    rules = kwargs.pop("rules", RULES)
    return load_weights(module, file, rules, where="part/", **kwargs)


def same(left: Tensor, right: Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(left.float(), right.float())


def merged(tensors: dict[str, Tensor], suffix: str) -> Tensor:
    return torch.cat([tensors[f"{part}.{suffix}"] for part in "qkv"])


def on_meta(**tp: int) -> Model:
    with torch.device("meta"):
        return Model(**tp)


def test_everything_arrives(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    for model in (Model(), on_meta()):
        report = load(model, tensors, tmp_path)
        assert same(model.qkv.weight, merged(tensors, "weight"))
        assert same(model.qkv.weight_scale, merged(tensors, "weight_scale"))
        assert same(model.out.weight, tensors["out.weight"])
        assert same(model.norm.weight, tensors["norm.weight"])
        assert same(model.mean, tensors["mean"])
        assert (report.tensors, report.skipped) == (10, 1)
        used = (t.nbytes for name, t in tensors.items() if name[:6] != "visual")
        assert report.nbytes == sum(used)


def test_meta_modules_are_left_without_meta(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    model = on_meta(tp_size=1)
    load(model, tensors, tmp_path, device="cpu")
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    assert vars(model.qkv.weight)["tp_sections"] == (4, 2, 2)  # attributes stay
    assert not model.qkv.weight.requires_grad
    assert model.frequency.tolist() == [0, 1, 2, 3]  # computed by the module
    assert model.state_dict().keys() == on_meta().state_dict().keys()


def test_allocated_parameters_are_filled_in_place(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    model = Model()
    before = model.qkv.weight
    load(model, tensors, tmp_path)
    assert model.qkv.weight is before


def test_loaded_values_do_not_hang_on_the_file(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    model = on_meta()
    load(model, tensors, tmp_path)
    with (tmp_path / "m.safetensors").open("r+b") as file:
        file.write(bytes(tmp_path.joinpath("m.safetensors").stat().st_size))
    assert same(model.norm.weight, tensors["norm.weight"])


def test_a_buffer_left_on_meta_is_refused(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    model = on_meta()
    model.register_buffer("frequency", torch.empty(4, device="meta"), persistent=False)
    with pytest.raises(CheckpointError, match=r"Model\.frequency was left on the meta"):
        load(model, tensors, tmp_path)


def test_floats_are_cast_to_the_parameter(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    model = Model()
    tensors["norm.weight"] = torch.randn(6)
    load(model, tensors, tmp_path)
    assert same(model.norm.weight, tensors["norm.weight"].bfloat16())


@pytest.mark.parametrize("is_meta", [False, True])
def test_tensor_parallel_slices_give_the_whole(
    tensors: dict[str, Tensor], tmp_path: Path, is_meta: bool
) -> None:
    ranks = []
    for rank in range(2):
        model = on_meta(tp_size=2) if is_meta else Model(tp_size=2)
        load(model, tensors, tmp_path, tp_rank=rank, tp_size=2)
        ranks.append(model)
    first, second = ranks
    for suffix in ("weight", "weight_scale"):
        parts = [getattr(model.qkv, suffix).split((2, 1, 1)) for model in ranks]
        # Each section is shared out by itself: rank 0 has the first half of q, k, v.
        whole = torch.cat(
            [part for section in zip(*parts, strict=True) for part in section]
        )
        assert same(whole, merged(tensors, suffix))
    columns = torch.cat([first.out.weight, second.out.weight], dim=1)
    assert same(columns, tensors["out.weight"])
    assert same(first.out.weight_scale, tensors["out.weight_scale"])  # replicated
    assert same(first.norm.weight, second.norm.weight)


def test_floating_point_weights_are_quantised_where_asked(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    released = {name: t for name, t in tensors.items() if not name.endswith("_scale")}
    for name, (rows, columns) in {"q": (4, 6), "k": (2, 6), "v": (2, 6)}.items():
        released[f"{name}.weight"] = torch.randn(rows, columns).bfloat16()
    released["out.weight"] = torch.randn(6, 8).bfloat16()
    qkv = torch.cat([released[f"{name}.weight"] for name in "qkv"])
    module = Model()
    load(module, released, tmp_path, quantize=True)
    for linear, weight in ((module.qkv, qkv), (module.out, released["out.weight"])):
        expected, scale = quantize_rowwise(weight)
        assert same(linear.weight, expected)
        assert torch.equal(linear.weight_scale, scale)
    # A rank that holds some columns has the scale of the whole row.
    part = Model(tp_size=2)
    load(part, released, tmp_path, quantize=True, tp_rank=1, tp_size=2)
    expected, scale = quantize_rowwise(released["out.weight"])
    assert same(part.out.weight, expected[:, 4:])
    assert torch.equal(part.out.weight_scale, scale)
    with pytest.raises(CheckpointError, match=r"out\.weight is torch\.bfloat16"):
        load(Model(), released, tmp_path)


def test_sections_that_the_ranks_cannot_share(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"qkv\.weight: its sections \(4, 2, 2\)"):
        load(Model(tp_size=4), tensors, tmp_path, tp_size=4)


class KeyValue(nn.Module):
    """The parts of a fused projection."""

    def __init__(self) -> None:
        super().__init__()
        self.k, self.v = nn.Linear(3, 2), nn.Linear(3, 4)


def test_split_and_transform(tmp_path: Path) -> None:
    module = KeyValue()
    stored = {"kv.weight": torch.randn(3, 6), "k.bias": torch.randn(2)}
    stored["v.old_bias"] = torch.randn(4)
    rules = (
        Split("kv.weight", ("k.weight", "v.weight")),
        Rename(
            "v.old_bias", "v.bias", lambda bias: bias.flip(0), why="stored reversed"
        ),
        KEEP_NAME,
    )
    with pytest.raises(CheckpointError, match=r"kv\.weight has shapes \(3, 6\)"):
        load(module, stored, tmp_path, rules=rules)
    stored["kv.weight"] = torch.randn(6, 3)
    load(module, stored, tmp_path, rules=rules)
    assert same(module.k.weight, stored["kv.weight"][:2])
    assert same(module.v.weight, stored["kv.weight"][2:])
    assert same(module.v.bias, stored["v.old_bias"].flip(0))


def test_shards(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    weight_map = {}
    for n, name in enumerate(tensors):
        weight_map[name] = f"m-{n % 2}.safetensors"
    for shard in set(weight_map.values()):
        names = [name for name in tensors if weight_map[name] == shard]
        save_file({name: tensors[name] for name in names}, tmp_path / shard)
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(str({"weight_map": weight_map}).replace("'", '"'), "utf-8")
    model = Model()
    load_weights(model, tmp_path / "m.safetensors", RULES, where="part/")
    assert same(model.qkv.weight, merged(tensors, "weight"))


REFUSED = [
    ("out.weight_scale", None, r"out\.weight_scale is missing \(FP8 weight without"),
    ("out.weight", None, r"out\.weight_scale has no FP8 weight"),
    ("norm.weight", None, r"nothing on disk fills norm\.weight"),
    ("mean", None, r"nothing on disk fills mean"),
    ("k.weight", None, r"k\.weight is missing \(a part of qkv\.weight\)"),
    ("more.weight", torch.zeros(2), r"more\.weight would fill more\.weight, which"),
    ("norm.weight", torch.zeros(7), r"norm\.weight has shape \(7,\), .* takes \(6,\)"),
    ("mean", torch.zeros(3, 1), r"mean has shape \(3, 1\), mean takes \(3,\)"),
    ("norm.weight", torch.zeros(6, dtype=torch.int64), r"norm\.weight is torch\.int64"),
    ("norm.weight", torch.zeros(6).to(FP8), r"norm\.weight_scale is missing"),
    ("out.weight", torch.zeros(6, 8), r"out\.weight is torch\.float32, out\.weight"),
    ("k.weight", torch.zeros(2, 6), r"k\.weight .* is F32 and F8_E4M3"),
    ("k.weight", torch.zeros(2, 5).to(FP8), r"k\.weight .* do not fit together"),
    ("frequency", torch.zeros(4), r"frequency would fill frequency, which the model"),
]


@pytest.mark.parametrize(("name", "value", "message"), REFUSED)
def test_misfits_are_named_before_anything_is_read(
    tensors: dict[str, Tensor],
    tmp_path: Path,
    name: str,
    value: Tensor | None,
    message: str,
) -> None:
    tensors.pop(name, None)
    if value is not None:
        tensors[name] = value
    model = on_meta()
    with pytest.raises(CheckpointError, match=r"^part/: .*" + message):
        load(model, tensors, tmp_path)
    assert model.norm.weight.is_meta


def test_one_log_line(
    tensors: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="sglang_ext_gen"):
        load(Model(), tensors, tmp_path)
    (message,) = caplog.messages
    assert message.startswith("part/: loaded 10 tensors")
