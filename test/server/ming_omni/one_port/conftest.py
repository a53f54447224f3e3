# SPDX-License-Identifier: Apache-2.0
"""One start of Ming's two servers behind one port, for all files of this folder.

``test_together.py`` kills its parts, and is the last.
"""

import sys
from collections.abc import Iterator

import pytest

from conftest import Golden
from server.ming import FLAGS as THINKER_FLAGS
from server.one_port import serving_one_port
from server.servers import Server

FLAGS = (
    *("--served-model-name", "ming", "--precision", "float32"),
    f"--thinker-args={' '.join(THINKER_FLAGS)} --enable-return-hidden-states",
    "--generator-args=--sleep-on-idle",
)


@pytest.fixture(scope="package")
def one_port(
    omni_golden: Golden, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """``sglang-ext-gen serve`` of the whole checkpoint."""
    folder = tmp_path_factory.mktemp("one_port")
    model = str(omni_golden.checkpoint)
    command = (sys.executable, "-m", "sglang_ext_gen", "serve", model)
    with serving_one_port(command, folder, *FLAGS) as running:
        yield running
