# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run at their tiny size, say what was measured, and keep promises."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.servers import run_program

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("benchmarks_in_turn.py")
NAMES = ("fp8_linear", "ming_image", "loading", "denoise", "qwen_image", "lance")

Run = Callable[[str], tuple[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Output of a benchmark, and its last line, which is JSON."""
    folder = tmp_path_factory.mktemp("benchmarks")
    scripts = [f"bench_{name}.py" for name in NAMES]
    done = run_program(folder, PROGRAM, folder, *scripts, timeout=1200)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"

    def read(name: str) -> tuple[str, dict[str, Any]]:
        code, output, errors = (
            (folder / f"bench_{name}.py.{suffix}").read_text("utf-8")
            for suffix in ("code", "out", "err")
        )
        assert code == "0", f"{output}\n{errors}"
        return output, json.loads(output.splitlines()[-1])

    return read


def test_bench_fp8_linear(run: Run) -> None:
    _, record = run("fp8_linear")
    assert {"hardware", "commit", "torch", "seed"} <= record.keys()
    assert record["rows"]


def test_bench_ming_image(run: Run) -> None:
    """The part in one process; the other one starts two servers."""
    output, record = run("ming_image")
    assert {"hardware", "commit", "versions", "seed"} <= record.keys()
    assert record["transformer"].keys() == {"text to image", "edit"}
    for row in record["transformer"].values():
        assert {"ours", "diffusers", "once"} < row.keys()
    assert "fastest ms" in output


def test_bench_loading(run: Run) -> None:
    _, record = run("loading")
    assert {"hardware", "commit", "sglang", "torch", "seed"} <= record.keys()
    assert record["written_bytes"] > 4 * record["shard_bytes"]
    # One shard, and what the process allocates meanwhile: 15 MB, whatever the size.
    assert record["peak_beyond_bytes"] < record["shard_bytes"] + (32 << 20)


def test_bench_denoise(run: Run) -> None:
    output, record = run("denoise")
    assert {"hardware", "commit", "versions", "seed"} <= record.keys()
    assert "diffusers: not measured" in output
    timings = {
        (timing["preset"], timing["side"]): timing for timing in record["timings"]
    }
    guided, free = "V4_TURBO_12", "V4_INSTANT_8"
    assert timings.keys() == {
        (preset, side) for preset in (guided, free) for side in ("ours", "stock")
    }
    ours = next(memory for memory in record["memories"] if memory["side"] == "ours")
    assert ours["dit_ratio_of_bf16"] <= 0.55


def test_bench_qwen_image(run: Run) -> None:
    _, record = run("qwen_image")
    assert {"hardware", "commit", "versions", "seed"} <= record.keys()
    sides = ("ours", "ours fp8", "stock", "diffusers")
    timings = {
        (timing["size"], timing["batch"], timing["side"]): timing
        for timing in record["timings"]
    }
    settings = [(size, batch) for size in (128, 256) for batch in (1, 4)]
    assert timings.keys() == {(*s, side) for s in settings for side in sides}
    # Two branches in two steps; only stock draws one picture after the other.
    for (_, batch, side), timing in timings.items():
        assert timing["transformer_calls"] == (4 * batch if side == "stock" else 4)
    fp8 = next(m for m in record["memories"] if m["side"] == "ours fp8")
    # Of linears as narrow as these, scales and biases are a part.
    assert fp8["dit_ratio_of_bf16"] <= 0.6


def test_bench_lance(run: Run) -> None:
    output, record = run("lance")
    assert {"hardware", "commit", "versions", "seed"} <= record.keys()
    tasks = ["t2i", "image_edit", "t2v", "i2v", "video_edit"]
    assert [row["task"] for row in record["steps"]] == tasks
    assert [row["task"] for row in record["tasks"]] == tasks
    weights = {row["what"]: row["weights_mib"] for row in record["memory"]["rows"]}
    assert weights["t2i"] < weights["image_edit"] < weights["all tasks"]
    assert record["answers"]["growth"].keys() == {"text", "image"}
    assert "transformers' modules" in output
