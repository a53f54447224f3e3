# SPDX-License-Identifier: Apache-2.0
"""The list of stock symbols: complete, and true for the installed SGLang."""

import ast
import tomllib
from pathlib import Path

import pytest

from sglang_ext_gen.plugin import compat, hooks

REPOSITORY = Path(__file__).parents[3]
PACKAGE = REPOSITORY / "python" / "sglang_ext_gen"


def sglang_imports():
    """(module, symbol or None, file) of each SGLang import in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE)
        for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    yield node.module, alias.name, file
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    yield alias.name, None, file


def is_listed(module, symbol):
    symbols = compat.STOCK.get(module, {})
    if symbol is None:
        return bool(symbols)
    # A listed member also states that its class is needed.
    return any(symbol == listed.partition(".")[0] for listed in symbols)


def test_every_sglang_import_is_listed():
    missing = [
        f"{file}: {module} {symbol or ''}"
        for module, symbol, file in sglang_imports()
        if module.partition(".")[0] == "sglang" and not is_listed(module, symbol)
    ]
    assert missing == [], "add these to compat.STOCK"


def test_every_hook_target_is_listed():
    listed = {
        f"{module}.{symbol}"
        for module in compat.STOCK
        for symbol in compat.STOCK[module]
    }
    assert {hook.target for hook in hooks.HOOKS} <= listed


def test_nothing_is_listed_that_is_not_used():
    used = {module for module, _, _ in sglang_imports()}
    used |= {hook.target for hook in hooks.HOOKS}
    unused = [
        module
        for module in compat.STOCK
        if not any(name == module or name.startswith(f"{module}.") for name in used)
    ]
    assert unused == []


@pytest.mark.slow
def test_installed_sglang_has_all_of_it():
    assert compat.check() == []


def test_check_names_what_is_missing(monkeypatch):
    stock = {
        "json": {"loads": "s nope", "gone": "", "JSONDecoder.decode": "s"},
        "no_such_module_here": {"x": ""},
    }
    monkeypatch.setattr(compat, "STOCK", stock)
    assert compat.check() == [
        "json:loads has no parameter 'nope'",
        "json:gone does not exist",
        "no_such_module_here cannot be imported: No module named 'no_such_module_here'",
    ]


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
