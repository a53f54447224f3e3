# SPDX-License-Identifier: Apache-2.0
"""Name rules: where each tensor of a checkpoint goes in our modules.

A family writes one tuple of rules. Templates are matched against whole names:

    {i}      a layer number (decimal digits)
    {name}   any other placeholder: one dot-free piece, such as ``weight_scale``
    **       the rest of the name, dots included

Each disk tensor must meet exactly one rule. A rule whose source is only ``**``
(``KEEP_NAME``) speaks for the tensors that no other rule takes. ``plan_steps``
turns names and rules into steps and refuses everything else: names without a
rule or with two, incomplete merges, parameters written twice. Nothing here
reads a tensor, and torch is not imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from sglang_ext_gen.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_SHOWN = 5  # problems spelled out in one error; the rest is counted


@cache
def _pieces(template: str) -> tuple[str, ...]:
    """Cut a template into literal text and placeholders, kept in order."""
    return tuple(piece for piece in re.split(r"(\{\w+\}|\*\*)", template) if piece)


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile("".join(map(_expression, _pieces(template))))


def _expression(piece: str) -> str:
    if piece == "**":
        return "(?P<rest>.+)"
    if not piece.startswith("{"):
        return re.escape(piece)
    name = piece.strip("{}")
    return rf"(?P<{name}>\d+)" if name == "i" else rf"(?P<{name}>[^.]+)"


def _fill(template: str, captured: dict[str, str]) -> str:
    return "".join(
        captured["rest" if piece == "**" else piece.strip("{}")]
        if _is_placeholder(piece)
        else piece
        for piece in _pieces(template)
    )


def _is_placeholder(piece: str) -> bool:
    return piece == "**" or piece.startswith("{")


def _same_placeholders(left: str, right: str) -> None:
    """Both templates must name the same placeholders, or names would be lost."""
    placeholders = [
        sorted(filter(_is_placeholder, _pieces(template))) for template in (left, right)
    ]
    if placeholders[0] != placeholders[1]:
        raise ValueError(f"{left!r} and {right!r} have different placeholders")


@dataclass(frozen=True)
class Rename:
    """One tensor goes to one parameter.

    Args:
        source: Template of the disk name.
        target: Template of the parameter name, with the placeholders of source.
        transform: Numeric change on the way (permute, swap halves).
        why: Reason of the transform; required with one.
    """

    source: str
    target: str
    transform: Callable[[Tensor], Tensor] | None = None
    why: str = ""

    def __post_init__(self) -> None:
        _same_placeholders(self.source, self.target)
        if self.transform is not None and not self.why:
            raise ValueError(f"Rename({self.source!r}): a transform needs a reason")


@dataclass(frozen=True)
class Merge:
    """Several tensors, concatenated along ``dim`` in this order, fill one parameter."""

    sources: tuple[str, ...]
    target: str
    dim: int = 0

    def __post_init__(self) -> None:
        for source in self.sources:
            _same_placeholders(source, self.target)


@dataclass(frozen=True)
class Split:
    """One tensor is cut along ``dim`` into several parameters, in this order.

    The sizes are those of the parameters; together they must use it up.
    """

    source: str
    targets: tuple[str, ...]
    dim: int = 0

    def __post_init__(self) -> None:
        for target in self.targets:
            _same_placeholders(self.source, target)


@dataclass(frozen=True)
class Skip:
    """Tensors that are on disk and not used, with the reason."""

    source: str
    why: str


Rule = Rename | Merge | Split | Skip

KEEP_NAME = Rename("**", "**")


def with_prefix(rules: Sequence[Rule], prefix: str) -> tuple[Rule, ...]:
    """The same rules for a checkpoint whose every name starts with ``prefix``."""
    return tuple(
        replace(rule, sources=tuple(prefix + source for source in rule.sources))
        if isinstance(rule, Merge)
        else replace(rule, source=prefix + rule.source)
        for rule in rules
    )


@dataclass(frozen=True)
class Step:
    """One unit of loading: sources, joined along ``dim``, fill the targets in turn."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    dim: int = 0
    transform: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Plan:
    """What a set of rules does with a set of disk names."""

    steps: tuple[Step, ...]
    skipped: tuple[str, ...]


def plan_steps(names: Iterable[str], rules: Sequence[Rule], *, where: str) -> Plan:
    """Give every disk tensor its one rule.

    Args:
        names: Names of all tensors on disk.
        rules: The family's rules.
        where: Component for error messages, such as ``"transformer/"``.

    Raises:
        CheckpointError: A name has no rule or two, a merge lacks a part, or two
            steps write the same parameter.
    """
    names = list(names)
    problems: list[str] = []
    steps: dict[Step, None] = {}  # ordered; the parts of a merge give equal steps
    skipped: list[str] = []
    for name in names:
        found = _rules_for(name, rules)
        if len(found) != 1:
            problems.append(f"{name} has {'two rules' if found else 'no rule'}")
        elif isinstance(rule := found[0], Skip):
            skipped.append(name)
        else:
            steps[_step_for(name, rule)] = None
    problems += _incomplete_merges(steps, set(names))
    problems += _written_twice(steps)
    raise_problems(problems, where)
    return Plan(tuple(steps), tuple(skipped))


def raise_problems(problems: Sequence[str], where: str) -> None:
    """Raise one CheckpointError for all problems, or return if there are none."""
    if not problems:
        return
    shown = "; ".join(problems[:_SHOWN])
    rest = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    raise CheckpointError(
        f"{where}: {shown}{rest}. The checkpoint is damaged or another release; "
        "run `sglang-ext-gen doctor --model PATH` for the full list."
    )


def _rules_for(name: str, rules: Sequence[Rule]) -> list[Rule]:
    """The rules that match ``name``; ``**`` alone only when nothing else does."""
    found = [rule for rule in rules if _match(name, rule) is not None]
    return [rule for rule in found if _sources(rule) != ("**",)] or found


def _step_for(name: str, rule: Rename | Merge | Split) -> Step:
    captured = _match(name, rule)
    assert captured is not None, f"{name} does not match {rule}"
    sources = tuple(_fill(source, captured) for source in _sources(rule))
    if isinstance(rule, Split):
        targets = tuple(_fill(target, captured) for target in rule.targets)
        return Step(sources, targets, rule.dim)
    target = (_fill(rule.target, captured),)
    if isinstance(rule, Merge):
        return Step(sources, target, rule.dim)
    return Step(sources, target, transform=rule.transform)


def _incomplete_merges(steps: Iterable[Step], names: set[str]) -> list[str]:
    return [
        f"{source} is missing (a part of {step.targets[0]})"
        for step in steps
        for source in step.sources
        if source not in names
    ]


def _written_twice(steps: Iterable[Step]) -> list[str]:
    writers: dict[str, list[str]] = {}
    for step in steps:
        for target in step.targets:
            writers.setdefault(target, []).append(step.sources[0])
    return [
        f"{' and '.join(sources)} both fill {target}"
        for target, sources in writers.items()
        if len(sources) > 1
    ]


def _sources(rule: Rule) -> tuple[str, ...]:
    return rule.sources if isinstance(rule, Merge) else (rule.source,)


def _match(name: str, rule: Rule) -> dict[str, str] | None:
    """What the placeholders of the first matching source stand for."""
    for source in _sources(rule):
        match = _pattern(source).fullmatch(name)
        if match is not None:
            return match.groupdict()
    return None
