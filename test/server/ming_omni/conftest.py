# SPDX-License-Identifier: Apache-2.0
"""One start of Ming's two servers behind one port, for the files that ask them.

``test_one_port.py`` kills its parts, and runs last.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

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


@pytest.fixture(scope="session")
def omni_golden(golden_dir: Callable[[str], Path]) -> Golden:
    """Golden data of thinker and generator together."""
    return Golden(golden_dir("ming_omni"))


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
