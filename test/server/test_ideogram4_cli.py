# SPDX-License-Identifier: Apache-2.0
"""Ideogram 4 through ``sglang-ext-gen generate``, as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Golden
from images import psnr
from server.servers import free_ports, server_environment

pytestmark = pytest.mark.slow


def test_the_picture_equals_the_references(
    ideogram4_golden: Golden, tmp_path: Path
) -> None:
    request = ideogram4_golden.json["request"]
    picture = tmp_path / "golden.png"
    _, scheduler_port, master_port = free_ports()
    run = subprocess.run(
        [
            *(sys.executable, "-m", "sglang_ext_gen", "generate"),
            *(str(ideogram4_golden.checkpoint), "--prompt", request["prompt"]),
            *("--width", str(request["width"]), "--height", str(request["height"])),
            *("--seed", str(request["seed"]), "--preset", request["preset"]),
            *("--precision", "float32", "--output", str(picture), "--json"),
            *("--scheduler-port", str(scheduler_port)),
            *("--master-port", str(master_port)),
        ],
        cwd=tmp_path,
        env=server_environment({}),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert str(picture) in json.dumps(json.loads(run.stdout))
    assert psnr(picture, ideogram4_golden.png) >= 48
