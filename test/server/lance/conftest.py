# SPDX-License-Identifier: Apache-2.0
"""Golden data of Lance."""

from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Golden
from server.lance_requests import write_source_video


@pytest.fixture(scope="session")
def golden(golden_dir: Callable[[str], Path]) -> Golden:
    return Golden(golden_dir("lance"))


@pytest.fixture(scope="session")
def source_video(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source_video(golden, tmp_path_factory.mktemp("video") / "in.mp4")
