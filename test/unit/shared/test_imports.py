# SPDX-License-Identifier: Apache-2.0
"""Who may import whom, and what importing the package costs.

The scan reads the syntax trees of all source files, so imports inside functions count
and nothing is imported. ``test_the_scan_sees_each_kind_of_violation`` proves on a
made-up package that every rule can fail.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
PACKAGE = REPOSITORY / "python" / "sglang_ext_gen"
# The one shared module whose task is to name the families.
NAMES_FAMILIES = Path("registry.py")
# What a family never imports: a client reaches it through them.
INTERFACES = ("cli", "gateway", "http")
# The house; its README is ``__init__.py``, its plan is in each folder's docstring.
TOP_FILES = {"__init__", "__main__", "envs", "errors", "registry"}
FOLDERS = {
    *("checkpoint", "cli", "diffusion", "gateway", "http", "kernels", "layers"),
    *("media", "models", "platforms", "plugin", "process", "request"),
}
MACHINE_PATH = re.compile(r"(?<![\w.$~}/-])/(home|root|work|tmp|mnt|Users|opt)/\w")


def imported_modules(path: Path, package: Path) -> Iterator[str]:
    """Dotted names of all that a file imports, relative imports resolved.

    ``from a import b`` gives ``a.b``, because ``b`` may be a module.
    """
    parents = (package.name, *path.relative_to(package).parent.parts)
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parents[: len(parents) - node.level + 1] if node.level else ()
            base = ".".join((*above, *filter(None, [node.module])))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def is_inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def broken_rule(file: Path, module: str) -> str | None:
    """The rule that an import breaks; ``file`` is relative to the package."""
    models = "sglang_ext_gen.models"
    if file.parts[0] != "models":
        if is_inside(module, models) and file != NAMES_FAMILIES:
            return "only registry.py and models/ name a family"
        return None
    if len(file.parts) < 3:
        return None
    if any(is_inside(module, f"sglang_ext_gen.{name}") for name in INTERFACES):
        return "a family knows no interface"
    family = f"{models}.{file.parts[1]}"
    its_own = (family, f"{models}.family")
    if is_inside(module, models) and not any(is_inside(module, m) for m in its_own):
        return "a family imports no other family"
    in_thinker = file.parts[2] == "thinker"
    if in_thinker and is_inside(module, "sglang.multimodal_gen"):
        return "thinker/ runs inside srt and imports no diffusion runtime"
    # A tiny checkpoint is written as a whole.
    writes_both = file.parts[2:] == ("tiny.py",)
    if not in_thinker and not writes_both and is_inside(module, f"{family}.thinker"):
        return "the generator talks to thinker/ only through a server"
    return None


def broken_imports(package: Path) -> list[str]:
    found = []
    for path in sorted(package.rglob("*.py")):
        file = path.relative_to(package)
        for module in imported_modules(path, package):
            rule = broken_rule(file, module)
            if rule is not None:
                found.append(f"{file} imports {module}: {rule}")
    return found


def folder_of(file: Path) -> str:
    """The folder of a file, or the name of a file at the top."""
    return file.parts[0] if len(file.parts) > 1 else file.stem


def folder_imports(package: Path) -> dict[str, set[str]]:
    """Folder -> the folders and top files that its files import."""
    found: dict[str, set[str]] = {}
    for path in package.rglob("*.py"):
        source = folder_of(path.relative_to(package))
        for module in imported_modules(path, package):
            parts = module.split(".")
            if parts[0] == package.name and len(parts) > 1:
                found.setdefault(source, set()).add(parts[1])
    return {source: targets - {source} for source, targets in found.items()}


def import_circle(imports: dict[str, set[str]]) -> list[str]:
    """Folders along one circle of imports, or none."""

    def walk(path: list[str]) -> list[str]:
        for target in sorted(imports.get(path[-1], ())):
            if target in path:
                return [*path[path.index(target) :], target]
            if circle := walk([*path, target]):
                return circle
        return []

    return next(filter(None, (walk([source]) for source in sorted(imports))), [])


def test_the_house_has_the_folders_of_its_plan():
    assert {path.stem for path in PACKAGE.glob("*.py")} == TOP_FILES
    found = {
        path.parent.relative_to(PACKAGE).parts[0] for path in PACKAGE.glob("*/*.py")
    }
    assert found == FOLDERS
    lacking = [
        folder
        for folder in FOLDERS
        if not ast.get_docstring(
            ast.parse((PACKAGE / folder / "__init__.py").read_text())
        )
    ]
    assert lacking == []


def test_no_circle_of_imports_between_folders():
    assert import_circle(folder_imports(PACKAGE)) == []
    assert import_circle({"a": {"b"}, "b": {"c", "d"}, "c": {"a"}}) == [*"abca"]


def test_import_direction():
    assert len(list(PACKAGE.rglob("*.py"))) > 10
    assert broken_imports(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "source", "rule"),
    [
        ("layers/a.py", "from sglang_ext_gen.models.lance import dit", "only registry"),
        ("layers/a.py", "def f():\n    from ..models import lance", "only registry"),
        ("plugin.py", "import sglang_ext_gen.models.lance.dit", "only registry"),
        (
            "models/lance/a.py",
            "from sglang_ext_gen.http import uploads",
            "no interface",
        ),
        ("models/lance/a.py", "from ... import cli", "no interface"),
        ("models/lance/a.py", "from ..qwen_image.dit import D", "no other family"),
        ("models/lance/a.py", "from .. import qwen_image", "no other family"),
        ("models/ming/b.py", "from .thinker.model import M", "through a server"),
        ("models/ming/b.py", "from . import thinker", "through a server"),
        (
            "models/ming/thinker/c.py",
            "import sglang.multimodal_gen.registry",
            "no diffusion runtime",
        ),
        (
            "models/ming/thinker/c.py",
            "if x:\n    from sglang import multimodal_gen",
            "no diffusion runtime",
        ),
        ("registry.py", "from sglang_ext_gen.models import lance", None),
        ("models/lance/a.py", "from . import dit, stages\nimport sglang.srt", None),
        ("models/lance/a.py", "from ...layers import rotary", None),
        ("models/lance/__init__.py", "from ..family import ModelFamily", None),
        ("models/ming/thinker/c.py", "from ..thinker_protocol import Q", None),
        ("models/ming/b.py", "import sglang.multimodal_gen", None),
        ("models/ming/tiny.py", "from .thinker import tiny", None),
    ],
)
def test_the_scan_sees_each_kind_of_violation(tmp_path, file, source, rule):
    package = tmp_path / "sglang_ext_gen"
    path = package / file
    path.parent.mkdir(parents=True)
    path.write_text(source, "utf-8")
    found = broken_imports(package)
    if rule is None:
        assert found == []
    else:
        assert len(found) == 1
        assert rule in found[0]


def source_files() -> list[Path]:
    folders = (REPOSITORY / name for name in ("python", "test", "benchmark"))
    return [path for folder in folders for path in sorted(folder.rglob("*.py"))]


def test_each_file_starts_with_its_licence():
    line = "# SPDX-License-Identifier: Apache-2.0"
    others = [REPOSITORY / "Makefile", REPOSITORY / ".ci" / "run"]
    lacking = []
    for path in source_files() + others:
        lines = path.read_text("utf-8").splitlines()
        first = lines[1:2] if lines[:1] and lines[0].startswith("#!") else lines[:1]
        if first != [line]:
            lacking.append(str(path.relative_to(REPOSITORY)))
    assert lacking == []


def test_no_path_of_one_machine_in_what_users_get():
    found = []
    pages = sorted(REPOSITORY.glob("*.md")) + sorted(REPOSITORY.glob("benchmark/*.md"))
    tests = REPOSITORY / "test"
    code = [path for path in source_files() if not path.is_relative_to(tests)]
    for path in [*code, *pages]:
        for match in MACHINE_PATH.finditer(path.read_text("utf-8")):
            found.append(f"{path.relative_to(REPOSITORY)}: {match.group()}")
    assert found == []


@pytest.mark.parametrize(
    "arguments",
    [["-c", "import sglang_ext_gen"], ["-m", "sglang_ext_gen", "--help"]],
    ids=["import", "help"],
)
def test_start_up_imports_no_torch(arguments):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    # Lines of the report end with the module's name, indented by its depth.
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "sglang_ext_gen" in imported
    assert imported.isdisjoint({"torch", "sglang", "transformers"})
