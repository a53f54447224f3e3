# SPDX-License-Identifier: Apache-2.0
"""What we rely on in SGLang: read from our source, listed, true for the installed one.

What a changed SGLang would do is shown on a made-up module of it and a made-up package
of ours: each case changes one line of the former.
"""

import ast
import importlib.util
import re
import sys
import tomllib
import types
from itertools import chain
from pathlib import Path

import pytest

from sglang_ext_gen.plugin import compat, hooks
from sglang_ext_gen.plugin.couplings import COUPLINGS, Coupling
from sglang_ext_gen.plugin.stock_uses import PACKAGE, Sources, is_stock
from sglang_ext_gen.registry import FAMILIES

REPOSITORY = Path(__file__).parents[3]
# Flags that argparse did not add, and one of the hub's own command.
OWN_FLAGS = {"--help", "--version", "--local-dir"}
OF_ARGPARSE = {"_ActionsContainer", "_option_string_actions"}
# Where routes are spelled out.
ROUTE_FILES = ("http", "gateway", "process", "registry.py", "models/ming_omni")

STOCK = """
class Base:
    def __init__(self, size=1):
        self.width = size

    def step(self, batch, scale=1):
        return batch * scale

    def finish(self):
        return None

    @staticmethod
    def save(path):
        return path

def draw(prompt, steps):
    raise RuntimeError(f"Error executing {prompt}")

class Args:
    @staticmethod
    def add_cli_args(parser):
        parser.add_argument("--tp-size")

class Route:
    path = "/v1/draw"

class Router:
    routes = [Route]
"""
OURS = """
from sglang.made_up import Base, draw

class Ours(Base):
    height = 1

    def step(self, batch, scale=3):
        return super().step(batch, scale=2) * self.width * self.height

    def finish(self):
        return None

def run(base: Base | None):
    return base.save("here")

def around_draw(original, prompt, steps):
    return draw(prompt, steps=2)
"""
IN = "sglang.made_up"
HOOK = hooks.Hook(
    f"{IN}.draw", "around", "sglang_ext_gen.ours:around_draw", "srt", "A.", "B."
)
ROWS = (
    Coupling("message", r"Error executing \{prompt\}", "ours.py", IN, "A."),
    Coupling("flag", "--tp-size", "ours.py", f"{IN}:Args", "A."),
    Coupling("member", "width", "ours.py", f"{IN}:Base", "A."),
    Coupling("route", "/v1/draw", "ours.py", f"{IN}:Router", "A."),
)


@pytest.fixture
def problems(tmp_path, monkeypatch):
    """What ``check`` says when one line of the made-up SGLang is another."""

    def check(line: str = "", changed: str = "") -> list[str]:
        assert line in STOCK
        file = tmp_path / "made_up.py"
        file.write_text(STOCK.replace(line, changed) if line else STOCK, "utf-8")
        spec = importlib.util.spec_from_file_location(IN, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # In the place of the real one, which takes half a minute to import.
        monkeypatch.setitem(sys.modules, "sglang", types.ModuleType("sglang"))
        monkeypatch.setitem(sys.modules, IN, module)
        spec.loader.exec_module(module)
        package = tmp_path / "sglang_ext_gen"
        package.mkdir()
        (package / "ours.py").write_text(OURS, "utf-8")
        monkeypatch.setattr(compat, "Sources", lambda: Sources(package))
        monkeypatch.setattr(compat, "COUPLINGS", ROWS)
        monkeypatch.setattr(hooks, "HOOKS", (HOOK,))
        return compat.check()

    return check


def test_nothing_is_wrong_with_what_fits(problems):
    assert problems() == []


@pytest.mark.parametrize(
    ("line", "changed", "said"),
    [
        ("def draw", "def paint", f"{IN}:draw does not exist, used in ours.py:2"),
        ("def draw", "def paint", f"{IN}.draw does not exist, hooked by"),
        ("steps):", "count):", "draw: missing a required argument: 'count', called in"),
        ("steps):", "steps, size):", "draw has a parameter 'size' that sglang_ext"),
        ("steps):", "steps, *, at):", "draw: missing a required argument: 'at'"),
        ("prompt, steps", "prompt", "draw: got an unexpected keyword argument 'steps'"),
        ("prompt, steps", "prompt", "draw has no parameter 'steps', which sglang_ext"),
        ("class Base", "class Root", f"{IN}:Base does not exist, used in ours.py:2"),
        ("def step", "def walk", f"{IN}:Base.step does not exist, used in ours.py:8"),
        ("def finish", "def end", "Base.finish does not exist, overridden in ours.py"),
        ("def save", "def keep", f"{IN}:Base.save does not exist, used in ours.py:14"),
        ("save(path)", "save()", "Base.save: too many positional arguments"),
        ("scale=1", "by=1", "Base.step: got an unexpected keyword argument 'scale'"),
        ("batch, ", "batch, mask, ", "Base.step has a parameter 'mask' that ours.py:7"),
        ("self, batch, ", "self, ", "Base.step has no parameter 'batch', which ours"),
        ("self.width", "self.size", f"{IN}:Base.width does not exist, used in ours.py"),
        ("self.width", "self.size", f"{IN}:Base has no member 'width', used in ours"),
        ("Error executing", "Failed at", f"{IN} has no message 'Error executing"),
        ("--tp-size", "--tp", f"{IN}:Args has no flag '--tp-size', used in ours.py"),
        ("/v1/draw", "/v2/draw", f"{IN}:Router has no route '/v1/draw', used in ours"),
    ],
)
def test_each_change_of_stock_is_named(problems, line, changed, said):
    assert [problem for problem in problems(line, changed) if said in problem]


def test_a_module_that_is_gone_is_named(problems, monkeypatch):
    problems()
    monkeypatch.setitem(sys.modules, IN, None)
    found = compat.check()
    assert found[0].startswith(f"{IN} cannot be imported: ")
    assert f"{IN}.draw does not exist" in found[1]


@pytest.mark.slow
def test_installed_sglang_has_all_of_it():
    assert compat.check() == []


# --- what the scan of our source sees, and what is listed --------------------


@pytest.fixture(scope="module")
def sources():
    return Sources()


def test_the_scan_sees_every_import_and_override(sources):
    uses = list(sources.uses())
    imported = {use.owners[0] for use in uses if use.member is None}
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text("utf-8")
        for module in re.findall(r"^\s*from (sglang\.\S+) import", text, re.M):
            assert any(name.startswith(f"{module}:") for name in imported), module
    members = {(use.owners[0].rpartition(":")[2], use.member) for use in uses}
    assert {
        ("DiffGenerator", "_send_to_scheduler_and_wait_for_response"),
        ("ComposedPipelineBase", "get_module"),
        ("SamplingParams", "_explicit_fields"),
        ("ModelTaskType", "I2I"),
        ("Req", "num_outputs_per_prompt"),
    } <= members
    overridden = {use.member for use in uses if use.override is not None}
    assert {"load_customized", "get_image_feature", "component_uses"} <= overridden


def constants(sources, pattern):
    """(Text, file) of each string in our source, or part of an f-string, in full."""
    for file, tree in sources.trees.items():
        # What tables of options name is checked in test_options.py.
        if file.name in ("couplings.py", "options.py", "options_page.py"):
            continue
        for node in ast.walk(tree):
            text = str(node.value) if isinstance(node, ast.Constant) else ""
            if re.fullmatch(pattern, text):
                yield text, file.as_posix()


def listed(*kinds):
    return {row.name for row in COUPLINGS if row.kind in kinds}


def test_every_flag_of_stock_is_listed(sources):
    own = {
        argument.value
        for tree in sources.trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and "add_argument" in ast.dump(node.func)
        for argument in node.args
        if isinstance(argument, ast.Constant)
    }
    tables = [
        row.load(table)
        for row in FAMILIES
        for table in (row.request_fields, row.load_options)
    ]
    for field in chain.from_iterable(tables):
        name = field.name.replace("_", "-")
        # load_unconditional is --no-unconditional.
        own |= {f"--{name}", f"--no-{name.removeprefix('load-')}"}
    named = {name for name, _ in constants(sources, r"--[a-z0-9-]*[a-z0-9]")}
    assert named - own - OWN_FLAGS <= listed("flag")
    assert {"--mem-fraction-static", "--master-port"} <= named


def test_every_variable_of_stock_is_listed(sources):
    named = {name for name, _ in constants(sources, r"SGLANG_\w*[A-Z]")}
    assert {name for name in named if "EXT_GEN" not in name} == listed("variable")


def test_every_route_of_stock_is_listed(sources):
    named = {
        name
        for name, file in constants(sources, r"(/[a-z][a-z0-9_]+)+")
        if file.startswith(ROUTE_FILES)
    }
    assert [
        name
        for name in named
        if not any(route.startswith(name) for route in listed("route"))
    ] == []
    assert {"/v1/set_lora", "/generate"} <= named


def test_every_private_name_of_others_is_listed(sources):
    read = {use.member for use in sources.uses()}
    ours = set().union(*(row.names for row in sources.classes.values()))
    ours |= {name.rpartition(":")[2] for name in sources.functions}
    found = set()
    for tree in sources.trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
                found |= {a.value for a in node.args if isinstance(a, ast.Constant)}
    private = {name for name in found if re.match(r"_[a-z]", str(name))}
    assert private - ours - read - OF_ARGPARSE <= listed("member")
    assert {"_patched", "_resolution_finished"} <= private - ours - read


@pytest.mark.parametrize("row", COUPLINGS, ids=lambda row: f"{row.kind} {row.name}")
def test_a_row_names_where_it_is_used_and_why(row):
    text = (PACKAGE / row.used_in).read_text("utf-8")
    if row.kind in ("flag", "member", "route", "variable"):
        assert row.name in text
    assert row.why.endswith(".")
    assert is_stock([row.found_in]) or row.kind == "member"


# --- the release ------------------------------------------------------------


def test_the_pin_is_the_supported_release():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
    pin = f"sglang[diffusion]=={compat.SUPPORTED_SGLANG}"
    assert pin in project["project"]["dependencies"]
    assert compat.unsupported_version() is None


@pytest.mark.parametrize(("installed", "found"), [("0.9.0", "0.9.0"), (None, "none")])
def test_other_releases_are_named(monkeypatch, installed, found):
    monkeypatch.setattr(compat, "installed_sglang", lambda: installed)
    reason = compat.unsupported_version()
    assert reason is not None
    assert compat.SUPPORTED_SGLANG in reason
    assert f"found {found}" in reason
