# SPDX-License-Identifier: Apache-2.0
"""Qwen-Image through ``sglang-ext-gen generate`` and ``demo``, as a user runs them.

Two commands run at a time: starting SGLang is most of what each does.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import GOLDEN_ROOT
from images import psnr, read_rgb
from server.servers import free_ports, server_environment

pytestmark = pytest.mark.slow

GOLDEN = GOLDEN_ROOT / "qwen_image"


def run_both(folder: Path, *commands: tuple[str, ...]) -> list[str]:
    """Run ``sglang-ext-gen`` commands at once; what each printed."""
    processes = []
    for words in commands:
        _, scheduler_port, master_port = free_ports()
        ports = ("--scheduler-port", scheduler_port, "--master-port", master_port)
        command = [sys.executable, "-m", "sglang_ext_gen", *words, *map(str, ports)]
        log = folder / f"{len(processes)}.log"
        with log.open("wb") as errors:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=server_environment({}),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        processes.append((process, log))
    printed = []
    for process, log in processes:
        output, _ = process.communicate(timeout=900)
        assert process.returncode == 0, log.read_text("utf-8", "replace")[-3000:]
        printed.append(output)
    return printed


def golden_command(kind: str, checkpoint: str, picture: Path) -> tuple[str, ...]:
    case = json.loads((GOLDEN / kind / "golden.json").read_text("utf-8"))["case"]
    names = (
        *("prompt", "negative_prompt", "true_cfg_scale", "width", "height"),
        *("num_inference_steps", "seed"),
    )
    flags = [f"--{name.replace('_', '-')}={case[name]}" for name in names]
    model = str(GOLDEN / kind / checkpoint)
    output = ("--output", str(picture), "--precision", "float32", "--json")
    return ("generate", model, *flags, *output)


def test_generate_equals_the_reference(tmp_path: Path) -> None:
    pictures = {kind: tmp_path / f"{kind}.png" for kind in ("t2i", "edit")}
    reference = str(GOLDEN / "edit" / "input_0.png")
    printed = run_both(
        tmp_path,
        (
            *golden_command("t2i", "Qwen-Image", pictures["t2i"]),
            *("--num-gpus", "2", "--enable-cfg-parallel", "true"),
        ),
        (
            *golden_command("edit", "Qwen-Image-Edit-2509", pictures["edit"]),
            *("--image-path", reference),
        ),
    )
    for (kind, picture), output in zip(pictures.items(), printed, strict=True):
        assert str(picture) in json.dumps(json.loads(output))
        assert psnr(picture, GOLDEN / kind / "golden.png") >= 48


def test_demo_makes_its_pictures(tmp_path: Path) -> None:
    families = ("qwen_image", "qwen_image_edit")
    common = ("--output", "out", "--steps", "2")
    printed = run_both(
        tmp_path,
        ("demo", "qwen_image", *common),
        ("demo", "qwen_image_edit", *common, "--weight-format", "fp8"),
    )
    assert "linears with FP8 weights" in printed[1]
    for name, output in zip(families, printed, strict=True):
        for number in (1, 2):
            picture = tmp_path / "out" / f"{name}-{number}.png"
            assert read_rgb(picture).shape == (192, 256, 3)
            assert picture.name in output
