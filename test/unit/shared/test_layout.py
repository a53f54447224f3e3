# SPDX-License-Identifier: Apache-2.0
"""Safetensors headers and their comparison with what must be there."""

import json
import struct
from pathlib import Path

import pytest

from checkpoint_damage import RawTensor, write_raw
from sglang_ext_gen.checkpoint.layout import (
    StoredTensor,
    TensorSpec,
    check_tensors,
    has_float8,
    linear_specs,
    read_header,
    read_json,
    read_tensors,
)
from sglang_ext_gen.errors import CheckpointError

A = RawTensor("F32", (2, 3), bytes(24))
B = RawTensor("BF16", (5,), bytes(10))


def stored(spec: TensorSpec, **changes: object) -> StoredTensor:
    values = {"dtype": spec.dtypes[0], "shape": spec.shape, **changes}
    return StoredTensor(spec.name, nbytes=0, offset=0, file=Path("f"), **values)  # type: ignore[arg-type]


# --- one file ---


def test_header(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    write_raw(file, {"a": A, "b": B})
    assert read_header(file) == {
        "a": StoredTensor("a", "F32", (2, 3), 24, 0, file),
        "b": StoredTensor("b", "BF16", (5,), 10, 24, file),
    }


@pytest.mark.parametrize("size", [0, 4, 30, -1])
def test_truncated_file_is_found_without_its_data(tmp_path: Path, size: int) -> None:
    file = tmp_path / "m.safetensors"
    write_raw(file, {"a": A, "b": B})
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"m\.safetensors is truncated"):
        read_header(file)


def test_trailing_bytes_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    write_raw(file, {"a": A})
    file.write_bytes(file.read_bytes() + b"0")
    with pytest.raises(CheckpointError, match="is damaged: it has"):
        read_header(file)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (RawTensor("F32", (3,), bytes(8)), r"a is F32 \(3,\) \(12 bytes\)"),
        (RawTensor("F12", (3,), bytes(8)), "cannot read the entry of a"),
        (RawTensor("F32", (-1, -2), bytes(8)), r"a is F32 \(-1, -2\)"),
    ],
)
def test_wrong_entries_are_named(
    tmp_path: Path, tensor: RawTensor, message: str
) -> None:
    file = tmp_path / "m.safetensors"
    write_raw(file, {"a": tensor})
    with pytest.raises(CheckpointError, match=message):
        read_header(file)


def test_overlapping_entries_are_refused(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    text = json.dumps({"a": entry, "b": entry}).encode()
    file = tmp_path / "m.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(CheckpointError, match="b starts at byte 0 of the data"):
        read_header(file)


@pytest.mark.parametrize("content", [b"[]", b"not json", b"\xff\xfe"])
def test_a_header_that_is_no_json_object(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "m.safetensors"
    file.write_bytes(struct.pack("<Q", len(content)) + content)
    with pytest.raises(CheckpointError, match="has no safetensors header"):
        read_header(file)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"m\.safetensors is missing"):
        read_tensors(tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff"])
def test_json_that_is_no_object(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_json(file)


# --- shards ---


def write_shards(folder: Path, weight_map: object) -> Path:
    write_raw(folder / "m-1.safetensors", {"a": A})
    write_raw(folder / "m-2.safetensors", {"b": B})
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "m.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    return folder / "m.safetensors"


GOOD_MAP = {"a": "m-1.safetensors", "b": "m-2.safetensors"}


def test_shards(tmp_path: Path) -> None:
    tensors = read_tensors(write_shards(tmp_path, GOOD_MAP))
    assert {name: tensor.file.name for name, tensor in tensors.items()} == GOOD_MAP


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({**GOOD_MAP, "c": "m-2.safetensors"}, r"c is not in m-2\.safetensors"),
        ({"a": "m-2.safetensors", "b": "m-1.safetensors"}, "a is not in m-2"),
        ({**GOOD_MAP, "c": "m-3.safetensors"}, r"m-3\.safetensors is missing"),
        ({"a": "m-1.safetensors", "c": "m-2.safetensors"}, "does not list b"),
        ({"a": "../m-1.safetensors"}, "not a plain file name"),
        ({}, "has no weight_map"),
        ([], "has no weight_map"),
    ],
)
def test_broken_index(tmp_path: Path, weight_map: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_tensors(write_shards(tmp_path, weight_map))


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    file = write_shards(tmp_path, GOOD_MAP)
    write_raw(tmp_path / "m-2.safetensors", {"b": B, "a": A})
    with pytest.raises(CheckpointError, match=r"a is in m-1\.safetensors and in m-2"):
        read_tensors(file)


def test_shards_without_their_index(tmp_path: Path) -> None:
    write_raw(tmp_path / "m-00001-of-00002.safetensors", {"a": A})
    file = tmp_path / "m.safetensors"
    with pytest.raises(
        CheckpointError, match="1 of its 2 shards are missing, number 2"
    ):
        read_tensors(file)
    write_raw(tmp_path / "m-00002-of-00002.safetensors", {"b": B})
    assert set(read_tensors(file)) == {"a", "b"}
    write_raw(tmp_path / "m-00002-of-00002.safetensors", {"a": A})
    with pytest.raises(
        CheckpointError, match=r"a is in m-00001-of-00002\.s.* and m-00"
    ):
        read_tensors(file)
    write_raw(tmp_path / "m-00001-of-00001.safetensors", {"a": A})
    with pytest.raises(CheckpointError, match="shards of more than one set"):
        read_tensors(file)


def test_files_that_were_not_fetched_are_called_so(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
    for name, read in (("m.safetensors", read_tensors), ("c.json", read_json)):
        file = tmp_path / name
        (tmp_path / f"{name}.incomplete").touch()
        with pytest.raises(CheckpointError, match="the download is not complete"):
            read(file)
        file.write_text(pointer)
        with pytest.raises(CheckpointError, match="a Git LFS pointer, not the file: "):
            read(file)
        file.unlink()
        file.symlink_to("../blobs/0123")
        with pytest.raises(CheckpointError, match=r"a link to \.\./blobs/0123, "):
            read(file)


def test_a_cache_of_links(tmp_path: Path) -> None:
    """As the hub's cache has it: names that link to blobs in another folder."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots"
    blobs.mkdir()
    snapshot.mkdir()
    write_raw(blobs / "0", {"a": A})
    (snapshot / "m-00001-of-00001.safetensors").symlink_to("../blobs/0")
    assert set(read_tensors(snapshot / "m.safetensors")) == {"a"}


# --- comparison ---

SPECS = list(linear_specs("proj", 4, 8, bias=True, is_fp8=True))


def test_linear_specs() -> None:
    assert [(s.name, s.shape) for s in SPECS] == [
        ("proj.weight", (4, 8)),
        ("proj.weight_scale", (4,)),
        ("proj.bias", (4,)),
    ]
    plain = list(linear_specs("proj", 4, 8, bias=False, is_fp8=False))
    assert [s.name for s in plain] == ["proj.weight"]


def test_complete_tensors_have_no_problem() -> None:
    tensors = {spec.name: stored(spec) for spec in SPECS}
    assert has_float8(tensors)
    assert check_tensors(SPECS, tensors, where="x/") == []


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("proj.weight_scale", None, "is missing (FP8 weight without its scale)"),
        ("proj.bias", None, "is missing, expected BF16 or F16 or F32 (4,)"),
        ("proj.weight", {"shape": (8, 4)}, "has shape (8, 4), expected (4, 8)"),
        ("proj.weight", {"dtype": "BF16"}, "is BF16, expected F8_E4M3"),
    ],
)
def test_problems_say_what_and_what_instead(
    name: str, changes: dict[str, object] | None, problem: str
) -> None:
    tensors = {spec.name: stored(spec) for spec in SPECS}
    spec = next(spec for spec in SPECS if spec.name == name)
    del tensors[name]
    if changes is not None:
        tensors[name] = stored(spec, **changes)
    (found,) = check_tensors(SPECS, tensors, where="x/")
    assert found.startswith(f"x/: {name} {problem}")


def test_left_over_tensors_are_named_unless_unchecked() -> None:
    extra = [TensorSpec(n, (1,)) for n in ("visual.a", "b", "c.weight_scale")]
    tensors = {spec.name: stored(spec) for spec in [*SPECS, *extra]}
    problems = check_tensors(SPECS, tensors, where="x/", unchecked=("visual.",))
    assert problems == [
        "x/: b is not part of this release",
        "x/: c.weight_scale is not part of this release (scale without an FP8 weight)",
    ]
