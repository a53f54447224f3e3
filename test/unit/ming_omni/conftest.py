# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the Ming tests."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from conftest import Golden

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def ming_golden(golden_dir: Callable[[str], Path]) -> Golden:
    """Golden data of the thinker; its folder is the checkpoint, too."""
    return Golden(golden_dir("ming_thinker"))


@pytest.fixture(scope="session")
def ming_tokenizer(ming_golden: Golden) -> "PreTrainedTokenizerFast":
    """The tiny checkpoint's tokenizer, as the server loads it."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(ming_golden.path)
