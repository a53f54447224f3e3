# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests that talk to real server processes."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from server.servers import Server, serving


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
