# SPDX-License-Identifier: Apache-2.0
"""Lance through the command line, as a user runs it."""

import json
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.container import InputContainer
from PIL import Image

from server.lance_requests import PRESETS, request_of
from server.servers import run_command

pytestmark = pytest.mark.slow

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return partial(run_command, tmp_path)


def flags_of(fields: dict[str, Any]) -> list[str]:
    words = []
    for name, value in fields.items():
        values = (
            value if isinstance(value, Sequence) and name == "cfg_interval" else [value]
        )
        words += ["--" + name.replace("_", "-"), *map(str, values)]
    return words


def test_a_video_edit_with_every_loading_option_is_close_to_the_official_one(
    run, golden, source_video, tmp_path
):
    fields = request_of(golden, "video_edit", source_video)
    done = run(
        *("generate", str(golden.path / "checkpoint"), *flags_of(fields)),
        *("--tasks", "video_edit", "--weight-format", "fp8", "--vae-tiles", "on"),
        *("--precision", "float32", "--json"),
        *("--output", str(tmp_path / "edit.mp4")),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [output] = json.loads(done.stdout)["outputs"]
    with av.open(output["path"], "r") as container:
        assert isinstance(container, InputContainer)
        assert container.streams.video[0].average_rate == 12
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    case = golden.json["cases"]["video_edit"]
    assert len(frames) == case["output_frames"]
    assert frames[0].shape[:2] == tuple(case["output_size_hw"])
    # The last frame survives H.264 at its default strength, noise though it is.
    want = Image.open(golden.path / case["output_files"][-1]).convert("L")
    got = Image.fromarray(frames[-1]).convert("L").crop((0, 0, *want.size))
    pixels = np.stack([np.asarray(image).ravel() for image in (want, got)])
    correlation = np.corrcoef(pixels)[0, 1]
    assert correlation > 0.9, correlation
    assert "Lance_3B_Video/: loaded" in done.stderr
    assert "Lance_3B/: loaded" not in done.stderr
    assert "16 FP8 linears, mode resident" in done.stderr  # 2 layers, 2 sets, 4 each


def test_an_answer_equals_the_official_one(run, golden, source_video):
    case = golden.json["cases"]["x2t_video"]
    done = run(
        *("ask", str(golden.path / "checkpoint"), "--prompt", case["prompt"]),
        *("--video", str(source_video)),
        *("--max-tokens", "8", "--json", "--dtype", "float32"),
        *("--max-total-tokens", "4096", "--mem-fraction-static", "0.2"),
        *("--mm-process-config", json.dumps(PRESETS)),
        ports=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout)["answer"]
    # The official run went on after the end of the answer.
    assert answer
    assert case["text"].startswith(answer.strip())


def test_demo_runs_every_task(run, tmp_path):
    done = run("demo", "lance", "--output", str(tmp_path / "demo"), "--steps", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    from sglang_ext_gen.models.lance.demo import demo_requests

    made = sorted(path.name for path in (tmp_path / "demo").iterdir() if path.is_file())
    kinds = ("png", "png", "mp4", "mp4", "mp4")
    assert made == [f"lance-{i}.{kind}" for i, kind in enumerate(kinds, start=1)]
    assert len(demo_requests()) == len(kinds)
    assert all(f"demo/{name}" in done.stdout for name in made)
