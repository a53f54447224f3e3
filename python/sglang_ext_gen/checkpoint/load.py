# SPDX-License-Identifier: Apache-2.0
"""Strict loading: every tensor on disk is used or skipped for a reason, every
parameter is written exactly once, shapes and dtypes are proved first.

Headers alone decide whether a checkpoint fits: all problems are found and named
before the first byte of data is read. Then one tensor at a time (the parts of a
merge together) is read through a memory map, cut to this rank's slice and copied.

What a module owes to the loader:

- It may be built under ``torch.device("meta")``: parameters and persistent
  buffers are allocated on the target device as they are loaded.
- Non-persistent buffers (rotary frequencies) are computed by the module itself,
  at construction, with an explicit ``device="cpu"``, which holds under a meta
  context too. The loader only moves them to the target device, dtype unchanged.
- A parameter that is split by tensor parallelism carries ``tp_dim`` (the dim)
  and ``tp_sections`` (sizes of the merged sections along it in the full tensor);
  each section is cut evenly over the ranks. Without them it is replicated.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sglang_ext_gen.checkpoint.layout import FLOAT8, StoredTensor, read_tensors
from sglang_ext_gen.checkpoint.rules import Plan, Rule, Step, plan_steps, raise_problems
from sglang_ext_gen.errors import CheckpointError, ConfigError
from sglang_ext_gen.kernels.fp8_gemm import FP8_DTYPE, quantize_rowwise

logger = logging.getLogger(__name__)

_DTYPES = {
    "F8_E4M3": torch.float8_e4m3fn,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CASTABLE = {torch.bfloat16, torch.float16, torch.float32}
_SCALE = "_scale"


@dataclass(frozen=True)
class LoadReport:
    """What one load did."""

    tensors: int
    skipped: int
    nbytes: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.tensors} tensors, {self.nbytes / 1e6:.1f} MB "
            f"in {self.seconds:.2f} s, {self.skipped} skipped"
        )


@dataclass(frozen=True)
class _Slot:
    """A parameter or persistent buffer to fill, at its size before TP slicing."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    tp_dim: int | None
    tp_sections: tuple[int, ...]


@dataclass(frozen=True)
class Fit:
    """That what is on disk fills a module, every tensor once.

    Args:
        plan: What goes where.
        slots: The parameters and persistent buffers by name.
        shrunk: Those that are quantised on the way.
    """

    plan: Plan
    slots: Mapping[str, _Slot]
    shrunk: frozenset[str]


def prove_fit(
    module: nn.Module,
    tensors: Mapping[str, StoredTensor],
    rules: Sequence[Rule],
    *,
    where: str,
    tp_size: int = 1,
    quantize: bool = False,
) -> Fit:
    """Prove by headers alone that ``load_weights`` will fill ``module``.

    Args:
        module: As for ``load_weights``, as are the others.
        tensors: What is on disk.

    Raises:
        CheckpointError: Anything is missing, left over or does not fit.
        ConfigError: A parameter cannot be divided by ``tp_size``.
    """
    plan = plan_steps(tensors, rules, where=where)
    slots = _find_slots(module, tp_size)
    shrunk = _quantized(plan, tensors, slots) if quantize else frozenset()
    raise_problems(_check(plan, tensors, slots, shrunk), where)
    return Fit(plan, slots, shrunk)


def load_weights(
    module: nn.Module,
    file: Path,
    rules: Sequence[Rule],
    *,
    where: str,
    device: torch.device | str | None = None,
    tp_rank: int = 0,
    tp_size: int = 1,
    quantize: bool = False,
) -> LoadReport:
    """Fill ``module`` from a component on disk.

    Args:
        module: Built on the meta device or allocated; see the module docstring.
        file: The safetensors file; ``<file>.index.json`` and its shards win when
            they exist.
        rules: Where each tensor goes.
        where: Component for messages, such as ``"transformer/"``.
        device: Where parameters and buffers go; None leaves each where it is
            (meta becomes CPU).
        tp_rank: Index of this process in its tensor-parallel group.
        tp_size: Size of that group.
        quantize: Floating point weights on disk fill FP8 parameters and their
            ``weight_scale``, row by row. Without it they are an error.

    Raises:
        CheckpointError: Anything on disk is missing, left over, damaged or does
            not fit; the message names it. Nothing was read into the module.
        ConfigError: A parameter cannot be divided by ``tp_size``.
    """
    start = time.perf_counter()
    tensors = read_tensors(file)
    fit = prove_fit(
        module, tensors, rules, where=where, tp_size=tp_size, quantize=quantize
    )
    plan, slots, shrunk = fit.plan, fit.slots, fit.shrunk
    with _Reader(tensors) as reader, torch.no_grad():
        for step in sorted(plan.steps, key=reader.position):
            parts = _assemble(step, [reader.read(n) for n in step.sources], slots)
            for target, part in zip(step.targets, parts, strict=True):
                values = {target: part}
                if target in shrunk:
                    # Before it is cut: a scale covers its whole row.
                    weight, scale = quantize_rowwise(part)
                    values = {target: weight, target + _SCALE: scale}
                for name, value in values.items():
                    value = _tp_slice(value, slots[name], tp_rank, tp_size)
                    _destination(module, name, device).copy_(value)
    _place_computed_buffers(module, device, where)
    used = [tensors[name] for step in plan.steps for name in step.sources]
    report = LoadReport(
        tensors=len(used),
        skipped=len(plan.skipped),
        nbytes=sum(tensor.nbytes for tensor in used),
        seconds=time.perf_counter() - start,
    )
    logger.info("%s: loaded %s", where, report)
    return report


def _find_slots(module: nn.Module, tp_size: int) -> dict[str, _Slot]:
    return {
        name: _slot(name, tensor, tp_size)
        for name, tensor in module.state_dict(keep_vars=True).items()
    }


def _slot(name: str, tensor: Tensor, tp_size: int) -> _Slot:
    shape = list(tensor.shape)
    tp_dim: int | None = getattr(tensor, "tp_dim", None)
    sections: tuple[int, ...] = getattr(tensor, "tp_sections", ())
    if tp_dim is not None:
        if any(section % tp_size for section in sections):
            raise ConfigError(
                f"{name}: its sections {sections} cannot be divided over "
                f"{tp_size} tensor-parallel ranks; choose another --tp-size"
            )
        assert shape[tp_dim] * tp_size == sum(sections), (
            f"{name}: {shape} on each of {tp_size} ranks does not give {sections}"
        )
        shape[tp_dim] = sum(sections)
    return _Slot(tuple(shape), tensor.dtype, tp_dim, sections)


def _quantized(
    plan: Plan, tensors: Mapping[str, StoredTensor], slots: Mapping[str, _Slot]
) -> frozenset[str]:
    """FP8 parameters with a scale whose tensors on disk are floating point."""
    return frozenset(
        target
        for step in plan.steps
        for target in step.targets
        if target in slots
        and slots[target].dtype == FP8_DTYPE
        and target + _SCALE in slots
        and all(_DTYPES.get(tensors[n].dtype) in _CASTABLE for n in step.sources)
    )


def _check(
    plan: Plan,
    tensors: Mapping[str, StoredTensor],
    slots: Mapping[str, _Slot],
    shrunk: frozenset[str],
) -> list[str]:
    """Every reason why ``plan`` would not fill ``slots`` exactly."""
    used = [tensors[name] for step in plan.steps for name in step.sources]
    problems = list(_unpaired_scales(used))
    for step in plan.steps:
        stored = [tensors[name] for name in step.sources]
        problems += _check_step(step, stored, slots, shrunk)
    written = {target for step in plan.steps for target in step.targets}
    written |= {target + _SCALE for target in shrunk}
    problems += [f"nothing on disk fills {name}" for name in slots.keys() - written]
    return sorted(problems)


def _unpaired_scales(used: Sequence[StoredTensor]) -> Iterator[str]:
    """FP8 weights without their scale, and scales without an FP8 weight."""
    float8 = {tensor.name for tensor in used if tensor.dtype in FLOAT8}
    scales = {tensor.name for tensor in used if tensor.name.endswith(f"weight{_SCALE}")}
    for name in float8:
        if name + _SCALE not in scales:
            yield f"{name}{_SCALE} is missing (FP8 weight without its scale)"
    for name in scales:
        if name.removesuffix(_SCALE) not in float8:
            yield f"{name} has no FP8 weight (scale without its weight)"


def _check_step(
    step: Step,
    stored: Sequence[StoredTensor],
    slots: Mapping[str, _Slot],
    shrunk: frozenset[str],
) -> Iterator[str]:
    source = " + ".join(step.sources)
    unknown = [target for target in step.targets if target not in slots]
    if unknown:
        yield f"{source} would fill {unknown[0]}, which the model does not have"
        return
    dtypes = {tensor.dtype for tensor in stored}
    if len(dtypes) > 1 or not dtypes <= _DTYPES.keys():
        yield f"{source} is {' and '.join(sorted(dtypes))}, which cannot be loaded"
        return
    # The same operations on meta tensors tell the shapes without reading data.
    empty = [
        torch.empty(tensor.shape, dtype=_DTYPES[tensor.dtype], device="meta")
        for tensor in stored
    ]
    try:
        parts = _assemble(step, empty, slots)
    except RuntimeError as error:
        shapes = ", ".join(str(tensor.shape) for tensor in stored)
        yield f"{source} has shapes {shapes}, which do not fit together: {error}"
        return
    for target, part in zip(step.targets, parts, strict=True):
        slot = slots[target]
        if part.shape != slot.shape:
            yield f"{source} has shape {tuple(part.shape)}, {target} takes {slot.shape}"
        can_cast = target in shrunk or {part.dtype, slot.dtype} <= _CASTABLE
        if part.dtype != slot.dtype and not can_cast:
            yield f"{source} is {part.dtype}, {target} takes {slot.dtype}"


def _assemble(
    step: Step, tensors: Sequence[Tensor], slots: Mapping[str, _Slot]
) -> tuple[Tensor, ...]:
    """Join, transform and cut the sources of one step: one tensor per target."""
    whole = torch.cat(list(tensors), step.dim) if len(tensors) > 1 else tensors[0]
    if step.transform is not None:
        whole = step.transform(whole)
    if len(step.targets) == 1:
        return (whole,)
    return whole.split([slots[t].shape[step.dim] for t in step.targets], step.dim)


def _tp_slice(full: Tensor, slot: _Slot, rank: int, size: int) -> Tensor:
    """This rank's rows (or columns) of each section, side by side."""
    if slot.tp_dim is None or size == 1:
        return full
    sections = full.split(slot.tp_sections, slot.tp_dim)
    return torch.cat([s.chunk(size, slot.tp_dim)[rank] for s in sections], slot.tp_dim)


def _destination(
    module: nn.Module, name: str, device: torch.device | str | None
) -> Tensor:
    """The parameter or buffer ``name``, allocated on its final device."""
    parent, _, leaf = name.rpartition(".")
    owner = module.get_submodule(parent)
    current: Tensor = getattr(owner, leaf)
    target = _final_device(current, device)
    if current.device == target:
        return current
    placed = torch.empty_like(current, device=target)
    if isinstance(current, nn.Parameter):
        placed = nn.Parameter(placed, requires_grad=current.requires_grad)
        vars(placed).update(vars(current))  # tp_dim and its like
    setattr(owner, leaf, placed)
    return placed


def _final_device(tensor: Tensor, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    return torch.device("cpu") if tensor.is_meta else tensor.device


def _place_computed_buffers(
    module: nn.Module, device: torch.device | str | None, where: str
) -> None:
    """Move the non-persistent buffers, which the module computed itself."""
    for owner in module.modules():
        for leaf, buffer in owner.named_buffers(recurse=False):
            if buffer.is_meta:
                raise CheckpointError(
                    f"{where}: {type(owner).__name__}.{leaf} was left on the meta "
                    'device; compute it at construction with device="cpu"'
                )
            setattr(owner, leaf, buffer.to(_final_device(buffer, device)))


class _Reader:
    """Reads tensors from their files; one file is mapped at a time."""

    def __init__(self, tensors: Mapping[str, StoredTensor]) -> None:
        self._tensors = tensors
        self._stack = ExitStack()
        self._file: Path | None = None
        self._stream: Any = None

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream = None
        self._stack.close()

    def position(self, step: Step) -> tuple[str, int]:
        """Where a step starts on disk, so that a load reads forward."""
        first = self._tensors[step.sources[0]]
        return str(first.file), first.offset

    def read(self, name: str) -> Tensor:
        file = self._tensors[name].file
        try:
            if file != self._file:
                # What was read of a mapped file stays in memory until it is closed.
                self._stack.close()
                stream = safe_open(str(file), framework="pt", device="cpu")
                self._stream = self._stack.enter_context(stream)
                self._file = file
            return self._stream.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file}: cannot read {name}: {error}") from error
