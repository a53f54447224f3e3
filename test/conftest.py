# SPDX-License-Identifier: Apache-2.0
"""Fixtures and rules that all tests share.

Golden data (``test/golden/<family>/``) is part of the repository: where it is missing
a test fails, it is never skipped. Tests marked ``gpu`` are skipped, with the reason,
on a machine without a CUDA device. PyTorch is imported only when a test needs it.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from server.starts import MAX_STARTS, started

if TYPE_CHECKING:
    from torch import Tensor

GOLDEN_ROOT = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Golden:
    """The golden data of one family.

    Args:
        path: The family's folder under ``test/golden/``.
    """

    path: Path

    @cached_property
    def json(self) -> dict[str, Any]:
        """``golden.json``: request, conventions, thresholds."""
        return json.loads((self.path / "golden.json").read_text("utf-8"))

    @property
    def checkpoint(self) -> Path:
        """The tiny checkpoint that the reference ran; read only."""
        return self.path / self.json["checkpoint_dir"]

    @property
    def png(self) -> Path:
        """The reference image, 8 bit by rounding."""
        return self.path / "golden.png"

    def tensor(self, name: str) -> "Tensor":
        """One stored tensor, in its stored dtype, on CPU."""
        from safetensors import safe_open

        with safe_open(self.path / "golden.safetensors", framework="pt") as file:
            return file.get_tensor(name)


@pytest.fixture(scope="session")
def golden_dir() -> Callable[[str], Path]:
    """Maps a family's name to its folder of golden data, or fails the test."""

    def folder(family: str) -> Path:
        path = GOLDEN_ROOT / family
        files = ("golden.json", "golden.safetensors")
        missing = [name for name in files if not (path / name).is_file()]
        if missing:
            pytest.fail(
                f"test/golden/{family} lacks {', '.join(missing)}. Golden data is part "
                f"of the repository: git checkout -- test/golden/{family}"
            )
        return path

    return folder


@pytest.fixture(scope="session")
def ideogram4_golden(golden_dir: Callable[[str], Path]) -> Golden:
    """Golden data of Ideogram 4."""
    return Golden(golden_dir("ideogram4"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One process runs what shares fixtures: a file, or a folder ``one_port``."""
    from xdist.scheduler import LoadFileScheduling

    class SharedStarts(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.partition("::")[0])
            return str(file.parent if file.parent.name == "one_port" else file)

    return SharedStarts(config, log)


def pytest_collection_finish() -> None:
    """What takes longest to import waits until a test needs it."""
    if early := {"sglang", "transformers", "diffusers"} & sys.modules.keys():
        names = ", ".join(sorted(early))
        raise pytest.UsageError(f"collecting imported {names}; see test/lazy.py")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch.cuda.is_available() is false")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker process of pytest-xdist has counted."""
    started.extend(getattr(node, "workeroutput", {}).get("started", ()))


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["started"] = started
    elif len(started) > MAX_STARTS:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if started:
        terminalreporter.section(
            f"SGLang was started {len(started)} times, at most {MAX_STARTS} allowed"
        )
        terminalreporter.write_line("\n".join(sorted(started)))
