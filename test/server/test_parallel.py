# SPDX-License-Identifier: Apache-2.0
"""Two processes equal one: branches, sequence or tensors divided between them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import Golden
from server.ranks import MODES, REPLICAS
from server.servers import free_ports, server_environment
from server.starts import count_start

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("ranks.py")
DIVIDED = [mode for mode in MODES if mode not in ("one", "dp")]
# Sums in another order: of two halves of a matrix product, or of attention (measured
# 2e-6 and less).
MAX_ABS = 2e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each rank drew in each mode."""
    count_start("two ranks")
    folder = tmp_path_factory.mktemp("ranks")
    master_port = free_ports()[2]
    ranks = []
    for rank in (0, 1):
        command = [sys.executable, PROGRAM, str(rank), str(master_port), folder]
        with (folder / f"{rank}.log").open("wb") as log:
            ranks.append(
                subprocess.Popen(
                    command,
                    cwd=folder,
                    env=server_environment({}),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        for rank, process in enumerate(ranks):
            code = process.wait(timeout=900)
            log = (folder / f"{rank}.log").read_text("utf-8", "replace")
            assert code == 0, log[-4000:]
    finally:
        for process in ranks:
            process.kill()
    return folder


def drawn(folder: Path, mode: str, rank: int, kind: str) -> Any:
    from safetensors.torch import load_file

    return load_file(folder / f"{mode}.{rank}.safetensors")[kind]


@pytest.mark.parametrize("kind", ["t2i", "edit", "fp8"])
@pytest.mark.parametrize("mode", DIVIDED)
def test_qwen_image(mode: str, kind: str, folder: Path) -> None:
    alone, divided = drawn(folder, "one", 0, kind), drawn(folder, mode, 0, kind)
    assert alone.std() > 0.01, "a flat picture would prove nothing"
    assert (divided - alone).abs().max() < MAX_ABS


@pytest.mark.parametrize("mode", DIVIDED)
def test_ideogram4(mode: str, folder: Path) -> None:
    alone = drawn(folder, "one", 0, "ideogram4")
    divided = drawn(folder, mode, 0, "ideogram4")
    assert len(divided) == len(alone) == 2
    for picture, reference in zip(divided, alone, strict=True):
        error = (picture - reference).square().mean()
        assert -10 * error.log10() > 45
        assert reference.std() > 0.01, "a flat picture would prove nothing"


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("mode", DIVIDED)
def test_ming_omni(mode: str, rank: int, folder: Path, golden_dir) -> None:
    from images import decibels

    want = Golden(golden_dir("ming_omni")).tensor("edit.final_latents")
    scale = want.abs().max()
    latents = drawn(folder, mode, rank, "ming_omni")[0]
    assert decibels(latents / scale, want / scale) > 80


@pytest.mark.parametrize("rank", [0, 1])
def test_replicas_of_ming_omni_draw_their_own_prompts(
    rank: int, folder: Path, golden_dir
) -> None:
    from images import decibels

    case = REPLICAS[rank]
    want = Golden(golden_dir("ming_omni")).tensor(f"{case}.final_latents")
    latents = drawn(folder, "dp", rank, "ming_omni")[0]
    scale = want.abs().max()
    assert decibels(latents / scale, want / scale) > 80
