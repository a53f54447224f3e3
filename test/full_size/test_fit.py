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
from sglang_ext_gen.registry import LANGUAGE_MODELS, find_family

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
# Module -> row of the registry, form, and which components of its first role are in it.
WEIGHED = {
    "ideo_fp8 transformer": ("ideogram4", "resident", [0]),
    "ideo_fp8 text_encoder": ("ideogram4", "resident", [1]),
    "ideo_fp8 unconditional_transformer": ("ideogram4", "resident", [3]),
    "lance_bf16 Lance_3B": ("lance", "released", [0]),
    "lance_bf16 Lance_3B fp8": ("lance", "fp8", [0]),
    "lance_bf16 Lance_3B_Video fp8": ("lance", "fp8", [1]),
    "lance_bf16 Lance_3B tower": ("lance", "released", [2]),
    "lance_bf16 Lance_3B_Video tower": ("lance", "released", [3]),
    "lance_bf16 vae": ("lance", "released", [4]),
    "ming_full transformer": ("ming_omni", "released", [0]),
    "ming_full text_encoder": ("ming_omni", "released", [1, 2]),
    "ming_full vae": ("ming_omni", "released", [3]),
    "ming_full glyph_encoder": ("ming_omni", "released", [4, 5]),
    "qwen_image transformer fp8": ("qwen_image", "fp8", [0]),
    "qwen_edit_2511 transformer fp8": ("qwen_image_edit", "fp8", [0]),
}
# SGLang pads a vocabulary, and Lance leaves rows on disk that no token uses.
ROUNDING = 1e-3
ROWS = {"lance": "lance", "ming": "ming_omni"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("full_size")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    """What the program says of each module."""
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


@pytest.mark.parametrize("title", WEIGHED)
def test_the_adviser_counts_weights_exactly(
    found: dict[str, Any], folder: Path, title: str
) -> None:
    """In one piece, and on each of two tensor-parallel ranks."""
    name, form_name, indices = WEIGHED[title]
    row = find_family(name)
    role = row.load(row.needs)(folder / title.partition(" ")[0]).roles[0]
    [form] = [form for form in role.forms if form.name == form_name]
    for tp, key in ((1, "bytes"), (2, "bytes_of_two")):
        counted = sum(role.held[index].nbytes(form, tp) for index in indices)
        assert counted == found[title][key], (tp, form)


@pytest.mark.parametrize(
    ("title", "path"),
    [
        ("lance thinker", "lance_bf16/Lance_3B"),
        ("lance video thinker", "lance_bf16/Lance_3B_Video"),
        ("ming thinker", "ming_full"),
    ],
)
def test_the_adviser_counts_a_thinker(
    found: dict[str, Any], folder: Path, title: str, path: str
) -> None:
    [row] = [row for row in LANGUAGE_MODELS if row.name == ROWS[title.split()[0]]]
    [role] = row.load(row.needs)(folder / path).roles
    counted = role.weights(role.forms[0], role.splits[0])
    assert counted == pytest.approx(found[title]["bytes"], rel=ROUNDING)
