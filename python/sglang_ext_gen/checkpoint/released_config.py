# SPDX-License-Identifier: Apache-2.0
"""Reading a released ``config.json`` into a frozen dataclass, strictly.

One policy for all files: a key that may change the arithmetic and is not understood is
an error, as are missing keys and values of the wrong kind. A key that only describes
(``DESCRIBING``) is taken, and all such keys of an object are named in one warning;
those that a config lists as ignored are taken silently. Nothing heavy is imported, so
that ``doctor`` can check a checkpoint quickly.
"""

import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, ClassVar, NewType, Self, TypeVar

from sglang_ext_gen.errors import ConfigError

logger = logging.getLogger(__name__)
_noted: ContextVar[list[str] | None] = ContextVar("noted", default=None)

C = TypeVar("C")
# A number that counts from 0, where ``int`` stands for a size.
Index = NewType("Index", int)

# Patterns of keys that say nothing about the arithmetic of a forward pass: who wrote
# the file, how a model was trained, how text is generated from it, which ids mean what.
DESCRIBING = (
    *("_*", "architectures", "auto_map", "library_name", "license", "model_name"),
    *("transformers_version", "diffusers_version", "torch_dtype", "dtype"),
    *("attn_implementation", "gradient_checkpointing", "torchscript", "use_bfloat16"),
    *("*dropout*", "initializer_range", "initializer_factor", "pretraining_tp"),
    *("output_attentions", "output_hidden_states", "output_router_logits"),
    *("return_dict", "use_cache", "use_return_dict"),
    *("*_token_id", "*_token_index", "*_start_token", "*_end_token", "*_patch_token"),
    *("id2label", "label2id", "problem_type", "finetuning_task", "tokenizer_class"),
    *("do_sample", "early_stopping", "max_length", "min_length", "max_new_tokens"),
    *("num_beams", "repetition_penalty", "temperature", "top_k", "top_p"),
)


class StrictConfig:
    """Base of frozen dataclasses whose fields are keys of one JSON object.

    Args:
        fixed: Key -> the one value that we have, where the key is there.
        defaults: Key -> what the official code takes a missing one for.
        off: Key -> what it would do; it may be there where it is null or false.
        ignored: Keys that may be there and are not used, with the reason.
    """

    fixed: ClassVar[Mapping[str, Any]] = {}
    defaults: ClassVar[Mapping[str, Any]] = {}
    off: ClassVar[Mapping[str, str]] = {}
    ignored: ClassVar[Collection[str]] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> Self:
        """Read the object; ``where`` is its name for messages.

        Raises:
            ConfigError: A key is unknown or missing, or asks for what we do not have.
        """
        require_values(values, cls.fixed, where)
        for key, effect in cls.off.items():
            if values.get(key):
                raise ConfigError(
                    f"{where}: {key} is {values[key]!r}: {effect}, which is not "
                    "supported"
                )
        complete = {**cls.defaults, **values}
        known = {*cls.fixed, *cls.off, *cls.ignored}
        return read_fields(cls, complete, where, known)


def read_fields(
    cls: type[C], values: Mapping[str, Any], where: str, ignored: Collection[str]
) -> C:
    """A config dataclass from the keys of the same names.

    Args:
        cls: A dataclass whose fields have types of ``_KINDS``, or are dataclasses
            with a ``from_dict`` for the section of that name.
        values: The parsed file; nothing may be left out.
        where: Name of the file for messages.
        ignored: Keys that may be there and are not used.

    Raises:
        ConfigError: A key is unknown, missing, or its value of the wrong kind.
    """
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    refuse_unknown_keys(values, {*names, *ignored}, where)
    checked = {
        field.name: _checked(
            require(values, field.name, where), field.type, f"{where}: {field.name}"
        )
        for field in fields(cls)  # type: ignore[arg-type]
    }
    return cls(**checked)


def refuse_unknown_keys(
    values: Mapping[str, Any], known: Collection[str], where: str
) -> None:
    """Raise for the first key that is neither in ``known`` nor only describes.

    Raises:
        ConfigError: Names it.
    """
    unknown = [key for key in values if key not in known]
    for key in unknown:
        if not any(fnmatchcase(key, pattern) for pattern in DESCRIBING):
            raise ConfigError(
                f"{where}: unknown key {key!r}; this looks like another release"
            )
    if unknown:
        warn_of_unused(where, tuple(unknown))


def warn_of_unused(where: str, keys: tuple[str, ...]) -> None:
    """Say which keys of a file are not looked at, in the log once a process."""
    line = f"{where}: not used: {', '.join(keys)}"
    noted = _noted.get()
    if noted is None:
        _log_once(line)
    elif line not in noted:
        noted.append(line)


@contextmanager
def unused_keys_noted() -> Iterator[list[str]]:
    """Collect what ``warn_of_unused`` says, instead of logging it."""
    noted: list[str] = []
    token = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(token)


@cache
def _log_once(line: str) -> None:
    logger.warning(line)


def with_rope_scaling(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The object in the style of Transformers 4.

    Transformers 5 writes ``rope_parameters``, which holds the theta and the rotated
    part as well, instead of ``rope_scaling``.

    Raises:
        ConfigError: ``rope_parameters`` is no object, or the file states both.
    """
    flat = dict(values)
    if flat.get("rope_parameters") is None:
        flat.pop("rope_parameters", None)
        return flat
    rope = dict(require_object(flat, "rope_parameters", where))
    if flat.get("rope_scaling") not in (None, rope):
        raise ConfigError(f"{where}: rope_parameters and rope_scaling disagree")
    del flat["rope_parameters"]
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in rope:
            flat[key] = rope.pop(key)
    flat["rope_scaling"] = rope
    return flat


def require(values: Mapping[str, Any], key: str, where: str) -> Any:
    """The value of a key that must be there.

    Raises:
        ConfigError: It is missing.
    """
    if key not in values:
        raise ConfigError(f"{where}: key {key!r} is missing")
    return values[key]


def require_object(
    values: Mapping[str, Any], key: str, where: str
) -> Mapping[str, Any]:
    """The JSON object of a key that must be there.

    Raises:
        ConfigError: It is missing or something else.
    """
    value = require(values, key, where)
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {key} is {value!r}, expected an object")
    return value


def require_values(
    values: Mapping[str, Any], wanted: Mapping[str, Any], where: str
) -> None:
    """Raise unless each key is absent or has its one supported value.

    Raises:
        ConfigError: Names the key, its value and the supported one.
    """
    for key, want in wanted.items():
        if values.get(key, want) != want:
            raise ConfigError(f"{where}: {key} is {values[key]!r}, expected {want!r}")


def require_class(values: Mapping[str, Any], name: str, where: str) -> None:
    """Raise unless ``_class_name`` is there and is ``name``.

    Raises:
        ConfigError: Names the class that is there.
    """
    require(values, "_class_name", where)
    require_values(values, {"_class_name": name}, where)


def _checked(value: Any, kind: Any, where: str) -> Any:
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise ConfigError(f"{where} is {value!r}, expected an object")
        return kind.from_dict(value, where)  # type: ignore[attr-defined]
    if isinstance(value, list):
        value = tuple(value)
    is_right, expected = _KINDS[kind]
    if not is_right(value):
        raise ConfigError(f"{where} is {value!r}, expected {expected}")
    return value


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_index(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _is_counts(value: Any) -> bool:
    return type(value) is tuple and bool(value) and all(map(_is_count, value))


def _is_switches(value: Any) -> bool:
    return type(value) is tuple and all(type(item) is bool for item in value)


# Declared type -> what a JSON value must be. (bool is an int to isinstance.)
_KINDS: dict[Any, tuple[Callable[[Any], bool], str]] = {
    bool: (lambda value: type(value) is bool, "true or false"),
    int: (_is_count, "a positive integer"),
    Index: (_is_index, "an integer of at least 0"),
    float: (_is_positive, "a positive number"),
    str: (lambda value: type(value) is str, "a string"),
    tuple[int, ...]: (_is_counts, "a list of positive integers"),
    tuple[Index, ...]: (
        lambda value: type(value) is tuple and all(map(_is_index, value)),
        "a list of integers of at least 0",
    ),
    tuple[bool, ...]: (_is_switches, "a list of true and false"),
    tuple[int, int, int]: (
        lambda value: _is_counts(value) and len(value) == 3,
        "a list of three positive integers",
    ),
}
