# SPDX-License-Identifier: Apache-2.0
"""Ideogram 4 through ``sglang-ext-gen generate``, as a user runs it."""

import json
import subprocess
from pathlib import Path

import pytest

from conftest import Golden
from images import psnr
from server.servers import run_command

pytestmark = pytest.mark.slow


def generate(model: Path, folder: Path, *words: str) -> subprocess.CompletedProcess:
    """Run ``sglang-ext-gen generate MODEL WORDS --precision float32 --json``."""
    form = ("--precision", "float32", "--json")
    return run_command(folder, "generate", str(model), *words, *form)


def test_the_picture_equals_the_references(
    ideogram4_golden: Golden, tmp_path: Path
) -> None:
    request = ideogram4_golden.json["request"]
    picture = tmp_path / "golden.png"
    run = generate(
        ideogram4_golden.checkpoint,
        tmp_path,
        *("--prompt", request["prompt"], "--output", str(picture)),
        *("--width", str(request["width"]), "--height", str(request["height"])),
        *("--seed", str(request["seed"]), "--preset", request["preset"]),
    )
    assert run.returncode == 0, run.stderr[-3000:]
    answer = json.loads(run.stdout)
    assert [output["path"] for output in answer["outputs"]] == [str(picture)]
    assert len(answer["seconds_per_step"]) == 20
    assert psnr(picture, ideogram4_golden.png) >= 48


def test_a_failure_in_the_worker_is_the_reason_given(
    ideogram4_golden: Golden, tmp_path: Path
) -> None:
    # A directory where the picture should go: only the worker finds out.
    (tmp_path / "blocked.png").mkdir()
    run = generate(
        ideogram4_golden.checkpoint,
        tmp_path,
        *("--prompt", "a cat", "--width", "256", "--height", "256"),
        *("--preset", "V4_INSTANT_8", "--num-inference-steps", "1"),
        *("--output", "blocked.png"),
    )
    assert (run.returncode, run.stdout) == (1, "")
    last_line = run.stderr.strip().splitlines()[-1]
    assert last_line.startswith("sglang-ext-gen generate: "), run.stderr[-3000:]
    assert "blocked.png" in last_line
