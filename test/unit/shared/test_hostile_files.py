# SPDX-License-Identifier: Apache-2.0
"""Files that nobody should trust: each is refused by name, at once and unread."""

import json
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from checkpoint_damage import RawTensor, write_raw
from sglang_ext_gen.checkpoint.files import MAX_JSON_BYTES, open_regular, read_json
from sglang_ext_gen.checkpoint.layout import read_header, read_tensors
from sglang_ext_gen.cli.doctor import examine_model
from sglang_ext_gen.errors import CheckpointError

Reader = Callable[[Path], object]
READERS: tuple[Reader, ...] = (read_json, read_header, read_tensors)


@pytest.fixture(autouse=True)
def _at_once() -> Iterator[None]:
    start = time.process_time()
    yield
    # Far below what reading any of these as they ask would take.
    assert time.process_time() - start < 3


def make_socket(file: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        # The address of a socket must be short.
        before = Path.cwd()
        os.chdir(file.parent)
        try:
            server.bind(file.name)
        finally:
            os.chdir(before)


def loop(file: Path) -> None:
    other = file.with_name("other")
    file.symlink_to(other)
    other.symlink_to(file)


KINDS: dict[str, Callable[[Path], object]] = {
    "is a directory, not a file": Path.mkdir,
    "is a named pipe, not a file": os.mkfifo,
    "is a socket, not a file": make_socket,
    "is a device, not a file": lambda file: file.symlink_to("/dev/zero"),
    "is a link that leads to itself": loop,
    "is a link to nowhere, which is not there": lambda f: f.symlink_to("nowhere"),
    "is missing": lambda file: None,
}


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("message", KINDS)
def test_only_regular_files_are_opened(
    tmp_path: Path, message: str, read: Reader
) -> None:
    file = tmp_path / "some.safetensors"
    KINDS[message](file)
    with pytest.raises(CheckpointError, match=rf"some\.safetensors.*{message}"):
        read(file)


def test_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text('{"a": 1}', "utf-8")
    (tmp_path / "config.json").symlink_to("blob")
    assert read_json(tmp_path / "config.json") == {"a": 1}


@pytest.mark.parametrize("name", ["n" * 5000, "zero\0"])
def test_names_that_cannot_be(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be"):
        open_regular(tmp_path / name)


def test_a_file_that_may_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    (tmp_path / "config.json").touch()
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read: Perm"):
        read_json(tmp_path / "config.json")


# --- JSON ---


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested deeper than 64 levels"),
        (b'{"a":' * 100_000, "nested deeper than 64 levels"),
        (b'{"a":' + b"[" * 70 + b"]" * 70 + b"}", "nested deeper than 64 levels"),
        (b'{"a": 1e400}', "1e400 is not a finite number"),
        (b'{"a": [-1e400]}', "-1e400 is not a finite number"),
        (b'{"a": NaN}', "NaN is not a finite number"),
        (b'{"a": -Infinity}', "-Infinity is not a finite number"),
        (b'{"a": 1' + b"0" * 3000 + b"}", "is not a number that can be meant"),
        (b'{"a": 1' + b"0" * 9000 + b"}", "is not a number that can be meant"),
        (b'{"a": 1, "b": 2, "a": 3}', "key 'a' comes twice"),
        (b'{"a": "\xff"}', "can't decode"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"", "Expecting value"),
        (b"null", "must hold a JSON object"),
    ],
)
def test_json_that_no_config_is(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"config\.json.*{message}"):
        read_json(file)
    weights = tmp_path / "m.safetensors"
    weights.write_bytes(struct.pack("<Q", len(content)) + content)
    with pytest.raises(CheckpointError, match=r"m\.safetensors has no safetensors"):
        read_header(weights)


def test_what_real_configs_hold_is_read(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    values = {"model_max_length": int(1e30), "theta": 1e6, "name": "\U0001f600 é"}
    for as_ascii in (True, False):
        file.write_text(json.dumps(values, ensure_ascii=as_ascii), "utf-8")
        assert read_json(file) == values


def test_a_config_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.touch()
    os.truncate(file, 2**30)
    with pytest.raises(CheckpointError, match=rf"at most {MAX_JSON_BYTES}"):
        read_json(file)


# --- safetensors ---


@pytest.mark.parametrize("gigabytes", [2, 40])
def test_a_header_of_gigabytes_is_refused_by_its_length(
    tmp_path: Path, gigabytes: int
) -> None:
    file = tmp_path / "m.safetensors"
    length = gigabytes * 10**9
    file.write_bytes(struct.pack("<Q", length) + b"{")
    with pytest.raises(CheckpointError, match=r"m\.safetensors is truncated"):
        read_header(file)
    os.truncate(file, length + 100)
    with pytest.raises(CheckpointError, match=f"header would take {length} bytes"):
        read_header(file)


def test_a_pointer_of_git_lfs_is_called_one(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        read_header(file)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        3,
        "text",
        [],
        {},
        {"dtype": "F32", "shape": [1], "data_offsets": None},
        {"dtype": "F32", "shape": [1], "data_offsets": [0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2**64], "data_offsets": [0, 2**66]},
        {"dtype": "F32", "shape": [1] * 10_000, "data_offsets": [0, 4]},
        {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]},
        {"dtype": None, "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "f32", "shape": [1], "data_offsets": [0, 4]},
    ],
)
def test_odd_entries_are_named(tmp_path: Path, entry: object) -> None:
    text = json.dumps({"odd": entry}).encode()
    file = tmp_path / "m.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(CheckpointError, match="cannot read the entry of odd"):
        read_header(file)


@pytest.mark.parametrize(
    "text", [b'{"__metadata__": 3}', b'{"__metadata__": {"a": 1}}']
)
def test_notes_that_safetensors_refuses(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "m.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(CheckpointError, match="its __metadata__ are not all texts"):
        read_header(file)


@pytest.mark.parametrize(
    "shard", ["", ".", "..", "/etc/passwd", "a/b", "../m", 5, None, ["m"], {"m": 1}]
)
def test_odd_shards_of_an_index(tmp_path: Path, shard: object) -> None:
    file = tmp_path / "m.safetensors"
    index = {"weight_map": {"odd": shard}}
    file.with_name(f"{file.name}.index.json").write_text(json.dumps(index), "utf-8")
    with pytest.raises(CheckpointError, match="given for odd, is not a plain file"):
        read_tensors(file)


@pytest.mark.parametrize("shard", ["n" * 5000, "zero\0", "folder"])
def test_shards_that_cannot_be_opened(tmp_path: Path, shard: str) -> None:
    (tmp_path / "folder").mkdir()
    file = tmp_path / "m.safetensors"
    write_raw(file, {"a": RawTensor("F32", (1,), bytes(4))})
    index = {"weight_map": {"a": shard}}
    file.with_name(f"{file.name}.index.json").write_text(json.dumps(index), "utf-8")
    with pytest.raises(CheckpointError, match=r"cannot be|is a directory"):
        read_tensors(file)


# --- doctor ---


def test_doctor_names_a_folder_that_may_not_be_entered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path / "transformer"))

    monkeypatch.setattr("sglang_ext_gen.cli.doctor.family_of", refuse)
    [problem] = examine_model(tmp_path)["problems"]
    assert problem == f"{tmp_path}/transformer cannot be read: Permission denied"
