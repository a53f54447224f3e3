# SPDX-License-Identifier: Apache-2.0
"""What is on disk: safetensors headers, and the tensors a release must hold.

Only headers are read (8-byte little-endian length, JSON, then data; safetensors
format), so a 27 GB checkpoint is checked in well under a second and a truncated
file is found without reading its data. torch is not imported.
"""

import math
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_ext_gen.checkpoint.files import (
    is_there,
    open_regular,
    parse_json,
    read_json,
    refuse_pointer,
)
from sglang_ext_gen.errors import CheckpointError

FLOAT8 = ("F8_E4M3",)
FLOATS = ("BF16", "F16", "F32")
FLOAT32 = ("F32",)
INT64 = ("I64",)

# Bytes of one number, by the format's name of its dtype.
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
_LENGTH_BYTES = 8
# The format's own bound, and what a file of it can address.
_MAX_HEADER_BYTES = 100_000_000
_MAX_NUMBER = 2**63
_MAX_DIMENSIONS = 16
_SHOWN_ENTRY = 200


@dataclass(frozen=True)
class StoredTensor:
    """One tensor on disk, as its file's header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int
    file: Path


@dataclass(frozen=True)
class TensorSpec:
    """One tensor that a release must hold; ``dtypes`` are the accepted ones."""

    name: str
    shape: tuple[int, ...]
    dtypes: tuple[str, ...] = FLOATS


def linear_specs(
    name: str, out_features: int, in_features: int, *, bias: bool, is_fp8: bool
) -> Iterator[TensorSpec]:
    """Tensors of a linear: row-wise FP8 weight and scale, or a plain weight."""
    dtypes = FLOAT8 if is_fp8 else FLOATS
    yield TensorSpec(f"{name}.weight", (out_features, in_features), dtypes)
    if is_fp8:
        yield TensorSpec(f"{name}.weight_scale", (out_features,), FLOAT32)
    if bias:
        yield TensorSpec(f"{name}.bias", (out_features,))


def has_float8(tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether a component is stored in FP8. No config key says so reliably."""
    return any(tensor.dtype in FLOAT8 for tensor in tensors.values())


def check_tensors(
    specs: Iterable[TensorSpec],
    tensors: Mapping[str, StoredTensor],
    *,
    where: str,
    unchecked: tuple[str, ...] = (),
) -> list[str]:
    """Compare what is on disk with what must be there.

    Args:
        specs: Every tensor that must be there.
        tensors: What is there, by name.
        where: Component for the messages, such as ``"transformer/"``.
        unchecked: Prefixes of names that may be there and are not looked at.

    Returns:
        One line per problem, naming the tensor, what was found and what is
        expected. Empty when the component is complete.
    """
    expected = {spec.name: spec for spec in specs}
    problems = [
        problem
        for spec in expected.values()
        for problem in _compare(spec, tensors.get(spec.name))
    ]
    problems += [
        f"{name} is not part of this release{_scale_note(name, tensors)}"
        for name in tensors
        if name not in expected and not name.startswith(unchecked)
    ]
    return [f"{where}: {problem}" for problem in problems]


def _compare(spec: TensorSpec, found: StoredTensor | None) -> Iterator[str]:
    if found is None:
        is_scale = spec.name.endswith(".weight_scale")
        note = " (FP8 weight without its scale)" if is_scale else ""
        yield f"{spec.name} is missing{note}, expected {_describe(spec)}"
        return
    if found.shape != spec.shape:
        yield f"{spec.name} has shape {found.shape}, expected {spec.shape}"
    if found.dtype not in spec.dtypes:
        yield f"{spec.name} is {found.dtype}, expected {' or '.join(spec.dtypes)}"


def _describe(spec: TensorSpec) -> str:
    return f"{' or '.join(spec.dtypes)} {spec.shape}"


def _scale_note(name: str, tensors: Mapping[str, StoredTensor]) -> str:
    weight = tensors.get(name.removesuffix("_scale"))
    if not name.endswith(".weight_scale") or (weight and weight.dtype in FLOAT8):
        return ""
    return " (scale without an FP8 weight)"


def read_tensors(file: Path) -> dict[str, StoredTensor]:
    """Headers of one component: ``file``, or the shards of its index.

    ``<file>.index.json`` wins when it exists, as with the vendor's loader. Shards
    without their index (``<stem>-00001-of-00003.safetensors``) are taken when all of
    them are there.

    Raises:
        CheckpointError: The file, its index or one of its shards is missing,
            damaged or inconsistent.
    """
    index_file = file.with_name(f"{file.name}.index.json")
    if os.path.exists(index_file):
        return _read_shards(index_file)
    if not is_there(file) and (shards := find_shards(file)):
        return _join(shards, file)
    return read_header(file)


def find_shards(file: Path) -> list[Path]:
    """The shards of a file by their names, whether or not an index lists them.

    Raises:
        CheckpointError: Some of them are missing, or they are of two sets.
    """
    name = re.compile(rf"{re.escape(file.stem)}-(\d+)-of-(\d+){re.escape(file.suffix)}")
    paths = file.parent.iterdir() if file.parent.is_dir() else ()
    found = {
        (int(match[2]), int(match[1])): path
        for path in paths
        if (match := name.fullmatch(path.name))
    }
    if not found:
        return []
    count = max(found)[0]
    missing = [n for n in range(1, count + 1) if (count, n) not in found]
    if missing:
        raise CheckpointError(
            f"{file} has no index, and {len(missing)} of its {count} shards are "
            f"missing, number {missing[0]} first: the download is not complete"
        )
    if len(found) > count:
        raise CheckpointError(f"{file} has no index, and shards of more than one set")
    return [found[key] for key in sorted(found)]


def _join(shards: list[Path], file: Path) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        for name, tensor in read_header(shard).items():
            if name in tensors:
                first = tensors[name].file.name
                raise CheckpointError(f"{file}: {name} is in {first} and {shard.name}")
            tensors[name] = tensor
    return tensors


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Header of one safetensors file, with its offsets proved against the size.

    Raises:
        CheckpointError: The file is missing, truncated or not safetensors.
    """
    header, data_start, size = _parse_header(file)
    tensors = [
        _parse_entry(file, name, entry)
        for name, entry in header.items()
        if name != "__metadata__"
    ]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    end = 0
    for tensor in tensors:
        if tensor.offset != end:
            raise CheckpointError(
                f"{file} is damaged: {tensor.name} starts at byte {tensor.offset} "
                f"of the data, expected {end}"
            )
        end += tensor.nbytes
    if size != data_start + end:
        state = "truncated" if size < data_start + end else "damaged"
        raise CheckpointError(
            f"{file} is {state}: it has {size} bytes, "
            f"its header promises {data_start + end}"
        )
    return {tensor.name: tensor for tensor in tensors}


def _parse_header(file: Path) -> tuple[dict[str, Any], int, int]:
    """The JSON header, the position where the data start, and the file's size."""
    stream, size = open_regular(file)
    with stream:
        start = stream.read(_LENGTH_BYTES)
        refuse_pointer(file, start)
        length = struct.unpack("<Q", start)[0] if len(start) == _LENGTH_BYTES else size
        if _LENGTH_BYTES + length > size:
            raise CheckpointError(
                f"{file} is truncated or not safetensors: it has {size} bytes, "
                "not enough for its header"
            )
        if length > _MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{file} is not safetensors: its header would take {length} bytes, "
                f"the format allows {_MAX_HEADER_BYTES}"
            )
        text = stream.read(length)
    try:
        header = parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"{file} has no safetensors header: {error}") from error
    if not isinstance(header, dict) or not text.startswith(b"{"):
        raise CheckpointError(f"{file} has no safetensors header: not a JSON object")
    notes = header.get("__metadata__", {})
    if not isinstance(notes, dict) or not all(
        isinstance(note, str) for note in notes.values()
    ):
        raise CheckpointError(f"{file} is damaged: its __metadata__ are not all texts")
    return header, _LENGTH_BYTES + length, size


def _parse_entry(file: Path, name: str, entry: Any) -> StoredTensor:
    try:
        dtype, shape = entry["dtype"], _sizes(entry["shape"])
        start, end = _sizes(entry["data_offsets"])
        nbytes = math.prod(shape) * ITEM_BYTES[dtype]
    except (KeyError, TypeError, ValueError) as error:
        shown = str(entry)[:_SHOWN_ENTRY]
        raise CheckpointError(
            f"{file} is damaged: cannot read the entry of {name} ({shown})"
        ) from error
    if min(shape, default=0) < 0 or end - start != nbytes:
        raise CheckpointError(
            f"{file} is damaged: {name} is {dtype} {shape} ({nbytes} bytes) "
            f"but takes {end - start} bytes"
        )
    return StoredTensor(name, dtype, shape, nbytes, start, file)


def _sizes(values: Any) -> tuple[int, ...]:
    """A list of sizes as they stand in a header."""
    if not isinstance(values, list) or len(values) > _MAX_DIMENSIONS:
        raise TypeError("not a list of sizes")
    if not all(type(n) is int and abs(n) < _MAX_NUMBER for n in values):
        raise ValueError("not sizes")
    return tuple(values)


def _read_shards(index_file: Path) -> dict[str, StoredTensor]:
    weight_map = read_json(index_file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_file} has no weight_map")
    for name, shard in weight_map.items():
        if not _is_plain_name(shard):
            raise CheckpointError(
                f"{index_file}: {str(shard)[:_SHOWN_ENTRY]!r}, given for {name}, is "
                "not a plain file name"
            )
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        for name, tensor in read_header(index_file.with_name(shard)).items():
            if name in tensors:
                raise CheckpointError(
                    f"{index_file}: {name} is in {tensors[name].file.name} "
                    f"and in {shard}"
                )
            if name not in weight_map:
                raise CheckpointError(
                    f"{index_file} does not list {name}, which is in {shard}"
                )
            tensors[name] = tensor
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].file.name != shard:
            raise CheckpointError(f"{index_file}: {name} is not in {shard}")
    return tensors


def _is_plain_name(name: Any) -> bool:
    """Whether it can only be a file of the same folder."""
    return isinstance(name, str) and name not in ("", "..") and Path(name).name == name
