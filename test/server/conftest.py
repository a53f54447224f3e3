# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests that talk to real server processes."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from server.servers import Server, serving
from sglang_ext_gen.__main__ import main
from sglang_ext_gen.cli.running import TIMING_VARIABLES

if TYPE_CHECKING:
    from sglang.multimodal_gen.runtime.entrypoints.diffusion_generator import (
        DiffGenerator,
    )


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Starts servers that live until the module's last test.

    Call it with the checkpoint and further flags of ``sglang serve``; keywords are
    environment variables.
    """
    with ExitStack() as running:

        def start(model: Path, *flags: str, **environment: str) -> Server:
            folder = tmp_path_factory.mktemp("server")
            return running.enter_context(serving(model, folder, *flags, **environment))

        yield start


@pytest.fixture
def command_on(monkeypatch: pytest.MonkeyPatch) -> "Callable[..., int]":
    """Runs ``sglang-ext-gen WORDS`` in this process, on a generator that is running.

    Call it with the generator and the words; it returns the exit code.
    """

    def run(generator: "DiffGenerator", *words: str) -> int:
        cls = type(generator)
        monkeypatch.setattr(cls, "from_server_args", lambda server_args: generator)
        monkeypatch.setattr(cls, "shutdown", lambda self: None)
        for variable in TIMING_VARIABLES:
            monkeypatch.setenv(variable, "1")
        return main(list(words))

    return run
