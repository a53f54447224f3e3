# SPDX-License-Identifier: Apache-2.0
"""Golden checkpoints of Qwen-Image in pipelines that are built once."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from conftest import Golden

if TYPE_CHECKING:
    from qwen_image_runtime import LoadedPipeline


@pytest.fixture(scope="session")
def t2i_golden(golden_dir: Callable[[str], Path]) -> Golden:
    """Golden data of text to image."""
    return Golden(golden_dir("qwen_image/t2i"))


@pytest.fixture(scope="session")
def edit_golden(golden_dir: Callable[[str], Path]) -> Golden:
    """Golden data of an edit."""
    return Golden(golden_dir("qwen_image/edit"))


@pytest.fixture(scope="session")
def t2i_checkpoint(t2i_golden: Golden) -> Path:
    return t2i_golden.path / "Qwen-Image"


@pytest.fixture(scope="session")
def edit_checkpoint(edit_golden: Golden) -> Path:
    return edit_golden.path / "Qwen-Image-Edit-2509"


@pytest.fixture(scope="package")
def runtime() -> Iterator[None]:
    """SGLang's runtime in this process, until the package's last test."""
    from sglang.multimodal_gen.runtime.distributed.parallel_state import (
        cleanup_dist_env_and_memory,
    )

    from qwen_image_runtime import start_runtime

    start_runtime()
    yield
    cleanup_dist_env_and_memory()


@pytest.fixture(scope="package")
def t2i(runtime: None, t2i_checkpoint: Path) -> "LoadedPipeline":
    """Text to image in float32."""
    from qwen_image_runtime import load_pipeline

    return load_pipeline(t2i_checkpoint)


@pytest.fixture(scope="package")
def edit(runtime: None, edit_checkpoint: Path) -> "LoadedPipeline":
    """Edits in float32."""
    from qwen_image_runtime import load_pipeline

    return load_pipeline(edit_checkpoint)
