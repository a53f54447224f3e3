# SPDX-License-Identifier: Apache-2.0
"""A component table on small files: checked, loaded, converted, refused."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sglang_ext_gen.checkpoint.build import convert_components, load_component
from sglang_ext_gen.checkpoint.component import (
    Component,
    Stored,
    check_components,
    found_by,
    read_or_empty,
    refuse,
)
from sglang_ext_gen.checkpoint.layout import TensorSpec
from sglang_ext_gen.checkpoint.released_config import read_fields
from sglang_ext_gen.checkpoint.rules import KEEP_NAME, Rename
from sglang_ext_gen.checkpoint.tiny import write_component
from sglang_ext_gen.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class Config:
    width: int
    depth: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> Self:
        return read_fields(cls, values, where, ignored=())


def specs(config: Config, stored: Stored) -> Iterator[TensorSpec]:
    prefix = "old." if any(name.startswith("old.") for name in stored) else ""
    for i in range(config.depth):
        yield TensorSpec(f"{prefix}{i}.weight", (config.width, config.width))


def rules(stored: Stored) -> tuple[Any, ...]:
    is_old = any(name.startswith("old.") for name in stored)
    return (Rename("old.{i}.{p}", "{i}.{p}"),) if is_old else (KEEP_NAME,)


def build(part: Any, dtype: torch.dtype, options: Any) -> nn.Module:
    """Layers that know the options they were built with."""
    with torch.device("meta"):
        layers = nn.Sequential(
            *(
                nn.Linear(part.config.width, part.config.width, bias=False, dtype=dtype)
                for _ in range(part.config.depth)
            )
        )
    layers.options = options
    return layers


def build_pair(part: Any, dtype: torch.dtype, options: Any) -> nn.Module:
    pair = nn.Module()
    for name, row in part.parts.items():
        pair.add_module(name, build(row, dtype, options))
    return pair


LAYERS = Component(
    "layers",
    specs=specs,
    rules=rules,
    config=Config,
    build=f"{__name__}:build",
    unchecked=("notes.",),
)
PICKLED = replace(LAYERS, name="pickled", file="layers.pt")
PAIR = Component(
    "pair",
    build=f"{__name__}:build_pair",
    parts={"left": replace(LAYERS, folder="a/left"), "right": PICKLED},
)
VALUES = {"width": 3, "depth": 2}


def weights(prefix: str = "", width: int = 3, depth: int = 2) -> dict[str, Tensor]:
    torch.manual_seed(width)
    return {f"{prefix}{i}.weight": torch.randn(width, width) for i in range(depth)}


def write(folder: Path, tensors: dict[str, Tensor], file: str, **changes: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**VALUES, **changes}), "utf-8")
    if file.endswith(".pt"):
        torch.save(tensors, folder / file)
    else:
        save_file(tensors, folder / file)


def load(component: Component[Any], root: Path, **options: Any) -> nn.Module:
    settings = {"dtype": torch.float32, "device": "cpu", **options}
    return load_component(component.at(root), **settings)


def same(module: nn.Module, tensors: dict[str, Tensor]) -> bool:
    found = module.state_dict()
    return found.keys() == tensors.keys() and all(
        torch.equal(found[name], tensor) for name, tensor in tensors.items()
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "layers", weights(), LAYERS.file)
    return tmp_path


# --- check ---


def test_a_complete_component_has_no_problems(root: Path) -> None:
    assert LAYERS.at(root).check() == []
    assert LAYERS.at(root).config == Config(width=3, depth=2)
    tensors = {**weights(), "notes.x": torch.ones(1)}
    write(root / "layers", tensors, LAYERS.file)
    assert LAYERS.at(root).check() == []


def test_each_problem_is_a_line(root: Path) -> None:
    tensors = {**weights(width=4, depth=1), "stray": torch.ones(1)}
    write(root / "layers", tensors, LAYERS.file)
    assert LAYERS.at(root).check() == [
        "layers/: 0.weight has shape (4, 4), expected (3, 3)",
        "layers/: 1.weight is missing, expected BF16 or F16 or F32 (3, 3)",
        "layers/: stray is not part of this release",
    ]


def test_a_wrong_config_does_not_hide_damaged_weights(root: Path) -> None:
    write(root / "layers", weights(), LAYERS.file, width="3")
    (root / "layers" / LAYERS.file).write_bytes(b"")
    wrong, truncated = LAYERS.at(root).check()
    assert wrong.startswith("layers/config.json: width is '3', expected a positive")
    assert f"{LAYERS.file} is truncated" in truncated


def test_a_folder_that_is_not_there_names_both_files(tmp_path: Path) -> None:
    problems = LAYERS.at(tmp_path).check()
    assert problems == [
        f"{tmp_path / 'layers' / name} is missing"
        for name in ("config.json", LAYERS.file)
    ]


def test_a_config_cannot_ask_for_endless_tensors(root: Path) -> None:
    write(root / "layers", weights(), LAYERS.file, depth=10**9)
    [problem] = LAYERS.at(root).check()
    assert problem == "layers/config.json: it describes over 100000 tensors"


def test_components_are_checked_once_and_all(root: Path) -> None:
    other = replace(LAYERS, name="other")
    (root / "layers" / LAYERS.file).unlink()
    problems = check_components(root, (LAYERS, replace(LAYERS), other))
    assert [line.partition(" is missing")[0] for line in problems] == [
        str(root / "layers" / LAYERS.file),
        str(root / "other" / "config.json"),
        str(root / "other" / other.file),
    ]


def test_a_refusal_shows_five_problems_and_counts_all() -> None:
    refuse(Path("m"), [])
    with pytest.raises(CheckpointError) as caught:
        refuse(Path("m"), [f"line {n}" for n in range(7)])
    assert str(caught.value) == (
        "m: 7 problem(s): line 0; line 1; line 2; line 3; line 4. "
        "Run `sglang-ext-gen doctor --model m` for all of them"
    )


def test_what_a_check_raises_is_a_problem_and_a_bug_is_not() -> None:
    def damaged() -> list[str]:
        raise CheckpointError("cut off")

    def buggy() -> list[str]:
        raise KeyError("oops")

    assert found_by(damaged) == ["cut off"]
    with pytest.raises(KeyError):
        found_by(buggy)


def test_a_file_that_cannot_be_read_is_empty_for_recognition(root: Path) -> None:
    file = root / "layers" / "config.json"
    assert read_or_empty(file) == VALUES
    file.write_text("{", "utf-8")
    assert read_or_empty(file) == {}
    assert read_or_empty(root / "no.json") == {}


# --- load ---


@pytest.mark.parametrize("prefix", ["", "old."])
def test_a_component_is_built_and_filled_by_its_own_layout(
    root: Path, prefix: str
) -> None:
    write(root / "layers", weights(prefix), LAYERS.file)
    module = load(LAYERS, root, options="ours")
    assert same(module, weights())
    assert module.options == "ours"
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_weights_come_in_the_asked_dtype(root: Path) -> None:
    module = load(LAYERS, root, dtype=torch.bfloat16)
    assert same(module, {name: t.bfloat16() for name, t in weights().items()})


def test_a_component_that_does_not_fit_is_refused(root: Path) -> None:
    write(root / "layers", {**weights(), "stray": torch.ones(1)}, LAYERS.file)
    with pytest.raises(CheckpointError, match=r"layers/.*stray"):
        load(LAYERS, root)
    write(root / "layers", weights(), LAYERS.file, height=3)
    with pytest.raises(ConfigError, match="unknown key 'height'"):
        load(LAYERS, root)


# --- several files, pickles ---


def test_each_part_fills_its_own_submodule(tmp_path: Path) -> None:
    left, right = weights(depth=2), weights(width=5, depth=1)
    write(tmp_path / "pair/a/left", left, LAYERS.file)
    write(tmp_path / "pair/pickled", right, PICKLED.file, width=5, depth=1)
    assert PAIR.at(tmp_path).check() == []
    pair = load(PAIR, tmp_path)
    assert same(pair.get_submodule("left"), left)
    assert same(pair.get_submodule("right"), right)
    (tmp_path / "pair/pickled" / PICKLED.file).unlink()
    [problem] = PAIR.at(tmp_path).check()
    assert problem == f"{tmp_path / 'pair/pickled' / PICKLED.file} is missing"


@pytest.mark.parametrize("prefix", ["", "old."])
def test_a_pickle_is_loaded_and_converted_once(tmp_path: Path, prefix: str) -> None:
    write(tmp_path / "pickled", weights(prefix), PICKLED.file)
    assert PICKLED.at(tmp_path).check() == []
    assert same(load(PICKLED, tmp_path), weights())
    written = convert_components([LAYERS.at(tmp_path), PICKLED.at(tmp_path)])
    assert written == [tmp_path / "pickled" / "layers.safetensors"]
    # The converted file is the one that counts from now on.
    (tmp_path / "pickled" / PICKLED.file).unlink()
    assert PICKLED.at(tmp_path).file == written[0]
    assert PICKLED.at(tmp_path).check() == []
    assert same(load(PICKLED, tmp_path), weights())


def test_the_pickles_of_parts_are_converted(tmp_path: Path) -> None:
    write(tmp_path / "pair/a/left", weights(), LAYERS.file)
    write(tmp_path / "pair/pickled", weights(), PICKLED.file)
    assert convert_components([PAIR.at(tmp_path)]) == [
        tmp_path / "pair/pickled/layers.safetensors"
    ]


def test_a_pickle_with_other_tensors_is_refused_and_nothing_written(
    tmp_path: Path,
) -> None:
    write(tmp_path / "pickled", {**weights(), "stray": torch.ones(1)}, PICKLED.file)
    part = PICKLED.at(tmp_path)
    for attempt in (
        lambda: load(PICKLED, tmp_path),
        lambda: convert_components([part]),
    ):
        with pytest.raises(CheckpointError, match=r"pickled/layers\.pt.*stray"):
            attempt()
    assert part.file.suffix == ".pt"


# --- tiny ---


def test_a_component_writes_itself(tmp_path: Path) -> None:
    write_component(
        tmp_path, LAYERS, VALUES, seed=0, adjust={"1.weight": torch.zeros_like}
    )
    assert LAYERS.at(tmp_path).check() == []
    module = load(LAYERS, tmp_path)
    assert float(module.get_parameter("0.weight").std()) > 0
    assert not module.get_parameter("1.weight").any()
    write_component(tmp_path, LAYERS, VALUES, [TensorSpec("0.weight", (3, 3))], seed=0)
    [problem] = LAYERS.at(tmp_path).check()
    assert "1.weight is missing" in problem
