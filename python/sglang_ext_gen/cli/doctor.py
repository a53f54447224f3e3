# SPDX-License-Identifier: Apache-2.0
"""``sglang-ext-gen doctor``: is the installation sound, is a checkpoint complete?

Versions, entry points, variables and the checkpoint are looked at without importing
SGLang. The rest is asked of a fresh process, which starts as SGLang's own do.
"""

import argparse
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

from sglang_ext_gen import __version__, envs
from sglang_ext_gen.checkpoint.released_config import unused_keys_noted
from sglang_ext_gen.cli import advice, hub, upgrade
from sglang_ext_gen.plugin import compat, hooks
from sglang_ext_gen.registry import (
    FAMILIES,
    enabled_families,
    enabled_language_models,
    family_of,
    language_model_of,
    near_misses,
)

DISTRIBUTIONS = (
    "sglang",
    "sglang-kernel",
    "torch",
    "transformers",
    "diffusers",
    "triton",
)
_PLUGIN = "sglang_ext_gen.plugin.entry_points"
# group -> the function that our entry point must name
ENTRY_POINTS = {
    "sglang.multimodal_gen.plugins": f"{_PLUGIN}:register_diffusion",
    "sglang.srt.plugins": f"{_PLUGIN}:register_srt",
    "sglang.srt.platforms": f"{_PLUGIN}:choose_platform",
    "sglang.serve_backends": "sglang_ext_gen.gateway.backend:one_port",
}
FRESH_PROCESS_TIMEOUT_S = 600


def main(argv: list[str]) -> int:
    """Run the command; returns 0 when no problem was found, otherwise 1."""
    parser = argparse.ArgumentParser(
        prog="sglang-ext-gen doctor",
        description="Check the installation. With --model, first check that a local "
        "checkpoint is complete, without loading it. Exit code 1 on any problem.",
    )
    parser.add_argument(
        "--model",
        metavar="DIR",
        help="a checkpoint, or the Hugging Face id of one: one that was not "
        "downloaded yet is answered from its list of files",
    )
    parser.add_argument(
        "--fp8-quality",
        action="store_true",
        help="with --model: what FP8 weights would lose, layer by layer, in dB of "
        "signal to noise; reads all weights",
    )
    parser.add_argument(
        "--no-process",
        action="store_true",
        help="leave out what needs a fresh process (registration, hooks, device)",
    )
    parser.add_argument(
        "--upgrade",
        action="store_true",
        help="also go through the steps of an upgrade of SGLang (UPGRADING.md)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    if arguments.fp8_quality and arguments.model is None:
        parser.error("--fp8-quality needs --model")
    if arguments.upgrade and arguments.no_process:
        parser.error("--upgrade needs the fresh process that --no-process leaves out")
    findings: dict[str, Any] = {"problems": []}
    for section in _sections(arguments.model, fresh_process=not arguments.no_process):
        name, found, problems = section
        findings[name] = found
        findings["problems"] += problems
        if not arguments.json:
            print(_RENDERERS[name](found), end="\n\n", flush=True)
    if arguments.fp8_quality:
        findings["fp8_quality"] = _fp8_quality(Path(arguments.model))
        if not arguments.json:
            print(_render_fp8_quality(findings["fp8_quality"]), end="\n\n")
    if arguments.upgrade:
        steps = upgrade.steps(findings["process"])
        findings["upgrade"] = [dataclasses.asdict(step) for step in steps]
        if not arguments.json:
            print(upgrade.render(steps), end="\n\n")
    if arguments.json:
        print(json.dumps(findings, indent=2))
    else:
        print(_render_problems(findings["problems"]))
    return 1 if findings["problems"] else 0


def _sections(
    model: str | None, *, fresh_process: bool
) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    """Name, findings and problems of one subject after the other, quickest first."""
    if model is not None:
        found = _examine_anywhere(model)
        yield "model", found, found["problems"]
    reason = compat.unsupported_version()
    yield "versions", _versions(), [] if reason is None else [reason]
    groups = _entry_points()
    yield "entry_points", groups, list(_missing_entry_points(groups))
    yield "environment", _environment(), []
    if fresh_process:
        print("asking a fresh process, which takes about a minute ...", file=sys.stderr)
        process = _fresh_process()
        yield "process", process, list(_process_problems(process))


def _examine_anywhere(model: str) -> dict[str, Any]:
    if not hub.is_id(model):
        return examine_model(Path(model))
    folder = hub.cached_folder(model)
    return hub.examine(model) if folder is None else examine_model(folder)


def examine_model(model: Path) -> dict[str, Any]:
    """Whose checkpoint a directory is and what is wrong with it."""
    try:
        return _examine_readable(model)
    except OSError as error:
        # Of a folder that may not be entered, not even what is in it can be asked.
        reason = f"{error.filename or model} cannot be read: {error.strerror}"
        return _findings(model, None, [reason])


def _examine_readable(model: Path) -> dict[str, Any]:
    owners = _owners(model) if model.is_dir() else []
    notes = near_misses(model) if model.exists() else []
    if not owners:
        rows = (*enabled_families(), *enabled_language_models())
        titles = ", ".join(row.title for row in rows)
        what = "no checkpoint of" if model.is_dir() else "no directory, so not one of"
        problems = [f"{model} is {what} {titles or 'any enabled family'}", *notes]
        return _findings(model, None, problems)
    checks = dict.fromkeys(row.load(row.check_checkpoint) for row in owners)
    with unused_keys_noted() as unused:
        problems = [line for check in checks for line in check(model)]
    found = _findings(model, owners[0].name, problems, [*notes, *unused])
    return {**found, "advice": advice.advise(model, owners, advice.gpus_here())}


def _findings(
    model: Path,
    family: str | None,
    problems: Sequence[str],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    return {
        "path": str(model),
        "family": family,
        "problems": list(problems),
        "notes": list(notes),
    }


def _owners(model: Path) -> list[Any]:
    """Whose parts a directory holds.

    A checkpoint may hold both a generator and a language model. One of the two whose
    weights are there belongs to it even where a broken config hides what it is.
    """
    family, language_model = family_of(model), language_model_of(model)
    if family and not language_model and any(model.glob("model*.safetensors*")):
        rows = enabled_language_models()
        named = [row for row in rows if row.name == family.language_model]
        language_model = next(iter(named), None)
    folders = (model / "transformer", model / "vae")
    if language_model and not family and any(folder.is_dir() for folder in folders):
        rows = enabled_families()
        named = [row for row in rows if row.language_model == language_model.name]
        family = next(iter(named), None)
    return [row for row in (family, language_model) if row is not None]


def _fp8_quality(model: Path) -> dict[str, float]:
    """Signal-to-noise ratio in dB of each weight after quantisation."""
    family = family_of(model)
    if family is None or family.fp8_quality is None:
        return {}
    quality = family.load(family.fp8_quality)(model)
    return {name: round(decibels, 2) for name, decibels in quality}


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "sglang-ext-gen": __version__,
    }
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    found["gpu driver"] = _driver_version()
    return found


def _driver_version() -> str | None:
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    result = subprocess.run(query, capture_output=True, text=True, check=False)
    return result.stdout.split("\n")[0].strip() or None


def _entry_points() -> dict[str, dict[str, str]]:
    return {
        group: {entry.name: entry.value for entry in entry_points(group=group)}
        for group in ENTRY_POINTS
    }


def _missing_entry_points(groups: dict[str, dict[str, str]]) -> Iterator[str]:
    for group, value in ENTRY_POINTS.items():
        if value not in groups[group].values():
            yield (
                f"entry point {value} is missing in {group}: install the package "
                "(pip install -e .), do not just put it on the path"
            )


def _environment() -> dict[str, str]:
    return {
        variable.name: os.environ.get(variable.name, variable.default)
        for variable in envs.VARIABLES
    }


def _fresh_process() -> dict[str, Any]:
    command = [sys.executable, "-m", "sglang_ext_gen.cli.fresh_process"]
    try:
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=FRESH_PROCESS_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        return {"error": str(error)}
    if result.returncode != 0:
        return {"error": result.stderr.strip()[-2000:]}
    return json.loads(result.stdout)


def _process_problems(process: dict[str, Any]) -> Iterator[str]:
    if "error" in process:
        yield f"the fresh process failed: {process['error']}"
        return
    for name, is_registered in process["families"].items():
        if not is_registered:
            yield f"{name} is not registered in a fresh process; see SGLang's log"
    for target, is_applied in process["hooks"].items():
        if not is_applied:
            yield f"the hook on {target} is not applied in a fresh process"
    yield from process["compat"]


def _render_model(model: dict[str, Any]) -> str:
    count = len(model["problems"])
    state = f"{count} problem(s)" if count else "complete"
    family = model["family"] or "unknown family"
    table = _table("checkpoint", {model["path"]: f"{family}, {state}"})
    lines = [table, *(f"  {note}" for note in model["notes"])]
    if "advice" in model:
        lines += ["", advice.render(model["advice"])]
    if "hub" in model:
        lines += ["", hub.render(model["hub"])]
    return "\n".join(lines)


def _render_fp8_quality(quality: dict[str, float]) -> str:
    if not quality:
        return "this family quantises no weights at load"
    rows = {name: f"{decibels:.1f} dB" for name, decibels in quality.items()}
    return _table("FP8 weights, signal to noise", rows)


def _render_entry_points(groups: dict[str, dict[str, str]]) -> str:
    rows = {group: ", ".join(names) or "none" for group, names in groups.items()}
    return _table("entry points", rows)


def _render_process(process: dict[str, Any]) -> str:
    if "error" in process:
        return "fresh process: failed"
    families = {
        family.title: _FAMILY_STATES[process["families"].get(family.name)]
        for family in FAMILIES
    }
    lines = ["hooks in a fresh process"]
    for hook in hooks.HOOKS:
        if hook.target not in process["hooks"]:
            continue  # for another kind of device
        state = "applied" if process["hooks"][hook.target] else "MISSING"
        lines += [f"  {state:<9}{hook.target}", f"           {hook.reason}"]
    return "\n\n".join(
        [
            _table("device", process["device"]),
            _table("families in a fresh process", families),
            "\n".join(lines),
        ]
    )


def _render_problems(problems: list[str]) -> str:
    if not problems:
        return "no problems found"
    listed = "\n".join(f"  {problem}" for problem in problems)
    return f"{len(problems)} problem(s)\n{listed}"


def _table(title: str, rows: dict[str, Any]) -> str:
    width = max(len(name) for name in rows) + 2
    lines = [
        f"  {name:<{width}}{'-' if value is None else value}".rstrip()
        for name, value in rows.items()
    ]
    return "\n".join([title, *lines])


_FAMILY_STATES = {True: "registered", False: "NOT REGISTERED", None: "disabled"}
_RENDERERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "model": _render_model,
    "versions": partial(_table, "versions"),
    "entry_points": _render_entry_points,
    "environment": partial(_table, "environment"),
    "process": _render_process,
}
