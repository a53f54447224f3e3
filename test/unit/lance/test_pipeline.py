# SPDX-License-Identifier: Apache-2.0
"""The real pipeline in this process: what it loads, draws and refuses."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from server.lance_requests import MIN_PSNR, request_of, worst_psnr
from sglang_ext_gen.__main__ import main


def test_an_edit_equals_the_official_one_and_loads_what_it_needs(
    runtime: None, lance: Any
) -> None:
    from qwen_image_runtime import load_pipeline

    # One checkpoint directory, not the root: it runs all that it is asked for.
    loaded = load_pipeline(
        lance.path / "Lance_3B", tasks="image_edit", image_encoder_precision="fp32"
    )
    needed = {"transformer", "image_encoder", "vae", "tokenizer"}
    assert {name for name, part in loaded.pipeline.modules.items() if part} == needed
    fields = request_of(lance.golden, "image_edit", Path("unused"))
    [picture] = loaded.pictures(**fields)
    levels = (picture * 255).round().byte().permute(1, 2, 0).numpy()
    assert worst_psnr(lance.golden, "image_edit", [levels]) >= MIN_PSNR


@pytest.fixture
def timings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sets variables of SGLang; they end with the test."""
    from sglang_ext_gen.cli.running import TIMING_VARIABLES

    for variable in TIMING_VARIABLES:
        monkeypatch.setenv(variable, "1")


def test_a_task_without_its_directory_is_refused_before_loading(
    timings: None, lance: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "lance"
    left_out = shutil.ignore_patterns("Lance_3B")
    shutil.copytree(lance.path, checkpoint, ignore=left_out)
    assert main(["generate", str(checkpoint), "--prompt", "x"]) == 2
    message = capsys.readouterr().err
    assert "task_type: t2i is not served here: Lance_3B is missing" in message


def test_a_malicious_vae_ends_the_command_and_is_not_run(
    runtime: None,
    timings: None,
    lance: Any,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker's part, loading, happens in this process."""
    import torch
    from sglang.multimodal_gen.runtime.entrypoints.diffusion_generator import (
        DiffGenerator,
    )

    from checkpoint_damage import RunsACommand
    from qwen_image_runtime import load_pipeline

    checkpoint, marker = tmp_path / "lance", tmp_path / "owned"
    shutil.copytree(lance.path, checkpoint)
    torch.save({"conv1.weight": RunsACommand(marker)}, checkpoint / "Wan2.2_VAE.pth")

    def start(server_args: Any) -> None:
        load_pipeline(Path(server_args.model_path), tasks="t2i")

    monkeypatch.setattr(DiffGenerator, "from_server_args", start)
    words = ["generate", str(checkpoint), "--prompt", "x", "--tasks", "t2i"]
    assert main(words) == 1
    assert "Wan2.2_VAE.pth is refused" in capfd.readouterr().err
    assert not marker.exists()
