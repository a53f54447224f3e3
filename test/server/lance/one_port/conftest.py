# SPDX-License-Identifier: Apache-2.0
"""One start of Lance's two servers behind one port, for all files of this folder.

``test_together.py`` kills its parts, and is the last.
"""

import json
from collections.abc import Iterator

import pytest

from conftest import Golden
from server.lance_requests import PRESETS
from server.one_port import serving_one_port
from server.servers import Server, sglang_command

NAME = "lance"
THINKER = (
    "--max-total-tokens 16384 --context-length 2048 --mem-fraction-static 0.3 "
    f"--skip-server-warmup --mm-process-config '{json.dumps(PRESETS)}'"
)
FLAGS = (
    *("--served-model-name", NAME, "--precision", "float32"),
    f"--thinker-args={THINKER}",
    "--generator-args=--image-encoder-precision fp32 --sleep-on-idle",
)


@pytest.fixture(scope="package")
def one_port(
    golden: Golden, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """``sglang serve`` of the checkpoint root."""
    folder = tmp_path_factory.mktemp("one_port")
    command = (sglang_command(), "serve", str(golden.path / "checkpoint"))
    with serving_one_port(command, folder, *FLAGS) as running:
        yield running
