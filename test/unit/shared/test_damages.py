# SPDX-License-Identifier: Apache-2.0
"""Hundreds of seeded damages: each is named by the check, or provably harmless.

A damage is harmless where everything that loading reads of a checkpoint, which is each
component's config and the layout of its tensors, is as it was; or where it changed what
any release could have: a value of a weight, a number or switch of a config within its
kind, the name of a font.

``DAMAGES=500 pytest test/unit/shared/test_damages.py`` does all of them.
"""

import json
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from checkpoint_damage import copy_checkpoint
from conftest import GOLDEN_ROOT
from sglang_ext_gen.checkpoint.component import StoredComponent
from sglang_ext_gen.cli.doctor import examine_model
from sglang_ext_gen.errors import CheckpointError, ConfigError
from sglang_ext_gen.models.ideogram4 import checkpoint as ideogram4
from sglang_ext_gen.models.lance import checkpoint as lance
from sglang_ext_gen.models.ming_omni import checkpoint as ming_omni
from sglang_ext_gen.models.ming_omni.thinker import checkpoint as thinker
from sglang_ext_gen.models.qwen_image import checkpoint as qwen_image

COUNT = int(os.environ.get("DAMAGES", "60"))
CHECKPOINTS = {
    "ideogram4": ("ideogram4/ideogram-4-fp8-tiny", ideogram4.COMPONENTS),
    "lance": ("lance/checkpoint", lance.COMPONENTS),
    "ming_omni": (
        "ming_omni/checkpoint",
        (*ming_omni.COMPONENTS, ming_omni.SCHEDULER, thinker.THINKER),
    ),
    "qwen_image": ("qwen_image/t2i/Qwen-Image", qwen_image.COMPONENTS),
}
# What an edit of a JSON value may turn it into.
OTHERS: tuple[Any, ...] = (
    None,
    True,
    -1,
    0.5,
    "",
    "x",
    [],
    [[]],
    {},
    {"a": {}},
    10**30,
)

Damage = Callable[[Path, random.Random], str]


def flip_a_byte(file: Path, rng: random.Random) -> str:
    content = bytearray(file.read_bytes())
    # Most of a file are numbers of weights: the front is what a header is in.
    place = rng.randrange(rng.choice((min(len(content), 2000), len(content))))
    content[place] ^= rng.randrange(1, 256)
    file.write_bytes(content)
    return f"byte {place}"


def truncate(file: Path, rng: random.Random) -> str:
    size = rng.randrange(file.stat().st_size)
    os.truncate(file, size)
    return f"{size} bytes left"


def replace(file: Path, rng: random.Random) -> str:
    file.unlink()
    kind = rng.randrange(4)
    if kind == 0:
        file.mkdir()
    elif kind == 1:
        os.mkfifo(file)
    elif kind == 2:
        file.symlink_to(file)
    else:
        file.write_bytes(rng.choice((b"", b"{}", b"[]", b"null", bytes(100))))
    return f"kind {kind}"


def remove(file: Path, rng: random.Random) -> str:
    file.unlink()
    return ""


def edit_json(file: Path, rng: random.Random) -> str:
    values = json.loads(file.read_bytes())
    what = edit(values, rng)
    file.write_text(json.dumps(values), "utf-8")
    return what


def edit_header(file: Path, rng: random.Random) -> str:
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    what = edit(header, rng)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    return what


def edit(values: dict[str, Any], rng: random.Random) -> str:
    """Remove, rename or retype a key of an object or of one inside it."""
    while True:
        key = rng.choice(list(values))
        if not (isinstance(values[key], dict) and values[key] and rng.random() < 0.8):
            break
        values = values[key]
    kind = rng.choice(("remove", "rename", "retype", "swap"))
    old = values[key]
    if kind in ("remove", "rename"):
        del values[key]
    if kind == "rename":
        values[f"{key}_"] = old
    if kind == "retype":
        values[key] = rng.choice([other for other in OTHERS if other != old])
    if kind == "swap":
        other = rng.choice(list(values))
        values[key], values[other] = values[other], values[key]
    return f"{kind} {key}: {old!r:.60} -> {values.get(key)!r:.60}"


def damages_of(file: Path) -> list[Damage]:
    common: list[Damage] = [flip_a_byte, truncate, replace, remove]
    if file.suffix == ".json":
        return [*common, edit_json, edit_json, edit_json]
    if file.suffix == ".safetensors":
        return [*common, edit_header, edit_header, edit_header]
    return common


def parts(components: Any, root: Path) -> Iterator[StoredComponent[Any]]:
    for row in components:
        part = row.at(root)
        yield from part.parts.values() or [part]


def state(components: Any, root: Path) -> list[Any]:
    """All that loading reads, but for values of weights."""
    found: list[Any] = []
    for part in parts(components, root):
        for read in (lambda p: p.config, lambda p: sorted(p.stored.items())):
            try:
                found.append(read(part))
            except (CheckpointError, ConfigError) as error:
                found.append(type(error))
    return found


def problems_of(root: Path) -> list[str]:
    return examine_model(root)["problems"]


def only_numbers_differ(before: Any, after: Any) -> bool:
    """Whether two states are alike but for numbers, and dtypes of the same width."""
    if isinstance(before, (list, tuple)) and type(before) is type(after):
        return len(before) == len(after) and all(
            only_numbers_differ(*pair) for pair in zip(before, after, strict=True)
        )
    numbers = (int, float, bool)
    if type(before) in numbers and type(after) in numbers:
        return True
    if all(isinstance(text, str) and text[:1] == "<" for text in (before, after)):
        return True  # the text of a token, which a table of fonts gives
    if type(before) is type(after) and hasattr(before, "__dict__"):
        return only_numbers_differ(
            list(vars(before).values()), list(vars(after).values())
        )
    return before == after or (before, after) in (("BF16", "F16"), ("F16", "BF16"))


@pytest.mark.parametrize("family", CHECKPOINTS)
def test_damages_are_named_or_harmless(family: str, tmp_path: Path) -> None:
    source, components = CHECKPOINTS[family]
    root = copy_checkpoint(GOLDEN_ROOT / source, tmp_path / "copy")
    files = sorted(file for file in root.rglob("*") if file.is_file())
    assert problems_of(root) == []
    before = state(components, root)
    rng, spare = random.Random(family), tmp_path / "spare"
    named = 0
    silent = []
    for index in range(COUNT):
        file = rng.choice(files)
        shutil.copyfile(file, spare)
        damage = rng.choice(damages_of(file))
        what = damage(file, rng)
        label = f"{index}: {damage.__name__} {file.relative_to(root)} {what}"
        try:
            if problems_of(root):
                named += 1
            elif not only_numbers_differ(before, state(components, root)):
                silent.append(label)
        except Exception as error:  # what a user would see as a traceback
            silent.append(f"{label} raised {error!r}")
        finally:
            if file.is_dir() and not file.is_symlink():
                file.rmdir()
            file.unlink(missing_ok=True)
            shutil.copyfile(spare, file)
    assert not silent, "\n".join(silent)
    assert named > COUNT / 3


def test_a_broken_config_does_not_hide_whose_weights_are_there(tmp_path: Path) -> None:
    for name in ("config.json", "transformer/config.json"):
        root = copy_checkpoint(GOLDEN_ROOT / "ming_omni/checkpoint", tmp_path / name)
        (root / name).write_bytes(b"{")
        problems = "\n".join(problems_of(root))
        assert f"{root / name} is not readable JSON" in problems


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", None),
        ("num_attention_heads", 0),
        ("num_attention_heads", "4"),
        ("num_hidden_layers", 10**30),
        ("layer_types", 5),
        ("rope_parameters", [1]),
    ],
)
def test_odd_sizes_of_the_connector_are_named(
    key: str, value: object, tmp_path: Path
) -> None:
    root = copy_checkpoint(GOLDEN_ROOT / "ming_omni/checkpoint", tmp_path / "copy")
    file = root / "connector/config.json"
    values = json.loads(file.read_bytes())
    values.pop("head_dim", None)
    values.setdefault("layer_types", ["full_attention"])
    file.write_text(json.dumps({**values, key: value}), "utf-8")
    assert any("connector/config.json" in line for line in problems_of(root))


def test_a_damaged_variant_of_lance_is_named(tmp_path: Path) -> None:
    root = copy_checkpoint(GOLDEN_ROOT / "lance/checkpoint", tmp_path / "copy")
    os.truncate(root / "Lance_3B/model.safetensors", 1000)
    assert "Lance_3B/model.safetensors is truncated" in problems_of(root)[0]


def test_checking_imports_no_torch() -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from sglang_ext_gen.cli.doctor import examine_model\n"
        "for path in sys.argv[1:]: assert not examine_model(Path(path))['problems']\n"
        "assert not {'torch', 'sglang', 'transformers'} & sys.modules.keys()"
    )
    roots = [str(GOLDEN_ROOT / source) for source, _ in CHECKPOINTS.values()]
    subprocess.run([sys.executable, "-c", program, *roots], check=True, timeout=60)
