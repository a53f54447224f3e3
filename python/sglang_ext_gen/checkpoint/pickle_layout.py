# SPDX-License-Identifier: Apache-2.0
"""What a vendor's pickle holds, read without running any of it and without torch.

A ``.pt`` or ``.pth`` file is a zip archive: ``data.pkl`` builds a dict of tensors, and
``data/0``, ``data/1``, ... are their numbers. Here ``data.pkl`` is not unpickled. Its
operations are gone through on a stack of plain values, and only those that make a flat
dict of tensors are known: a subset of what ``torch.load(weights_only=True)`` accepts,
which reads the file after this did. Everything is bounded before it is read.
"""

import io
import math
import os
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_ext_gen.checkpoint.files import is_there, open_regular
from sglang_ext_gen.checkpoint.layout import ITEM_BYTES, StoredTensor
from sglang_ext_gen.errors import CheckpointError

# Far above any release: Lance's VAE takes 200 tensors, 50 kB of operations.
_MAX_DIRECTORY_BYTES = 4 * 2**20
_MAX_PICKLE_BYTES = 4 * 2**20
_MAX_OPERATIONS = 500_000
_MAX_DIMENSIONS = 16
_ENTRY = b"PK\x03\x04"
# What a description of a release at full size has in a pickle's place.
_STAND_IN = b"PK"
_LOCAL_HEADER = struct.Struct("<4s22xHH")

_END = struct.Struct("<4sHHHH8xH")
_LARGE_END = struct.Struct("<4sQ4xIIQQQQ")
_LOCATOR = struct.Struct("<4sIQI")
# Names in UTF-8, and sizes that follow the data.
_FLAGS = 0x0808

_STORAGES = {
    "torch BFloat16Storage": "BF16",
    "torch BoolStorage": "BOOL",
    "torch ByteStorage": "U8",
    "torch CharStorage": "I8",
    "torch DoubleStorage": "F64",
    "torch FloatStorage": "F32",
    "torch HalfStorage": "F16",
    "torch IntStorage": "I32",
    "torch LongStorage": "I64",
    "torch ShortStorage": "I16",
}
_DICTS = (dict, OrderedDict)
_NO_HOOKS: OrderedDict[str, Any] = OrderedDict()
_GLOBALS = (
    "collections OrderedDict",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    *_STORAGES,
)


# What a zip directory or a pickle that is cut off or shot through raises.
_DAMAGED = (
    zipfile.BadZipFile,
    OSError,
    ValueError,
    EOFError,
    struct.error,
    IndexError,
    OverflowError,
    RuntimeError,
)


class _Refused(Exception):
    """Why a file is not a plain file of tensors."""


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: str
    items: int


@dataclass(frozen=True)
class _Tensor:
    dtype: str
    shape: tuple[int, ...]


def read_pickle_layout(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a pickle in the words of a safetensors header.

    Raises:
        CheckpointError: It is missing, is not a zip pickle of plain tensors, or asks
            for anything else to be built (a sign of a malicious file).
    """
    stream, _ = open_regular(file)
    with stream:
        try:
            storages, content = _open_archive(stream)
            tensors = _Machine(storages).run(content)
        except _Refused as error:
            raise refused(file, str(error)) from error
        except _DAMAGED as error:
            raise refused(file, f"damaged: {error}") from error
    if not isinstance(tensors, dict) or not all(
        isinstance(tensor, _Tensor) for tensor in tensors.values()
    ):
        raise CheckpointError(f"{file} is refused: it is not a flat dict of tensors")
    return {
        name: StoredTensor(
            name,
            tensor.dtype,
            tensor.shape,
            math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype],
            0,
            file,
        )
        for name, tensor in tensors.items()
    }


def is_stand_in(file: Path) -> bool:
    """Whether a file only says that a pickle belongs here; loading refuses it."""
    return is_there(file) and (
        os.path.getsize(file) == len(_STAND_IN) and file.read_bytes() == _STAND_IN
    )


def refused(file: Path, reason: str) -> CheckpointError:
    """The refusal of a pickle."""
    return CheckpointError(
        f"{file} is refused: it is not a plain file of tensors ({reason}). "
        "Download it again from the release"
    )


class _BoundedReader(io.BufferedReader):
    """Reads no piece that is larger than a zip directory may be."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise _Refused(f"its list of contents would take {size} bytes")
        return super().read(size)


def _open_archive(stream: io.BufferedReader) -> tuple[dict[str, int], bytes]:
    """Bytes of each storage by its key, and the content of ``data.pkl``."""
    with _BoundedReader(stream.raw) as bounded:
        if bounded.read(4) != _ENTRY:
            raise _Refused("no zip archive")
        with zipfile.ZipFile(bounded) as archive:
            _check_end(bounded, archive)
            return _read_archive(bounded, archive)


def _read_archive(
    stream: io.BufferedReader, archive: zipfile.ZipFile
) -> tuple[dict[str, int], bytes]:
    entries = {entry.filename: entry for entry in archive.infolist()}
    if len(entries) < len(archive.infolist()):
        raise _Refused("an entry of the archive comes twice")
    # As torch does: the first entry's folder is the archive's name.
    root = next(iter(entries), "").partition("/")[0]
    if f"{root}/constants.pkl" in entries:
        raise _Refused("a TorchScript program")
    for entry in entries.values():
        _check_entry(stream, entry, archive.start_dir)
    for name in ("data.pkl", "version"):
        if f"{root}/{name}" not in entries:
            raise _Refused(f"no {name}")
    operations = entries[f"{root}/data.pkl"]
    if operations.file_size > _MAX_PICKLE_BYTES:
        raise _Refused(f"its data.pkl would take {operations.file_size} bytes")
    alignment = entries.get(f"{root}/.storage_alignment")
    if alignment is not None and (
        alignment.file_size > 8 or not archive.read(alignment).isdigit()
    ):
        raise _Refused("its alignment is no number")
    order = entries.get(f"{root}/byteorder")
    if order is not None and (order.file_size > 6 or archive.read(order) != b"little"):
        raise _Refused("its numbers are not little-endian")
    storages = {
        name.removeprefix(f"{root}/data/"): entry.file_size
        for name, entry in entries.items()
        if name.startswith(f"{root}/data/")
    }
    return storages, archive.read(operations)


def _check_end(stream: io.BufferedReader, archive: zipfile.ZipFile) -> None:
    """The archive is one file and ends with its directory, as torch writes it.

    What ``zipfile`` takes lightly here is an error to torch.
    """
    entries = len(archive.infolist())
    position = stream.seek(-_END.size, io.SEEK_END)
    if _END.unpack(stream.read(_END.size)) != (b"PK\x05\x06", 0, 0, *[entries] * 2, 0):
        raise _Refused("the end of the archive does not fit it")
    large = position - _LARGE_END.size - _LOCATOR.size
    stream.seek(max(0, large))
    record = _LARGE_END.unpack(stream.read(_LARGE_END.size))
    locator = _LOCATOR.unpack(stream.read(_LOCATOR.size))
    if locator[0] != b"PK\x06\x07":
        return  # small enough to do without
    directory = (large - archive.start_dir, archive.start_dir)
    is_right = record == (b"PK\x06\x06", 44, 0, 0, entries, entries, *directory)
    if not is_right or locator[1:] != (0, large, 1):
        raise _Refused("the end of the archive does not fit it")


def _check_entry(
    stream: io.BufferedReader, entry: zipfile.ZipInfo, directory: int
) -> None:
    """An entry is stored as it is, under its own name, before the directory."""
    name = entry.orig_filename.encode("utf-8", "replace")
    if entry.compress_type or entry.file_size != entry.compress_size:
        raise _Refused(f"{entry.filename[:100]} is compressed")
    if entry.flag_bits & ~_FLAGS or entry.volume:
        raise _Refused(f"{entry.filename[:100]} is encrypted or elsewhere")
    stream.seek(entry.header_offset)
    mark, name_bytes, more_bytes = _LOCAL_HEADER.unpack(stream.read(_LOCAL_HEADER.size))
    if mark != _ENTRY or stream.read(name_bytes) != name:
        raise _Refused(f"{entry.filename[:100]} is not where the archive says")
    if stream.tell() + more_bytes + entry.file_size > directory:
        raise _Refused(f"{entry.filename[:100]} is cut off")


class _Machine:
    """Goes through the operations of a pickle on a stack of plain values.

    Args:
        storages: Bytes of each storage by its key.
    """

    def __init__(self, storages: dict[str, int]) -> None:
        self._storages = storages
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        """What the operations build."""
        result = None
        for count, (operation, argument, _) in enumerate(pickletools.genops(content)):
            if count >= _MAX_OPERATIONS:
                raise _Refused(f"over {_MAX_OPERATIONS} operations")
            if operation.name == "STOP":
                result = self._pop()
                break
            step = _STEPS.get(operation.name)
            if step is None:
                raise _Refused(f"unknown operation {operation.name}")
            step(self, argument)
        return result

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack:
            raise _Refused("an operation without its operand")
        return self._stack.pop()

    def _mark(self, argument: Any) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _pop_mark(self) -> list[Any]:
        if not self._marks:
            raise _Refused("an operation without its operands")
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _tuple(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(items)))

    def _put(self, index: int) -> None:
        value = self._pop()
        self._memo[index] = value
        self._push(value)

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise _Refused("an operand that was never made")
        self._push(self._memo[index])

    def _global(self, name: str) -> None:
        if name not in _GLOBALS:
            raise _Refused(f"it asks for {'.'.join(name.split(' '))[:200]}")
        self._push(_Global(name))

    def _set_items(self, items: list[Any]) -> None:
        target = self._pop()
        if type(target) not in _DICTS or len(items) % 2:
            raise _Refused("items of something that is no dict")
        for name, value in zip(items[::2], items[1::2], strict=True):
            if type(name) is not str:
                raise _Refused("a key that is no text")
            name.encode("utf-8")  # half a character could not be printed
            target[name] = value
        self._push(target)

    def _set_item(self, argument: Any) -> None:
        value, name = self._pop(), self._pop()
        self._set_items([name, value])

    def _build(self, argument: Any) -> None:
        """The attribute of a state dict: versions of its modules, of no use here."""
        state, target = self._pop(), self._pop()
        is_noted = type(state) is dict and state.keys() == {"_metadata"}
        if type(target) is not OrderedDict or not is_noted:
            raise _Refused("attributes of something that is no state dict")
        self._push(target)

    def _persistent(self, argument: Any) -> None:
        match self._pop():
            case ("storage", _Global(name), str(key), str(), int(items)) if (
                name in _STORAGES
            ):
                pass
            case _:
                raise _Refused("a reference to something that is no storage")
        dtype = _STORAGES[name]
        if items < 0 or self._storages.get(key) != items * ITEM_BYTES[dtype]:
            raise _Refused(f"storage {key[:100]} is missing or of another size")
        self._push(_Storage(dtype, items))

    def _reduce(self, argument: Any) -> None:
        arguments, function = self._pop(), self._pop()
        name = function.name if isinstance(function, _Global) else "something"
        match name, arguments:
            case "collections OrderedDict", ():
                self._push(OrderedDict())
            case (
                "torch._utils _rebuild_tensor_v2",
                (_Storage() as storage, offset, shape, stride, bool(), hooks),
            ) if hooks == _NO_HOOKS:
                self._push(_tensor(storage, offset, shape, stride))
            case (
                "torch._utils _rebuild_parameter",
                (_Tensor() as tensor, bool(), hooks),
            ) if hooks == _NO_HOOKS:
                self._push(tensor)
            case _:
                called = name.replace(" ", ".")
                raise _Refused(f"a call of {called} with other arguments")


def _tensor(storage: _Storage, offset: Any, shape: Any, stride: Any) -> _Tensor:
    """A view of a storage, which must hold it."""
    if (
        type(shape) is not tuple
        or type(stride) is not tuple
        or not len(shape) == len(stride) <= _MAX_DIMENSIONS
        or not all(_is_size(number) for number in (offset, *shape, *stride))
    ):
        raise _Refused("a tensor with odd sizes")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if math.prod(shape) and last >= storage.items:
        raise _Refused("a tensor beyond its storage")
    return _Tensor(storage.dtype, shape)


def _is_size(number: Any) -> bool:
    return type(number) is int and 0 <= number < 2**63


def _constant(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, argument: machine._push(make())


def _argument(machine: _Machine, argument: Any) -> None:
    machine._push(argument)


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    return lambda machine, argument: machine._tuple(count)


def _nothing(machine: _Machine, argument: Any) -> None:
    pass


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _nothing,
    "MARK": _Machine._mark,
    "GLOBAL": _Machine._global,
    "REDUCE": _Machine._reduce,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._persistent,
    "SETITEM": _Machine._set_item,
    "SETITEMS": lambda machine, argument: machine._set_items(machine._pop_mark()),
    "TUPLE": lambda machine, argument: machine._push(tuple(machine._pop_mark())),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "EMPTY_TUPLE": _constant(tuple),
    "EMPTY_DICT": _constant(dict),
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "BININT": _argument,
    "BININT1": _argument,
    "BININT2": _argument,
    "LONG1": _argument,
    "BINUNICODE": _argument,
    "BINPUT": _Machine._put,
    "LONG_BINPUT": _Machine._put,
    "BINGET": _Machine._get,
    "LONG_BINGET": _Machine._get,
}
