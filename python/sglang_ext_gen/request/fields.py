# SPDX-License-Identifier: Apache-2.0
"""Request fields as data: one table per family, read by every interface.

A family lists its request fields once, in ``request.py``, and how it may be loaded in
``options.py``. From such a table come the check of a value (Python, CLI and HTTP
alike), flags and their help, the names that an HTTP body may contain, the dataclass
fields that SGLang carries, and which requests may share a batch. Nothing here imports
torch or SGLang.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from dataclasses import field as dataclass_field
from typing import Any, Literal, TypeVar

from sglang_ext_gen.errors import RequestError

Kind = Literal["int", "float", "str", "bool", "floats", "strs", "object"]

# Fields of SGLang's SamplingParams that its runtime serves for any picture model:
# where results go, what is returned and measured, how a request travels and is shared.
SERVED_BY_SGLANG = frozenset(
    {
        "adjust_frames",
        "data_type",
        "debug",
        "enable_sequence_shard",
        "enable_upscaling",
        "generator_device",
        "no_override_protected_fields",
        "num_profiled_timesteps",
        "output_compression",
        "output_file_name",
        "output_path",
        "output_quality",
        "perf_dump_path",
        "profile",
        "profile_all_stages",
        "prompt_path",
        "quality",
        "request_id",
        "return_file_paths_only",
        "return_frames",
        "return_image_bytes",
        "return_trajectory_latents",
        "save_output",
        "suppress_logs",
        "task_type",
        "upscaling_model_path",
        "upscaling_scale",
    }
)
# Those of them that change nothing here, which SGLang or its clients set themselves.
CHANGE_NOTHING = {
    "adjust_frames": "frames are never dropped to suit the devices",
    "debug": "for a cache that these models do not have (Spectrum)",
    "enable_sequence_shard": "the server's parallel modes decide",
    "generator_device": "noise is drawn on the CPU, the same for every device",
}

T = TypeVar("T")
# Kind -> the type of a dataclass field that carries it.
_TYPES: dict[str, Any] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "floats": list[float],
    "strs": str | list[str],
    "object": dict[str, Any],
}
_EXPECTED = {
    "int": "an integer",
    "float": "a finite number",
    "str": "a string",
    "bool": "true or false",
    "floats": "a list of finite numbers",
    "strs": "a string or a list of strings",
    "object": "an object of names and values",
}


@dataclass(frozen=True)
class RequestField:
    """One request field: its name, type, range and help text.

    Args:
        name: Field name, the same in Python, CLI (with dashes) and HTTP.
        kind: Value type; ``floats`` is a list of numbers, ``strs`` a string or
            a list of strings, ``object`` a mapping that its reader checks.
        help: One sentence for ``--help``.
        minimum: Smallest allowed number (inclusive), for each item of a list.
        maximum: Largest allowed number (inclusive).
        multiple_of: The value must be a multiple of this.
        choices: Allowed strings.
        max_length: Most characters of a string, or items of a list.
        interfaces: Where a user may set the field: ``python`` fields stay out of
            HTTP bodies and of the command line, ``cli`` fields out of HTTP.
        default: What holds where a user does not set it.
        batched_apart: Requests that differ in it are not denoised as one batch.
    """

    name: str
    kind: Kind
    help: str
    minimum: float | None = None
    maximum: float | None = None
    multiple_of: int | None = None
    choices: tuple[str, ...] = ()
    max_length: int | None = None
    interfaces: Literal["all", "cli", "python"] = "all"
    default: Any = None
    batched_apart: bool = True

    def check(self, value: Any) -> Any:
        """Return ``value`` in the field's own type.

        Raises:
            RequestError: Wrong type or out of range; names the field, the
                value and what is allowed.
        """
        items = value if self.kind in ("floats", "strs") else [value]
        if self.kind == "strs" and isinstance(value, str):
            items = [value]
        if not isinstance(items, Sequence) or isinstance(items, str):
            raise self._refuse(value)
        if self.kind in ("floats", "strs"):
            self._check_length(value, len(items), "items")
        checked = [self._check_item(item, value) for item in items]
        if self.kind == "floats" or (self.kind == "strs" and items is value):
            return checked
        return checked[0]

    def allowed(self) -> str:
        """What the field accepts, as the end of a sentence."""
        text = _EXPECTED[self.kind]
        if self.minimum is not None and self.maximum is not None:
            text += f" from {_plain(self.minimum)} to {_plain(self.maximum)}"
        elif self.minimum is not None:
            text += f" of at least {_plain(self.minimum)}"
        elif self.maximum is not None:
            text += f" of at most {_plain(self.maximum)}"
        if self.multiple_of is not None:
            text += f" in steps of {self.multiple_of}"
        if self.choices:
            text = "one of " + ", ".join(self.choices)
        return text

    def _check_item(self, item: Any, value: Any) -> Any:
        if self.kind in ("str", "strs"):
            if not isinstance(item, str):
                raise self._refuse(value)
            if not _is_unicode(item):
                raise RequestError(self.name, "has an escaped surrogate without a pair")
            self._check_length(value, len(item), "characters")
            if self.choices and item not in self.choices:
                raise self._refuse(value)
            return item
        if self.kind in ("bool", "object"):
            if not isinstance(item, bool if self.kind == "bool" else dict):
                raise self._refuse(value)
            return item
        return self._check_number(item, value)

    def _check_number(self, item: Any, value: Any) -> int | float:
        # bool is an int in Python, but never a number that a user meant.
        is_number = isinstance(item, (int, float)) and not isinstance(item, bool)
        if not is_number or not _is_finite(item):
            raise self._refuse(value)
        if self.kind == "int" and item != int(item):
            raise self._refuse(value)
        below = self.minimum is not None and item < self.minimum
        above = self.maximum is not None and item > self.maximum
        ragged = self.multiple_of is not None and item % self.multiple_of != 0
        if below or above or ragged:
            raise self._refuse(value)
        return int(item) if self.kind == "int" else float(item)

    def _check_length(self, value: Any, length: int, unit: str) -> None:
        if self.max_length is not None and length > self.max_length:
            raise RequestError(
                self.name, f"{length} {unit} given, at most {self.max_length} allowed"
            )

    def _refuse(self, value: Any) -> RequestError:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return RequestError(self.name, f"{shown} given, expected {self.allowed()}")


def _is_unicode(text: str) -> bool:
    """False for a lone surrogate, which is a Python string but no text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_finite(number: int | float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:
        # An integer beyond the range of float is beyond that of every field.
        return False


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"


# Fields that mean the same for every family that makes pictures.
NUM_OUTPUTS = RequestField(
    "num_outputs_per_prompt",
    "int",
    "Results per prompt, with seeds seed, seed + 1, ...",
    minimum=1,
    maximum=10,
    default=1,
    batched_apart=False,
)
SEED = RequestField(
    "seed",
    "int",
    "Seed of the first result.",
    minimum=0,
    maximum=2**53 - 1,
    default=42,
    batched_apart=False,
)

# Fields of stock's denoising stage, for families that it serves. What it does with one
# depends on the device and on the server's flags; it refuses by itself what it cannot.
STOCKS_LOOP: tuple[RequestField, ...] = (
    RequestField(
        "quality",
        "str",
        "Fused kernels: none (exact), those that only round elsewhere (lossless), "
        "those that also compute less (high).",
        choices=("exact", "lossless", "high", "extra-high"),
        default="lossless",
    ),
    RequestField(
        "attention_backend_override",
        "str",
        "Attention kernel of this request alone.",
        choices=("fa", "torch_sdpa", "sage_attn", "sage_attn_3"),
    ),
    RequestField(
        "skip_softmax_params",
        "object",
        "Sparse attention on Hopper and Blackwell: threshold_scale_factor, start_step.",
    ),
    RequestField(
        "enable_cache_dit",
        "bool",
        "Leave out blocks of steps that change little (cache-dit); the server's "
        "SGLANG_CACHE_DIT_ENABLED where not given.",
    ),
    RequestField(
        "cache_dit_params",
        "object",
        "Settings of cache-dit, such as max_warmup_steps or residual_diff_threshold.",
    ),
    RequestField(
        "cfg_gate_step",
        "float",
        "After this part of the steps the last difference of the guidance branches is "
        "used again; 1 is off.",
        minimum=0,
        maximum=1,
    ),
)

_CACHE_DIT = ("enable_cache_dit", "cache_dit_params")
_ATTENTION = ("attention_backend_override", "skip_softmax_params")
# Caches over the steps, for families on our own stage, whose transformers have TeaCache
# too.
STEP_CACHES: tuple[RequestField, ...] = (
    *(field for field in STOCKS_LOOP if field.name in _CACHE_DIT),
    RequestField(
        "enable_teacache",
        "bool",
        "Leave out the blocks of steps at which the time embedding changes little "
        "(TeaCache).",
        default=False,
    ),
    RequestField(
        "teacache_params",
        "object",
        "Settings of TeaCache: teacache_thresh, whose default is the model's; larger "
        "is faster.",
    ),
)
# The same where attention is stock's.
OUR_LOOP: tuple[RequestField, ...] = (
    *(field for field in STOCKS_LOOP if field.name in _ATTENTION),
    *STEP_CACHES,
)


def carries(table: Iterable[RequestField]) -> Callable[[type[T]], type[T]]:
    """Class decorator, below ``@dataclass``: a dataclass field for each row.

    A field that a base class has takes the row's default.
    """

    def declare(cls: type[T]) -> type[T]:
        for row in table:
            kind = _TYPES[row.kind]
            cls.__annotations__[row.name] = (
                kind if row.default is not None else kind | None
            )
            # SGLang's own scheduler compares requests by this mark.
            mark = {} if row.batched_apart else {"batch_sig_exclude": True}
            setattr(cls, row.name, dataclass_field(default=row.default, metadata=mark))
        return cls

    return declare


def check_given(
    known: Iterable[RequestField], values: Mapping[str, Any]
) -> dict[str, Any]:
    """Check each field of ``known`` that is given.

    Args:
        known: A family's fields.
        values: By name; None means not given. Other names are not looked at.

    Returns:
        The given fields in their own types.

    Raises:
        RequestError: Names the first field that cannot be used, its value and what
            is allowed.
    """
    return {
        field.name: field.check(values[field.name])
        for field in known
        if values.get(field.name) is not None
    }


def check_prompt(prompt: str | Sequence[str] | None) -> None:
    """Refuse a prompt, or a list of them, without text.

    Raises:
        RequestError: For field ``prompt``.
    """
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not prompts or not all(text.strip() for text in prompts):
        raise RequestError("prompt", "missing or empty, expected a text")


def refuse_unused_fields(params: Any, used: Collection[str], title: str) -> None:
    """Raise for the first field of a dataclass that is set and would be ignored.

    Ignoring it would give another result than the user expects.

    Args:
        params: SGLang's ``SamplingParams`` of a family.
        used: Names of the fields that something reads.
        title: Name of the family for people.

    Raises:
        RequestError: Names the field.
    """
    for field in fields(params):
        factory = field.default_factory
        default = field.default if factory is MISSING else factory()
        value = getattr(params, field.name)
        if field.name not in used and value is not None and value != default:
            raise RequestError(field.name, f"not supported by {title}")
