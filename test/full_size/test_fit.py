# SPDX-License-Identifier: Apache-2.0
"""Every tensor of the full-size checkpoints lands once, where our modules take it.

Rules and modules meet at released sizes, the thinkers included; ``fit.py`` says how.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from full_size.sparse import write
from server.servers import run_program

pytestmark = pytest.mark.slow

NAMES = ("ideo_fp8", "lance_bf16", "ming_full", "qwen_image", "qwen_edit_2511")
# Tensors on disk, as published audits of the released files count them.
THINKERS = {"lance thinker": 1021, "lance video thinker": 1411, "ming thinker": 25_131}
GENERATORS = {
    "ideo_fp8 transformer": 669,
    "ideo_fp8 unconditional_transformer": 669,
    "ideo_fp8 text_encoder": 1117,
    "lance_bf16 Lance_3B": 1021,
    "lance_bf16 Lance_3B fp8": 1021,
    "lance_bf16 Lance_3B tower": 390,
    "lance_bf16 Lance_3B_Video": 1411,
    "lance_bf16 Lance_3B_Video fp8": 1411,
    "lance_bf16 Lance_3B_Video tower": 1411,
    "lance_bf16 vae": 196,
    "lance_bf16 vae decoder": 196,
    "ming_full text_encoder": 343,
    "ming_full glyph_encoder": 152,
    "ming_full transformer": 521,
    "ming_full vae": 244,
    "qwen_image transformer fp8": 1933,
    "qwen_edit_2511 transformer fp8": 1933,
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program says of each module."""
    folder = tmp_path_factory.mktemp("full_size")
    roots = [f"{name}={write(name, folder / name)}" for name in NAMES]
    program = Path(__file__).with_name("fit.py")
    path = os.pathsep.join([str(program.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = run_program(folder, program, *roots, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr[-3000:]
    [line] = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    return json.loads(line.removeprefix("FOUND "))


def test_every_module_was_looked_at(found: dict[str, Any]) -> None:
    assert found.keys() == THINKERS.keys() | GENERATORS.keys()


@pytest.mark.parametrize("title", GENERATORS)
def test_rules_fill_the_module(found: dict[str, Any], title: str) -> None:
    counts = found[title]
    assert isinstance(counts, dict), counts
    assert counts["stored"] == counts["used"] + counts["skipped"] == GENERATORS[title]
    assert counts["filled"] == counts["parameters"]


@pytest.mark.parametrize("title", THINKERS)
def test_a_thinker_is_written_once_and_everywhere(
    found: dict[str, Any], title: str
) -> None:
    counts = found[title]
    assert counts["stored"] == THINKERS[title]
    assert counts["filled"] == counts["parameters"]
    assert (counts["wrong"], counts["twice"]) == ([], 0)
