# SPDX-License-Identifier: Apache-2.0
"""The project's own files agree with each other: metadata, licence, docs, golden data.

Commands shown in the Markdown pages must exist; running them is for test/server/.
"""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[3]
PACKAGE = REPOSITORY / "python" / "sglang_ext_gen"
PYPROJECT: dict[str, Any] = tomllib.loads(
    (REPOSITORY / "pyproject.toml").read_text("utf-8")
)
PROJECT = PYPROJECT["project"]
PAGES = {"README.md"} | {
    str(path.relative_to(REPOSITORY))
    for pattern in ("*.md", "benchmark/**/*.md", "docs/**/*.md", "python/**/*.md")
    for path in REPOSITORY.glob(pattern)
}

# Import names that differ from the distribution's name.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "sklearn": "scikit-learn",
    "xdist": "pytest-xdist",
    "yaml": "pyyaml",
}
FENCE = re.compile(r"^```(?:console|bash|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SYSTEM_COMMANDS = {"cd", "curl", "export", "git", "pip", "python", "python3.11"}
SGLANG_COMMANDS = {"serve", "generate"}


def distribution(requirement: str) -> str:
    """Name of a requirement: ``sglang[diffusion]==0.5.23`` gives ``sglang``."""
    match = re.match(r"[\w.-]+", requirement)
    assert match is not None, requirement
    return match.group().lower()


DEPENDENCIES = {distribution(text) for text in PROJECT["dependencies"]}
TEST_DEPENDENCIES = {
    distribution(text) for text in PROJECT["optional-dependencies"]["test"]
}
MAKE_TARGETS = set(
    re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text("utf-8"), re.M)
)


def test_sglang_is_pinned_exactly():
    pins = [text for text in PROJECT["dependencies"] if distribution(text) == "sglang"]
    assert pins == ["sglang[diffusion]==0.5.23"]


def test_entry_points():
    assert PROJECT["scripts"] == {"sglang-ext-gen": "sglang_ext_gen.__main__:main"}
    # A `sglang.multimodal_gen.platforms` group would make SGLang skip our plugin.
    assert PROJECT["entry-points"] == {
        "sglang.multimodal_gen.plugins": {
            "sglang_ext_gen": "sglang_ext_gen.plugin.entry_points:register_diffusion"
        },
        "sglang.srt.plugins": {
            "sglang_ext_gen": "sglang_ext_gen.plugin.entry_points:register_srt"
        },
        "sglang.srt.platforms": {
            "cpu_reference": "sglang_ext_gen.plugin.entry_points:choose_platform"
        },
        "sglang.serve_backends": {
            "one-port": "sglang_ext_gen.gateway.backend:one_port"
        },
    }


@pytest.mark.parametrize(
    "target",
    [
        target
        for group in (PROJECT["scripts"], *PROJECT["entry-points"].values())
        for target in group.values()
    ],
)
def test_entry_point_targets_are_defined(target):
    module, _, function = target.partition(":")
    path = REPOSITORY / "python" / f"{module.replace('.', '/')}.py"
    tree = ast.parse(path.read_text("utf-8"), str(path))
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert function in defined


def test_version_is_the_packages():
    source = (PACKAGE / "__init__.py").read_text("utf-8")
    versions = re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    assert versions == [PROJECT["version"]]


def third_party_imports(folder: str) -> set[str]:
    names: set[str] = set()
    for path in (REPOSITORY / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add((node.module or "").partition(".")[0])
    local = {path.stem for path in (REPOSITORY / folder).iterdir()}
    names -= {*sys.stdlib_module_names, "sglang_ext_gen", *local}
    return {DISTRIBUTIONS.get(name) or name.lower().replace("_", "-") for name in names}


def test_what_the_package_imports_is_declared():
    assert third_party_imports("python") <= DEPENDENCIES


@pytest.mark.parametrize("folder", ["test", "benchmark"])
def test_what_tests_and_benchmarks_import_is_declared(folder):
    assert third_party_imports(folder) <= DEPENDENCIES | TEST_DEPENDENCIES


def test_licence():
    text = (REPOSITORY / "LICENSE").read_text("utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["license"] == "Apache-2.0"


def test_changelog_has_unreleased_on_top():
    text = (REPOSITORY / "CHANGELOG.md").read_text("utf-8")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings[0] == "[Unreleased]"


def test_ci_runs_make_test():
    script = REPOSITORY / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text("utf-8").splitlines()[-1] == "make test"


def test_golden_data_of_ideogram4_is_complete(ideogram4_golden):
    with (ideogram4_golden.path / "golden.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    assert {name: tensor["shape"] for name, tensor in header.items()} == {
        name: shape for name, (_, shape) in ideogram4_golden.json["tensors"].items()
    }
    assert ideogram4_golden.png.is_file()
    index = json.loads((ideogram4_golden.checkpoint / "model_index.json").read_text())
    components = {name for name, value in index.items() if isinstance(value, list)}
    folders = {path.name for path in ideogram4_golden.checkpoint.iterdir()}
    assert folders == components | {"model_index.json"}


def commands(page: str) -> Iterator[list[str]]:
    """Words of each command in a page's shell blocks, variables taken off.

    In a block with prompts the lines without one are output.
    """
    for block in FENCE.findall(page):
        lines = block.replace("\\\n", " ").splitlines()
        prompted = [line[2:] for line in lines if line.startswith("$ ")]
        for line in prompted or lines:
            for command in re.split(r" (?:&&|\|\|?|;) ", line):
                words = shlex.split(command, comments=True)
                while words and re.match(r"\w+=", words[0]):
                    words = words[1:]
                if words:
                    yield words


def sub_commands() -> str:
    done = subprocess.run(
        [sys.executable, "-m", "sglang_ext_gen", "--help"],
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def problem(words: list[str]) -> str | None:
    """Why a command cannot exist, or None."""
    name, *arguments = words
    name = name.removeprefix(".venv/bin/")
    if name.startswith("python") and arguments[:2] == ["-m", "sglang_ext_gen"]:
        name, arguments = "sglang-ext-gen", arguments[2:]
    if name == "sglang-ext-gen":
        if arguments[0].startswith("-"):
            return None
        known = re.search(rf"\b{re.escape(arguments[0])}\b", sub_commands())
        return None if known else f"sglang-ext-gen has no command {arguments[0]}"
    if name == "make":
        targets = {word for word in arguments if "=" not in word and word[0] != "-"}
        unknown = targets - MAKE_TARGETS
        return f"the Makefile has no target {unknown}" if unknown else None
    if name == "sglang":
        return None if arguments[0] in SGLANG_COMMANDS else f"sglang {arguments[0]}"
    if name.startswith("python") and arguments[:1] and arguments[0].endswith(".py"):
        exists = (REPOSITORY / arguments[0]).is_file()
        return None if exists else f"{arguments[0]} does not exist"
    if name in SYSTEM_COMMANDS | TEST_DEPENDENCIES:
        return None
    return f"unknown command {name}"


@pytest.mark.parametrize("page", sorted(PAGES))
def test_commands_in_pages_exist(page):
    text = (REPOSITORY / page).read_text("utf-8")
    found = [(words, problem(words)) for words in commands(text)]
    assert [(words, why) for words, why in found if why is not None] == []


def test_commands_are_read_and_wrong_ones_are_seen():
    page = (
        "```console\n$ A=1 make test ARGS='-x y' && make tset\nmake output\n```\n"
        "```bash\n# comment\npython benchmark/none.py \\\n  --tiny\nfoo | git\n```"
    )
    assert [problem(words) for words in commands(page)] == [
        None,
        "the Makefile has no target {'tset'}",
        "benchmark/none.py does not exist",
        "unknown command foo",
        None,
    ]
