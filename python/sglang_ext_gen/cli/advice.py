# SPDX-License-Identifier: Apache-2.0
"""What ``doctor --model`` advises: what a checkpoint needs, what fits, what to run.

Neither torch nor SGLang is imported: weights come from headers, GPUs from the driver's
own command.
"""

import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_ext_gen.checkpoint.needs import (
    RUNTIME_BYTES,
    SIZES,
    Needs,
    Option,
    Role,
)
from sglang_ext_gen.errors import CheckpointError, ConfigError

_GIB = 2**30
_MIB = 2**20
# Of a GPU: the rest is the allocator's and other programs'.
_USABLE = 0.95
# What is advised where there is none, if any number of these will do.
_USUAL_GPU = 80 * 10**9
_QUERY_SECONDS = 5


@dataclass(frozen=True)
class Gpu:
    """A device of this machine."""

    name: str
    nbytes: int


def gpus_here() -> tuple[Gpu, ...]:
    """Every GPU that the driver shows; none without a driver."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    query = ("--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
    try:
        result = subprocess.run(
            [command, *query],
            capture_output=True,
            text=True,
            check=False,
            timeout=_QUERY_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return ()
    rows = [line.rpartition(", ") for line in result.stdout.splitlines()]
    return tuple(
        Gpu(name, int(size) * _MIB) for name, _, size in rows if size.isdigit()
    )


def advise(model: Path, rows: Iterable[Any], gpus: tuple[Gpu, ...]) -> dict[str, Any]:
    """The advice as data.

    Args:
        model: A local checkpoint.
        rows: The family, the language model, or both, whose it is.
        gpus: Of this machine.
    """
    rows = list(rows)
    advice: dict[str, Any] = {
        "titles": [row.title for row in rows],
        "licence": {
            "name": rows[0].licence.name,
            "commercial": rows[0].licence.commercial,
        },
        "bytes": sum(_sizes(model)),
        "gpus": [{"name": gpu.name, "bytes": gpu.nbytes} for gpu in gpus],
    }
    try:
        found = [row.load(row.needs)(model) for row in rows]
        return {**advice, **_needs(model, found, gpus)}
    except (CheckpointError, ConfigError) as error:
        return {**advice, "unknown": f"what it needs cannot be told: {error}"}


def _sizes(folder: Path) -> Iterator[int]:
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                yield path.stat().st_size
        except OSError:
            continue  # the check says what is wrong with it


def _needs(model: Path, found: list[Needs], gpus: tuple[Gpu, ...]) -> dict[str, Any]:
    roles = [role for needs in found for role in needs.roles]
    counted = {file: needs for needs in found for file in needs.files}
    return {
        "variant": ", ".join(dict.fromkeys(needs.variant for needs in found)),
        "parameters": sum(needs.parameters_of(file) for file, needs in counted.items()),
        "missing": [line for needs in found for line in needs.missing],
        "roles": [_role(model, role, gpus) for role in roles],
    }


def _role(model: Path, role: Role, gpus: tuple[Gpu, ...]) -> dict[str, Any]:
    options = list(role.options())
    fitting = [option for option in options if _fits(option, gpus, SIZES[0])]
    at_all = [option for option in fitting if _fits(option, gpus, SIZES[-1])]
    chosen = next(iter(at_all or fitting), None)
    shown = chosen if gpus else _usual(options)
    return {
        "name": role.name,
        "estimate": role.work.formula,
        "options": [_option(option, gpus) for option in options],
        "fits": chosen is not None,
        "chosen": None if shown is None else _option(shown, gpus),
        "command": None if shown is None else _command(model, role, shown),
    }


def _usual(options: list[Option]) -> Option:
    """The first that usual GPUs can run, otherwise the one that needs least of each."""
    limit = _USABLE * _USUAL_GPU
    usual = (option for option in options if option.total(*SIZES[0]) <= limit)
    least = min(options, key=lambda option: option.total(*SIZES[0]))
    return next(usual, least)


def _fits(option: Option, gpus: tuple[Gpu, ...], size: tuple[int, int]) -> bool:
    large = [gpu for gpu in gpus if option.total(*size) <= _USABLE * gpu.nbytes]
    return len(large) >= option.split.gpus


def _option(option: Option, gpus: tuple[Gpu, ...]) -> dict[str, Any]:
    return {
        "form": option.form.name,
        "split": option.split.name,
        "gpus": option.split.gpus,
        "flags": list(option.flags),
        "weights": option.weights,
        "sizes": {
            f"{width}x{height}": {
                **option.parts(width, height),
                "total": option.total(width, height),
                "fits": _fits(option, gpus, (width, height)),
            }
            for width, height in SIZES
        },
    }


def _command(model: Path, role: Role, option: Option) -> str:
    words = (str(model) if word == "MODEL" else word for word in role.command)
    return shlex.join([*words, *option.flags])


def render(advice: dict[str, Any]) -> str:
    """The advice for people."""
    licence = advice["licence"]
    use = "commercial use allowed" if licence["commercial"] else "no commercial use"
    size = f"{advice['bytes'] / _GIB:.1f} GiB on disk"
    lines = [f"  {' and '.join(advice['titles'])}"]
    if "unknown" in advice:
        lines += [f"  {size}", f"  {advice['unknown']}"]
    else:
        count = advice["parameters"] / 1e9
        lines += [f"  {advice['variant']}: {count:.2f} billion parameters, {size}"]
    lines += [f"  weights under {licence['name']}: {use}"]
    lines += [f"  not there: {line}" for line in advice.get("missing", ())]
    lines += ["", *_render_gpus(advice["gpus"])]
    for role in advice.get("roles", ()):
        lines += ["", *_render_role(role)]
    return "\n".join(["advice", *lines])


def _render_gpus(gpus: list[dict[str, Any]]) -> list[str]:
    if not gpus:
        return ["  no GPU here"]
    return [f"  GPU here: {gpu['name']}, {gpu['bytes'] / _GIB:.1f} GiB" for gpu in gpus]


def _render_role(role: dict[str, Any]) -> Iterator[str]:
    sizes = list(role["options"][0]["sizes"])
    yield f"  {role['name']}: GiB of each GPU"
    yield _row("", ["weights", *sizes])
    for option in role["options"]:
        totals = [
            f"{found['total'] / _GIB:.1f}{' fits' if found['fits'] else ''}"
            for found in option["sizes"].values()
        ]
        yield _row(_title(option), [f"{option['weights'] / _GIB:.1f}", *totals])
    yield (
        f"    Weights are exact. Estimated beside them: {RUNTIME_BYTES / _GIB:.0f} GiB "
        f"for the runtime; {role['estimate']}."
    )
    chosen = role["chosen"]
    if chosen is None:
        yield "    None of this fits the GPUs here."
        return
    least = min(found["total"] for found in chosen["sizes"].values()) / _GIB
    state = "It fits" if role["fits"] else f"It takes {least:.1f} GiB of each GPU"
    yield f"    Run next ({_title(chosen)}). {state}:"
    yield f"    {role['command']}"


def _title(option: dict[str, Any]) -> str:
    return f"{option['form']}, {option['split']}"


def _row(title: str, cells: list[str]) -> str:
    return f"    {title:<38}{''.join(f'{cell:>14}' for cell in cells)}"
