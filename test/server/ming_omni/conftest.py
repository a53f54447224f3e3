# SPDX-License-Identifier: Apache-2.0
"""Golden data of Ming."""

from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Golden


@pytest.fixture(scope="session")
def omni_golden(golden_dir: Callable[[str], Path]) -> Golden:
    """Golden data of thinker and generator together."""
    return Golden(golden_dir("ming_omni"))
