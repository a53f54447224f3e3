# SPDX-License-Identifier: Apache-2.0
"""Opening the files of a checkpoint that nobody vouches for.

Only regular files are opened (a named pipe would wait for ever), only within a size
that is known before anything is read, and JSON is what RFC 8259 calls JSON, within a
depth and numbers that no later reader stumbles over. Everything else is a
``CheckpointError`` that names the file.
"""

import errno
import json
import math
import os
import re
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from sglang_ext_gen.errors import CheckpointError

# Far above any release; a tokenizer of 150,000 tokens takes 20 MB.
MAX_JSON_BYTES = 64 * 2**20
_MAX_DEPTH = 64
# A tokenizer's "no limit" has 31 digits.
_MAX_DIGITS = 40
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# Neither JSON nor the length of a header starts so.
_LFS_START = b"version "
_PARTIAL = (".incomplete", ".part", ".aria2")
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def is_there(file: Path) -> bool:
    """Whether a name leads to a regular file; names that cannot be do not raise."""
    return os.path.isfile(file)


def missing_file(file: Path) -> str:
    """What to say of a file that is not there, or is not there yet."""
    if os.path.islink(file):
        target = os.readlink(file)
        return f"{file} is missing: it is a link to {target}, which is not there"
    partial = [f"{file.name}{suffix}" for suffix in _PARTIAL]
    found = [name for name in partial if os.path.exists(file.with_name(name))]
    note = f": the download is not complete ({found[0]} is there)" if found else ""
    return f"{file} is missing{note}"


def refuse_pointer(file: Path, start: bytes) -> None:
    """Raise for the text that Git checks out where large files were not fetched.

    Args:
        file: For the message.
        start: The file's first bytes, eight at least.

    Raises:
        CheckpointError: It is a Git LFS pointer.
    """
    if start.startswith(_LFS_START):
        raise CheckpointError(
            f"{file} is a Git LFS pointer, not the file: run git lfs pull"
        )


def open_regular(file: Path) -> tuple[BufferedReader, int]:
    """An open regular file, or a link to one, and its size.

    Raises:
        CheckpointError: It is missing, something else, or may not be read.
    """
    try:
        found = os.stat(file)
        kind = stat.S_IFMT(found.st_mode)
        if kind != stat.S_IFREG:
            what = _KINDS.get(kind, "something else")
            raise CheckpointError(f"{file} is {what}, not a file")
        return open(file, "rb"), found.st_size
    except FileNotFoundError as error:
        raise CheckpointError(missing_file(file)) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CheckpointError(f"{file} is a link that leads to itself") from error
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{str(file)!r} cannot be the name of a file") from error


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: See ``open_regular``; or it is too large to be a config, or
            does not hold a JSON object.
    """
    stream, size = open_regular(file)
    with stream:
        if size > MAX_JSON_BYTES:
            raise CheckpointError(
                f"{file} has {size} bytes; a JSON file of a checkpoint has at most "
                f"{MAX_JSON_BYTES}"
            )
        content = stream.read(size)
        refuse_pointer(file, content)
        try:
            value = parse_json(content)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} must hold a JSON object")
    return value


def parse_json(content: bytes) -> Any:
    """Strict JSON.

    Raises:
        ValueError: Also for a key that comes twice, for what is no number (``NaN``,
            ``1e400``), and for what is too deep or too long to be meant.
    """
    text = content.decode("utf-8")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_number,
        )
    except RecursionError as error:
        raise ValueError(f"nested deeper than {_MAX_DEPTH} levels") from error
    if _is_deep(value):
        raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
    if _SURROGATE.search(text):
        # Half a character cannot be printed: encoding finds it.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"key {twice[:100]!r} comes twice")
    return values


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"{text[:_MAX_DIGITS]}... is not a number that can be meant")
    return int(text)


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:_MAX_DIGITS]} is not a finite number")
    return number


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_MAX_DEPTH + 1):
        level = [
            item
            for outer in level
            if isinstance(outer, (dict, list))
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return False
    return True
