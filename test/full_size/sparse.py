# SPDX-License-Identifier: Apache-2.0
"""Released checkpoints at full size without their weights: the data are holes.

``data/NAME.json.gz`` holds, for each file, its text, or its size, or its tensors in
their order: name, dtype, shape. Indexes are made from the shards; long vocabularies
were cut to what is looked at.
"""

import gzip
import json
import math
import re
import struct
from pathlib import Path
from typing import Any

ITEM_BYTES = {"F8_E4M3": 1, "BF16": 2, "F16": 2, "F32": 4, "I64": 8}
Tensors = list[tuple[str, str, list[int]]]
_DATA = Path(__file__).with_name("data")
_SHARD = re.compile(r"(.*)-\d+-of-\d+\.safetensors")


def write(name: str, root: Path) -> Path:
    """Make the files of a description in ``root``; returns it."""
    files: dict[str, Any] = json.loads(gzip.decompress(_file(name).read_bytes()))
    for relative, what in files.items():
        path = root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        if "text" in what:
            path.write_text(what["text"], "utf-8")
        elif "size" in what:
            write_hole(path, what["size"])
        else:
            write_tensors(path, what["tensors"])
    for folder in {path.parent for path in root.rglob("*.safetensors")}:
        _write_indexes(folder)
    return root


def write_tensors(path: Path, tensors: Tensors) -> None:
    """A safetensors file whose data are a hole."""
    header, end = {}, 0
    for name, dtype, shape in tensors:
        start, end = end, end + ITEM_BYTES[dtype] * math.prod(shape)
        entry = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        header[name] = entry
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    write_hole(path, 8 + len(text) + end)


def write_hole(path: Path, size: int) -> None:
    """Make a file this long; what is new takes no disk."""
    with path.open("ab") as file:
        file.truncate(size)


def read_tensors(path: Path) -> Tensors:
    """What ``write_tensors`` wrote."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return [(name, entry["dtype"], entry["shape"]) for name, entry in header.items()]


def _file(name: str) -> Path:
    return _DATA / f"{name}.json.gz"


def _write_indexes(folder: Path) -> None:
    maps: dict[str, dict[str, str]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if match := _SHARD.fullmatch(path.name):
            shards = maps.setdefault(match[1], {})
            shards |= {name: path.name for name, _, _ in read_tensors(path)}
    for stem, weight_map in maps.items():
        index = folder / f"{stem}.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}), "utf-8")
