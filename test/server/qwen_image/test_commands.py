# SPDX-License-Identifier: Apache-2.0
"""Qwen-Image through ``sglang-ext-gen generate`` and ``demo``, as a user runs them.

``test_python.py`` has the same for edits, on a generator that is running.
"""

import json
from pathlib import Path

import pytest

from conftest import GOLDEN_ROOT
from images import psnr, read_rgb
from qwen_image_golden import golden_command
from server.servers import run_command

pytestmark = pytest.mark.slow

GOLDEN = GOLDEN_ROOT / "qwen_image"


def test_generate_on_two_ranks_equals_the_reference(tmp_path: Path) -> None:
    picture = tmp_path / "t2i.png"
    run = run_command(
        tmp_path,
        *golden_command("t2i", "Qwen-Image", picture),
        *("--num-gpus", "2", "--enable-cfg-parallel", "true"),
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert str(picture) in json.dumps(json.loads(run.stdout))
    assert psnr(picture, GOLDEN / "t2i" / "golden.png") >= 48


def test_demo_makes_its_pictures(tmp_path: Path) -> None:
    run = run_command(
        tmp_path,
        *("demo", "qwen_image", "--output", "out", "--steps", "2"),
        *("--weight-format", "fp8"),
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "linears with FP8 weights" in run.stdout
    for number in (1, 2):
        picture = tmp_path / "out" / f"qwen_image-{number}.png"
        assert read_rgb(picture).shape == (192, 256, 3)
        assert picture.name in run.stdout
