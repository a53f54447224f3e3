# SPDX-License-Identifier: Apache-2.0
"""What ``doctor --model`` advises: by GPUs, and for each family's own checkpoint."""

import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from conftest import Golden
from sglang_ext_gen.checkpoint.needs import RUNTIME_BYTES
from sglang_ext_gen.cli import advice, generate
from sglang_ext_gen.cli.advice import Gpu, advise, gpus_here, render
from sglang_ext_gen.registry import LANGUAGE_MODELS, find_family

IDEOGRAM = find_family("ideogram4")
MING = (find_family("ming_omni"), LANGUAGE_MODELS[0])
# Of the estimates for a picture of 1024 pixels a side, and of 2048.
SMALL, LARGE = Gpu("small", 4 * 2**30), Gpu("large", 80 * 2**30)


def role_of(found: dict[str, Any]) -> dict[str, Any]:
    [role] = found["roles"]
    return role


def advise_ideogram(golden: Golden, *gpus: Gpu) -> dict[str, Any]:
    return advise(golden.checkpoint, [IDEOGRAM], gpus)


def test_the_first_form_that_fits_is_run_next(ideogram4_golden):
    role = role_of(advise_ideogram(ideogram4_golden, LARGE))
    assert role["fits"]
    assert (role["chosen"]["form"], role["chosen"]["gpus"]) == ("resident", 1)
    words = shlex.split(role["command"])
    assert words[:3] == ["sglang-ext-gen", "generate", str(ideogram4_golden.checkpoint)]
    fitting = {option["split"] for option in role["options"] if fits(option)}
    assert fitting == {"1 GPU"}


def fits(option: dict[str, Any]) -> bool:
    return option["sizes"]["1024x1024"]["fits"]


def test_options_for_more_gpus_than_there_are_do_not_fit(ideogram4_golden):
    role = role_of(advise_ideogram(ideogram4_golden, LARGE, LARGE))
    gpus = {option["gpus"] for option in role["options"] if fits(option)}
    assert gpus == {1, 2}


def test_a_gpu_must_have_the_memory_of_its_rank(ideogram4_golden):
    one = role_of(advise_ideogram(ideogram4_golden, LARGE))["options"][0]
    need = one["sizes"]["1024x1024"]["total"]
    for nbytes, expected in ((need, False), (need / 0.95 + 1, True)):
        gpu = Gpu("exact", int(nbytes))
        found = role_of(advise_ideogram(ideogram4_golden, gpu))
        assert fits(found["options"][0]) is expected
        assert found["fits"] is expected


def test_nothing_is_run_where_nothing_fits(ideogram4_golden):
    tiny = Gpu("tiny", RUNTIME_BYTES // 2)
    found = advise_ideogram(ideogram4_golden, tiny)
    role = role_of(found)
    assert (role["fits"], role["chosen"], role["command"]) == (False, None, None)
    assert "None of this fits the GPUs here." in render(found)


def test_without_a_gpu_it_is_told_what_one_needs(ideogram4_golden):
    found = advise_ideogram(ideogram4_golden)
    role = role_of(found)
    assert not role["fits"]
    text = render(found)
    assert "no GPU here" in text
    assert "It takes " in text
    assert role["command"] in text
    assert "no commercial use" in text


def test_the_command_is_one_that_generate_takes(ideogram4_golden):
    """With the flags of every form and split; those of SGLang are passed on."""
    for option in role_of(advise_ideogram(ideogram4_golden))["options"]:
        words = [str(ideogram4_golden.checkpoint), "--prompt", "x", *option["flags"]]
        parser = generate._parser(IDEOGRAM)
        _, others = parser.parse_known_args(words)
        assert set(others) <= {
            *("--num-gpus", "2", "4", "--enable-cfg-parallel"),
            *("--tp-size", "--ulysses-degree"),
        }


def test_both_parts_of_a_checkpoint_are_advised(golden_dir):
    path = golden_dir("ming_omni") / "checkpoint"
    found = advise(path, MING, (LARGE,))
    names = [role["name"] for role in found["roles"]]
    assert names == ["draw, beside a thinker", "chat, and feed the generator"]
    assert found["variant"] == "generator, thinker"
    assert "--model-type llm" in found["roles"][1]["command"]
    assert found["missing"] == [
        "talker/: no speech, which this package does not serve either"
    ]


def test_parts_that_are_not_there_are_told(golden_dir, tmp_path):
    source = golden_dir("ming_omni") / "checkpoint"
    for name in ("connector", "mlp", "transformer", "vae", "scheduler"):
        shutil.copytree(source / name, tmp_path / "ming" / name)
    found = advise(tmp_path / "ming", MING[:1], ())
    told = " ".join(found["missing"])
    assert "byt5/" in told
    assert "--thinker-url" in told


def test_damage_leaves_the_licence_and_the_size(ideogram4_golden, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(ideogram4_golden.checkpoint, broken)
    (broken / "vae" / "config.json").write_text("{")
    found = advise(broken, [IDEOGRAM], ())
    assert "config.json" in found["unknown"]
    assert found["bytes"] > 0
    assert "what it needs cannot be told" in render(found)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (
            'echo "NVIDIA H100 80GB HBM3, 81559"; echo "Other, 24576"',
            (
                Gpu("NVIDIA H100 80GB HBM3", 81559 * 2**20),
                Gpu("Other", 24576 * 2**20),
            ),
        ),
        ('echo "NVIDIA-SMI has failed"; exit 9', ()),
    ],
)
def test_gpus_are_those_of_the_driver(
    script: str,
    expected: tuple[Gpu, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert gpus_here() == expected


def test_no_driver_no_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert advice.gpus_here() == ()
