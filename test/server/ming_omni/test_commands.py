# SPDX-License-Identifier: Apache-2.0
"""Ming draws from the command line in bfloat16, and in the demo."""

from pathlib import Path

import pytest

from conftest import Golden
from images import psnr
from ming_drawing import BF16_DB, golden_png, golden_request
from server.ming import FLAGS
from server.servers import plain_generate, run_command

pytestmark = pytest.mark.slow


def test_plain_sglang_generate_draws_in_bfloat16(golden_dir, tmp_path: Path) -> None:
    golden = Golden(golden_dir("ming_omni"))
    thinker = " ".join(FLAGS).replace("float32", "bfloat16")
    picture = tmp_path / "edit.png"
    request = golden_request(golden, "edit")
    plain_generate(golden.checkpoint, picture, request, f"--thinker-args={thinker}")
    assert psnr(picture, golden_png(golden, "edit")) >= BF16_DB


def test_demo_draws_chats_and_edits(tmp_path: Path) -> None:
    output = ("--output", str(tmp_path / "demo"))
    run = run_command(tmp_path, "demo", "ming_omni", *output, "--steps", "2")
    assert run.returncode == 0, run.stderr[-3000:]
    pictures = [file for file in (tmp_path / "demo").iterdir() if file.is_file()]
    assert {file.stem for file in pictures} == {f"ming_omni-{i}" for i in (1, 2, 3)}
    assert "What is in this picture? " in run.stdout
