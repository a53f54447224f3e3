# SPDX-License-Identifier: Apache-2.0
"""``doctor --upgrade``: the steps of UPGRADING.md, each with its state."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sglang_ext_gen.plugin import compat, hooks

# The release for which a person last did the steps that no program can.
REVIEWED_SGLANG = "0.5.23"

# Under python/sglang/ in SGLang's repository: new fields are taken or refused by name.
FILES_WITH_FIELDS = (
    "multimodal_gen/configs/sample/sampling_params.py",
    "multimodal_gen/runtime/server_args/server_args.py",
    "multimodal_gen/runtime/entrypoints/openai/protocol.py",
    "srt/server_args.py",
)

State = Literal["ok", "look here", "failed"]
_Look = Callable[[Mapping[str, Any]], Iterable[str]]


@dataclass(frozen=True)
class Step:
    """One step.

    Args:
        title: Its heading in UPGRADING.md.
        state: ``look here`` where only a person can say.
        lines: What is wrong, or what to look at.
    """

    title: str
    state: State
    lines: tuple[str, ...]


def steps(process: Mapping[str, Any]) -> list[Step]:
    """The state of every step, from what a fresh process found."""
    found = []
    for title, worst, look in _STEPS:
        lines = tuple(look(process))
        state: State = worst if lines else "ok"
        found.append(Step(title, state, lines))
    return found


def render(found: Iterable[Step]) -> str:
    """The steps as text, numbered as in UPGRADING.md."""
    lines = ["upgrade of SGLang (UPGRADING.md)"]
    for number, step in enumerate(found, 1):
        lines.append(f"  {number:>2}  {step.title:<16}{step.state}")
        lines += [f"        {line}" for line in step.lines]
    return "\n".join(lines)


def _release(_: Mapping[str, Any]) -> Iterator[str]:
    reason = compat.unsupported_version()
    if reason is not None:
        yield reason


def _registration(process: Mapping[str, Any]) -> Iterator[str]:
    if "error" in process:
        yield f"the fresh process failed: {process['error']}"
    for name in ("families", "hooks"):
        for row, is_there in process.get(name, {}).items():
            if not is_there:
                yield f"{row} is missing in a fresh process"


def _couplings(process: Mapping[str, Any]) -> Iterable[str]:
    return process.get("compat", ())


def _kernels(process: Mapping[str, Any]) -> Iterator[str]:
    for name, is_there in process.get("cpu_kernels", {}).items():
        if is_there:
            yield f"the wheel has {name} now: its hook can go"


def _unless_reviewed(*lines: str) -> _Look:
    return lambda _: () if compat.installed_sglang() == REVIEWED_SGLANG else lines


_REMOVE_WHEN = (f"{hook.target}: {hook.remove_when}" for hook in hooks.HOOKS)
_STEPS: tuple[tuple[str, State, _Look], ...] = (
    ("Release", "failed", _release),
    ("Registration", "failed", _registration),
    ("Couplings", "failed", _couplings),
    ("CPU kernels", "look here", _kernels),
    (
        "Hooks",
        "look here",
        _unless_reviewed(*_REMOVE_WHEN),
    ),
    ("Fields", "look here", _unless_reviewed(*FILES_WITH_FIELDS)),
    ("Types", "look here", _unless_reviewed("make lint")),
    ("Numbers", "look here", _unless_reviewed("make test")),
    ("Speed", "look here", _unless_reviewed("make bench")),
    ("Done", "look here", _unless_reviewed(f"reviewed so far: {REVIEWED_SGLANG}")),
)
