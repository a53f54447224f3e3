# SPDX-License-Identifier: Apache-2.0
"""Two processes equal one: branches, sequence or tensors divided between them."""

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from server.qwen_image_ranks import MODES
from server.servers import free_ports, server_environment

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("qwen_image_ranks.py")
# Sums in another order: of two halves of a matrix product, or of attention (measured
# 2e-6 and less).
MAX_ABS = 2e-5


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the pictures of every mode."""
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


@pytest.mark.parametrize("kind", ["t2i", "edit", "fp8"])
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "one"])
def test_two_processes_equal_one(mode: str, kind: str, pictures: Path) -> None:
    alone = load_file(pictures / "one.safetensors")[kind]
    divided = load_file(pictures / f"{mode}.safetensors")[kind]
    assert alone.std() > 0.01, "a flat picture would prove nothing"
    assert (divided - alone).abs().max() < MAX_ABS
