# SPDX-License-Identifier: Apache-2.0
"""How weights and memory of work are counted; full sizes are in ``test/full_size``."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from checkpoint_damage import RawTensor, write_raw
from sglang_ext_gen.checkpoint.component import Component
from sglang_ext_gen.checkpoint.needs import (
    ONE,
    RUNTIME_BYTES,
    Chatting,
    Drawing,
    Form,
    Held,
    Needs,
    Role,
    Split,
    diffusion_splits,
)
from sglang_ext_gen.checkpoint.rules import KEEP_NAME, Skip

ITEM = {"F32": 4, "BF16": 2, "F8_E4M3": 1, "I64": 8}
TENSORS = {
    "a.weight": ("F8_E4M3", (8, 6)),
    "a.weight_scale": ("F32", (8,)),
    "a.bias": ("BF16", (8,)),
    "b.weight": ("F32", (6, 8)),
    "b.bias": ("F32", (6,)),
    "counter": ("I64", (3,)),
}
RELEASED, EXPANDED = Form("released"), Form("expanded", "plain")
FP8 = Form("fp8", "quantized")
WORK = Drawing(hidden=100, inner=300, decoder_channels=8, text_tokens=50)


@pytest.fixture
def part(tmp_path: Path) -> Any:
    return stored(tmp_path, TENSORS)


def stored(folder: Path, tensors: dict[str, Any], **fields: Any) -> Any:
    """A component with these tensors, without data of any sense."""
    raw = {}
    for name, (dtype, shape) in tensors.items():
        size = ITEM[dtype]
        for side in shape:
            size *= side
        raw[name] = RawTensor(dtype, shape, bytes(size))
    component: Any = Component("c", file="w.safetensors", folder="", **fields)
    write_raw(folder / "w.safetensors", raw)
    return component.at(folder)


def test_floats_take_the_compute_dtype_and_fp8_stays(part):
    # 48 + 4 * 8 + 2 * 8, then 2 * (48 + 6), then 24 bytes of integers.
    assert Held(part).nbytes(RELEASED, 1) == 96 + 108 + 24


def test_expanded_weights_lose_their_scales(part):
    assert Held(part).nbytes(EXPANDED, 1) == 2 * (48 + 8) + 108 + 24


def test_matrices_become_fp8_with_a_scale_a_row(part):
    held = Held(part, quantizes=lambda name, shape: name == "b.weight")
    assert held.nbytes(FP8, 1) == 96 + (48 + 4 * 6) + 12 + 24
    assert held.nbytes(RELEASED, 1) == Held(part).nbytes(RELEASED, 1)


def test_ranks_divide_columns_whole_and_the_weights_of_rows(part):
    held = Held(
        part, columns=("a",), rows=("b",), quantizes=lambda name, _: name == "b.weight"
    )
    assert held.nbytes(RELEASED, 2) == 96 // 2 + (96 // 2 + 12) + 24
    # The scale of a row-parallel weight is whole on every rank.
    assert held.nbytes(FP8, 2) == 96 // 2 + (48 // 2 + 4 * 6 + 12) + 24


def test_a_share_of_its_own(part):
    held = Held(
        part, share=lambda name, tp: Fraction(3, 4) if name == "a.weight" else None
    )
    assert Held(part).nbytes(RELEASED, 2) - held.nbytes(RELEASED, 2) == 48 // 4


def test_what_rules_skip_is_not_counted(tmp_path):
    part = stored(tmp_path, TENSORS, rules=(Skip("a.**", "not used"), KEEP_NAME))
    assert Held(part).nbytes(RELEASED, 1) == 108 + 24
    chosen = Held(part, used=lambda name: name.startswith("a."))
    assert chosen.nbytes(RELEASED, 1) == 96


def test_branches_of_guidance_lie_on_two_ranks(tmp_path):
    for name in "xyz":
        (tmp_path / name).mkdir()
    small = Held(stored(tmp_path / "x", {"w.weight": ("BF16", (10,))}), branch=0)
    large = Held(stored(tmp_path / "y", {"w.weight": ("BF16", (30,))}), branch=1)
    both = Held(stored(tmp_path / "z", {"w.weight": ("BF16", (1,))}))
    role = Role("draw", ("run",), (small, large, both), WORK)
    assert role.weights(RELEASED, ONE) == 20 + 60 + 2
    assert role.weights(RELEASED, Split(branches=2)) == 60 + 2


def test_a_step_and_decoding_are_estimated_by_the_stated_formula():
    numbers = 10 * 100 + 3 * 300
    assert WORK.nbytes(64, 32, ONE) == {
        "step": 2 * (50 + 8) * numbers,
        "decode": 2 * 64 * 32 * 8 * 4,
    }
    assert "10 x 100 + 3 x 300" in WORK.formula
    shared = WORK.nbytes(64, 32, Split(tp=3, sequence=4))
    assert shared["step"] == 2 * (50 + 2) * (10 * 100 + 3 * 100)
    pair = Drawing(100, 300, 8, 50, batch=2)
    assert pair.nbytes(64, 32, ONE)["step"] == 2 * 2 * (50 + 8) * numbers
    assert pair.nbytes(64, 32, Split(branches=2)) == WORK.nbytes(64, 32, ONE)


def test_keys_and_values_are_divided_up_to_one_head_a_rank():
    work = Chatting(layers=3, heads=4, head_dim=8, tokens=10)
    whole = {"cache": 2 * 10 * 2 * 3 * 4 * 8}
    assert work.nbytes(1, 1, ONE) == whole
    assert work.nbytes(1, 1, Split(tp=8)) == {"cache": whole["cache"] // 4}


def test_a_device_needs_weights_runtime_and_the_worst_moment(part):
    role = Role("draw", ("run",), (Held(part),), WORK, (RELEASED, FP8), (ONE,))
    first, second = role.options()
    assert (first.form, second.form) == (RELEASED, FP8)
    peak = max(first.parts(64, 32).values())
    assert first.total(64, 32) == first.weights + RUNTIME_BYTES + peak


def test_parameters_are_counted_once_a_file_without_scales(part):
    role = Role("draw", ("run",), (Held(part), Held(part)), WORK)
    needs = Needs("v", (role, role))
    assert list(needs.files) == [part.file]
    assert needs.parameters_of(part.file) == 48 + 8 + 48 + 6 + 3


@pytest.mark.parametrize(("heads", "divided"), [(18, {2}), (24, {2, 4}), (7, set())])
def test_heads_decide_what_can_be_divided(heads, divided):
    splits = diffusion_splits(heads)
    assert splits[0] == ONE
    assert {split.tp * split.sequence for split in splits} == {1, *divided}
    assert [split.gpus for split in splits] == sorted(split.gpus for split in splits)
    for split in splits[1:]:
        assert split.flags[:2] == ("--num-gpus", str(split.gpus))
