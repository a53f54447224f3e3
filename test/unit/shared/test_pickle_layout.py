# SPDX-License-Identifier: Apache-2.0
"""What a pickle holds, told without unpickling; and that torch then finds the same."""

import io
import os
import pickle
import random
import shutil
import struct
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

from checkpoint_damage import RunsACommand
from conftest import GOLDEN_ROOT
from sglang_ext_gen.checkpoint.pickle_layout import is_stand_in, read_pickle_layout
from sglang_ext_gen.checkpoint.pickles import read_pickle
from sglang_ext_gen.cli.doctor import examine_model
from sglang_ext_gen.errors import CheckpointError

LANCE = GOLDEN_ROOT / "lance/checkpoint"
MING = GOLDEN_ROOT / "ming_omni/checkpoint"
MAPPER = MING / "byt5/byt5_mapper/byt5_mapper.pt"
RELEASED = (
    LANCE / "Wan2.2_VAE.pth",
    MING / "byt5/byt5_model/byt5_model.pt",
    MAPPER,
)


def agree(file: Path) -> None:
    """Both readers find the same tensors."""
    stored, tensors = read_pickle_layout(file), read_pickle(file)
    assert {name: (t.shape, t.nbytes) for name, t in stored.items()} == {
        name: (tuple(t.shape), t.nbytes) for name, t in tensors.items()
    }


@pytest.mark.parametrize("file", RELEASED, ids=lambda file: file.name)
def test_golden_pickles(file: Path) -> None:
    agree(file)


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)},
        lambda: {"view": torch.arange(12.0).reshape(3, 4).t()[1:]},
        lambda: {"scalar": torch.tensor(1.0), "none": torch.ones(0, 3)},
        lambda: {"half": torch.ones(2).half(), "long": torch.ones(2).long()},
        lambda: {"p": torch.nn.Parameter(torch.ones(2))},
        lambda: torch.nn.Sequential(torch.nn.Linear(2, 3)).state_dict(),
        dict,
    ],
)
def test_state_dicts_as_torch_writes_them(
    tmp_path: Path, make: Callable[[], dict[str, Any]]
) -> None:
    torch.save(make(), tmp_path / "m.pt")
    agree(tmp_path / "m.pt")


def test_views_that_share_a_storage(tmp_path: Path) -> None:
    whole = torch.arange(10.0)
    torch.save({"a": whole[:4], "b": whole[4:]}, tmp_path / "m.pt")
    agree(tmp_path / "m.pt")


# --- refused ---


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"x": RunsACommand(Path("never"))}, r"it asks for \w+\.system"),
        ({"x": {"y": torch.ones(1)}}, "not a flat dict of tensors"),
        ({"x": 3}, "not a flat dict of tensors"),
        (torch.ones(1), "not a flat dict of tensors"),
        ([torch.ones(1)], "unknown operation EMPTY_LIST"),
        ({3: torch.ones(1)}, "a key that is no text"),
        ({"x": torch.ones(2, dtype=torch.float8_e4m3fn)}, "rebuild_tensor_v3"),
        ({"x": torch.ones(2).to_sparse()}, "it asks for"),
        ({"x": torch.ones(2, dtype=torch.complex64)}, "ComplexFloatStorage"),
        ({"x": torch.nn.Linear(1, 1)}, r"it asks for torch\.nn"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, value: object, reason: str) -> None:
    file = tmp_path / "m.pt"
    torch.save(value, file)
    for read in (read_pickle_layout, read_pickle):
        with pytest.raises(CheckpointError, match=rf"m\.pt is refused.*{reason}"):
            read(file)


def test_a_plain_pickle_and_the_old_format_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "m.pt"
    torch.save({"a": torch.ones(1)}, file, _use_new_zipfile_serialization=False)
    for content in (file.read_bytes(), pickle.dumps({"a": 1}), b"", b"PK\x03\x04"):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="is refused"):
            read_pickle_layout(file)


def rewrite(
    file: Path,
    content: bytes | None = None,
    compression: int = zipfile.ZIP_STORED,
    more: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """A copy of the mapper's archive with another ``data.pkl``, or more entries."""
    with (
        zipfile.ZipFile(MAPPER) as source,
        zipfile.ZipFile(file, "w", compression) as target,
    ):
        for name in source.namelist():
            is_program = name.endswith("/data.pkl")
            data = source.read(name)
            target.writestr(name, content if is_program and content else data)
        for name, data in more.items():
            target.writestr(name, data)


STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00lsR.", "it asks for os.system"),
        (b"\x80\x02ctorch\nload\n.", "it asks for torch.load"),
        (b"\x80\x02cbuiltins\neval\n.", "it asks for builtins.eval"),
        (b"\x80\x02(lios\nsystem\n.", "unknown operation"),
        (b"\x80\x02\x93.", "unknown operation STACK_GLOBAL"),
        (b"\x80\x02R.", "without its operand"),
        (b"\x80\x02u.", "without its operands"),
        (b"\x80\x02h\x05.", "never made"),
        (b"\x80\x02}X\x01\x00\x00\x00a", "damaged"),
        (b"\x80\x02}X\xff\xff\xff\x7fa.", "damaged"),
        (b"\x80\x02" + b"0" * 10, "unknown operation POP"),
        (b"\x80\x02" + b")" * 600_000, "over 500000 operations"),
        (b"\x80\x02" + b")" * 5_000_000, "would take 5000002 bytes"),
        (b"\x80\x02" + b")" + b"\x85" * 400_000 + b".", "not a flat dict"),
        (b"\x80\x02" + STORAGE + b"J\x00\x00\x00\x7ftQ.", "storage 0 is missing or"),
        (b"\x80\x02" + STORAGE + b"J\xff\xff\xff\xfftQ.", "storage 0 is missing or"),
        (b"\x80\x02)Q.", "a reference to something"),
        (b"\x80\x02}}b.", "no state dict"),
    ],
)
def test_hostile_operations(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "m.pt"
    rewrite(file, content)
    start = time.process_time()
    with pytest.raises(CheckpointError, match=reason):
        read_pickle_layout(file)
    assert time.process_time() - start < 5
    with pytest.raises(CheckpointError, match=reason):
        read_pickle(file)


def test_hostile_archives(tmp_path: Path) -> None:
    file = tmp_path / "m.pt"
    rewrite(file)
    agree(file)
    rewrite(file, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="is compressed"):
        read_pickle_layout(file)
    rewrite(file, more={"byt5_mapper/constants.pkl": b"\x80\x02)."})
    with pytest.raises(CheckpointError, match="a TorchScript program"):
        read_pickle_layout(file)
    with pytest.warns(UserWarning, match="Duplicate name"):
        rewrite(file, more={"byt5_mapper/data.pkl": b"\x80\x02}."})
    with pytest.raises(CheckpointError, match="comes twice"):
        read_pickle_layout(file)
    rewrite(file, more={"n" * 60_000 + str(i): b"" for i in range(80)})
    with pytest.raises(CheckpointError, match="its list of contents would take"):
        read_pickle_layout(file)


def test_a_bomb_is_not_expanded(tmp_path: Path) -> None:
    file = tmp_path / "m.pt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("m/data.pkl", bytes(200_000_000))
        target.writestr("m/version", b"3\n")
    with pytest.raises(CheckpointError, match="is compressed"):
        read_pickle_layout(file)


def test_a_named_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.pt")
    for read in (read_pickle_layout, read_pickle):
        with pytest.raises(CheckpointError, match="is a named pipe, not a file"):
            read(tmp_path / "m.pt")


def flipped(content: bytes, rng: random.Random) -> bytes:
    """One bit changed somewhere but in the tensors' own numbers."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        infos = archive.infolist()
    names = [info for info in infos if "/data/" not in info.filename]
    spans = [(0, infos[0].header_offset + 3000)] if names else []
    start = struct.unpack("<I", content[-6:-2])[0]
    spans.append((start, len(content)))
    low, high = rng.choice(spans)
    place = rng.randrange(low, high)
    changed = bytearray(content)
    changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def test_what_this_accepts_torch_loads_alike(tmp_path: Path) -> None:
    rng, file = random.Random(14), tmp_path / "m.pt"
    content = MAPPER.read_bytes()
    accepted = 0
    for _ in range(400):
        file.write_bytes(flipped(content, rng))
        try:
            read_pickle_layout(file)
        except CheckpointError:
            with pytest.raises(CheckpointError):
                read_pickle(file)
        else:
            accepted += 1
            agree(file)
    # Names, padding and unused fields of the archive may be anything.
    assert 20 < accepted < 380


# --- doctor ---


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (LANCE, "Wan2.2_VAE.pth"),
        (MING, "byt5/byt5_model/byt5_model.pt"),
        (MING, "byt5/byt5_mapper/byt5_mapper.pt"),
    ],
)
def test_doctor_judges_pickles(tmp_path: Path, source: Path, name: str) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "copy", symlinks=True))
    assert examine_model(copy)["problems"] == []
    tensors = {key: tensor.clone() for key, tensor in read_pickle(copy / name).items()}
    *_, last = tensors

    def problems(value: object) -> str:
        torch.save(value, copy / name)
        return "\n".join(examine_model(copy)["problems"])

    trace = tmp_path / "executed"
    assert "is refused" in problems({**tensors, "x": RunsACommand(trace)})
    assert not trace.exists()
    assert f"{last} has shape (2, 2)" in problems({**tensors, last: torch.ones(2, 2)})
    assert "surprise is not part" in problems({**tensors, "surprise": torch.ones(1)})
    del tensors[last]
    assert f"{last} is missing" in problems(OrderedDict(tensors))


@pytest.mark.parametrize(
    ("content", "stands_in"), [(b"PK", True), (b"P", False), (b"PK\x03", False)]
)
def test_only_two_bytes_stand_in_for_a_pickle_and_loading_refuses_them(
    tmp_path: Path, content: bytes, stands_in: bool
) -> None:
    file = tmp_path / "m.pt"
    file.write_bytes(content)
    assert is_stand_in(file) is stands_in
    for read in (read_pickle_layout, read_pickle):
        with pytest.raises(CheckpointError):
            read(file)
