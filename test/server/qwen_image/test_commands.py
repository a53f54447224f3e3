# SPDX-License-Identifier: Apache-2.0
"""Qwen-Image through ``sglang-ext-gen demo``, as a user runs it.

``test_python.py`` has ``generate``, and the demo of edits, on a generator that is
running; ``test_plain_generate.py`` starts two workers by SGLang's own command.
"""

from pathlib import Path

import pytest

from images import read_rgb
from server.servers import run_command

pytestmark = pytest.mark.slow


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
