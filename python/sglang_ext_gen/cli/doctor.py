# SPDX-License-Identifier: Apache-2.0
"""``sglang-ext-gen doctor``: is the installation sound, is a checkpoint complete?

Versions, entry points, variables and the checkpoint are looked at without importing
SGLang. The rest is asked of a fresh process, which starts as SGLang's own do.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

from sglang_ext_gen import __version__, compat, envs, hooks
from sglang_ext_gen.registry import FAMILIES, enabled_families, family_of, resolve

DISTRIBUTIONS = (
    "sglang",
    "sglang-kernel",
    "torch",
    "transformers",
    "diffusers",
    "triton",
)
# group -> the function that our entry point must name
ENTRY_POINTS = {
    "sglang.multimodal_gen.plugins": "sglang_ext_gen.plugin:register_diffusion",
    "sglang.srt.plugins": "sglang_ext_gen.plugin:register_srt",
}
FRESH_PROCESS_TIMEOUT_S = 600


def main(argv: list[str]) -> int:
    """Run the command; returns 0 when no problem was found, otherwise 1."""
    parser = argparse.ArgumentParser(
        prog="sglang-ext-gen doctor",
        description="Check the installation. With --model, first check that a local "
        "checkpoint is complete, without loading it. Exit code 1 on any problem.",
    )
    parser.add_argument("--model", type=Path, metavar="DIR", help="a checkpoint")
    parser.add_argument(
        "--no-process",
        action="store_true",
        help="leave out what needs a fresh process (registration, hooks, device)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    findings = examine(arguments.model, fresh_process=not arguments.no_process)
    print(json.dumps(findings, indent=2) if arguments.json else render(findings))
    return 1 if findings["problems"] else 0


def examine(model: Path | None, *, fresh_process: bool) -> dict[str, Any]:
    """Everything ``doctor`` knows, ready for JSON; ``problems`` lists what is wrong."""
    problems: list[str] = []
    findings: dict[str, Any] = {"problems": problems}
    if model is not None:
        findings["model"] = examine_model(model)
        problems += findings["model"]["problems"]
    findings["versions"] = _versions()
    findings["entry_points"] = _entry_points()
    findings["environment"] = {
        variable.name: os.environ.get(variable.name, variable.default)
        for variable in envs.VARIABLES
    }
    problems += _installation_problems(findings)
    if fresh_process:
        findings["process"] = _fresh_process()
        problems += _process_problems(findings["process"])
    return findings


def examine_model(model: Path) -> dict[str, Any]:
    """Whose checkpoint a directory is and what is wrong with it."""
    family = family_of(model) if model.is_dir() else None
    if family is None:
        titles = ", ".join(family.title for family in enabled_families())
        what = "no checkpoint of" if model.is_dir() else "no directory, so not one of"
        problems = [f"{model} is {what} {titles or 'any enabled family'}"]
        return {"path": str(model), "family": None, "problems": problems}
    problems = resolve(family.check_checkpoint)(model)
    return {"path": str(model), "family": family.name, "problems": problems}


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


def _installation_problems(findings: dict[str, Any]) -> Iterable[str]:
    reason = compat.unsupported_version()
    if reason is not None:
        yield reason
    for group, value in ENTRY_POINTS.items():
        if value not in findings["entry_points"][group].values():
            yield (
                f"entry point {value} is missing in {group}: install the package "
                "(pip install -e .), do not just put it on the path"
            )
    for name in envs.unknown_variables():
        yield f"{name} is set, but there is no such variable"


def _fresh_process() -> dict[str, Any]:
    command = [sys.executable, "-m", "sglang_ext_gen.cli.fresh_process"]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=FRESH_PROCESS_TIMEOUT_S,
    )
    if result.returncode != 0:
        return {"error": result.stderr.strip()[-2000:]}
    return json.loads(result.stdout)


def _process_problems(process: dict[str, Any]) -> Iterable[str]:
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


def render(findings: dict[str, Any]) -> str:
    """The findings for people."""
    sections = []
    if "model" in findings:
        model = findings["model"]
        state = (
            f"{len(model['problems'])} problems" if model["problems"] else "complete"
        )
        family = model["family"] or "unknown family"
        sections.append(_section("checkpoint", [(model["path"], f"{family}, {state}")]))
    sections.append(_section("versions", findings["versions"].items()))
    groups = findings["entry_points"].items()
    rows = [(group, ", ".join(names) or "none") for group, names in groups]
    sections.append(_section("entry points", rows))
    sections.append(_section("environment", findings["environment"].items()))
    sections += _render_process(findings.get("process", {}))
    problems = findings["problems"]
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        sections.append(f"{len(problems)} problem(s)\n{listed}")
    else:
        sections.append("no problems found")
    return "\n\n".join(sections)


def _render_process(process: dict[str, Any]) -> list[str]:
    if "families" not in process:
        return []
    registered = process["families"]
    families = [
        (family.title, _FAMILY_STATES[registered.get(family.name)])
        for family in FAMILIES
    ]
    applied = process["hooks"]
    states = [
        f"  {'applied' if applied[hook.target] else 'MISSING':<9}{hook.target}\n"
        f"           {hook.reason}"
        for hook in hooks.HOOKS
    ]
    return [
        _section("device", process["device"].items()),
        _section("families in a fresh process", families),
        "hooks in a fresh process\n" + "\n".join(states),
    ]


_FAMILY_STATES = {True: "registered", False: "NOT REGISTERED", None: "disabled"}


def _section(title: str, rows: Iterable[tuple[str, Any]]) -> str:
    lines = [f"  {name:<36}{'-' if value is None else value}" for name, value in rows]
    return "\n".join([title, *lines])
