# SPDX-License-Identifier: Apache-2.0
"""Whether the installed SGLang is the release, and has the shape, that we rely on.

What is relied on is read from three places: the package's own source
(``stock_uses.py``), the ledger of hooks (``hooks.py``), and the list of what neither
shows (``couplings.py``). A new SGLang release fails here first.
"""

import argparse
import ast
import dataclasses
import functools
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sglang_ext_gen.plugin import hooks
from sglang_ext_gen.plugin.couplings import COUPLINGS, Coupling
from sglang_ext_gen.plugin.stock_uses import Call, Signature, Sources, Use

SUPPORTED_SGLANG = "0.5.23"


def installed_sglang() -> str | None:
    """Version of the installed SGLang, or None; does not import it."""
    try:
        return version("sglang")
    except PackageNotFoundError:
        return None


def unsupported_version() -> str | None:
    """Why the installed SGLang is not supported, as a sentence, or None."""
    installed = installed_sglang()
    if installed == SUPPORTED_SGLANG:
        return None
    found = "none" if installed is None else installed
    return f"sglang_ext_gen is made for SGLang {SUPPORTED_SGLANG}, found {found}."


def check() -> list[str]:
    """Compare what we rely on with the installed SGLang; imports all of it.

    Returns:
        One sentence per thing that is missing or different; empty when all is there.
    """
    sources = Sources()
    problems = [
        *(line for use in sources.uses() for line in check_use(use, sources)),
        *(line for hook in hooks.HOOKS for line in check_hook(hook, sources)),
        *(line for row in COUPLINGS for line in check_coupling(row)),
    ]
    return list(dict.fromkeys(problems))


def check_use(use: Use, sources: Sources) -> Iterator[str]:
    """What is wrong with one use of SGLang."""
    owners = []
    for reference in use.owners:
        owner, problem = _find(reference, use.place)
        if problem is not None:
            yield problem
            return
        owners.append(owner)
    owner = owners[-1]
    if use.member is None:
        name, found = use.owners[-1], owner
    else:
        name = f"{use.owners[0]}.{use.member}"
        owner = next((o for o in owners if has_member(o, use.member)), None)
        if owner is None:
            # What we define and name ourselves needs nothing of SGLang.
            if use.member in sources.declared:
                return
            if use.override is None or use.member not in sources.words:
                verb = "used" if use.override is None else "overridden"
                yield f"{name} does not exist, {verb} in {use.place}"
            return
        found = getattr(owner, use.member, None)
        if found is getattr(object, use.member, None):
            return
    if use.call is not None and callable(found):
        stored = inspect.getattr_static(owner, str(use.member), None)
        takes_self = use.is_bound and inspect.isfunction(stored)
        yield from _check_call(name, found, use.call, int(takes_self), use.place)
    if use.override is not None and not str(use.member).startswith("__"):
        yield from _check_override(name, found, use.override, use.place)


def check_hook(hook: hooks.Hook, sources: Sources) -> Iterator[str]:
    """What is wrong with one row of the ledger."""
    ours = sources.functions[hook.replacement]
    try:
        stock = pkgutil.resolve_name(hook.target)
    except (AttributeError, ImportError) as error:
        yield f"{hook.target} does not exist, hooked by {hook.replacement}: {error}"
        return
    # First comes the original, or what it returned; then the object, under any name.
    is_method = "self" in inspect.signature(stock).parameters
    skipped = 1 + is_method
    ours = dataclasses.replace(
        ours, names=ours.names[skipped:], required=ours.required[skipped:]
    )
    yield from _check_override(hook.target, stock, ours, hook.replacement)


def check_coupling(row: Coupling) -> Iterator[str]:
    """What is wrong with one row of the list."""
    found, problem = _find(row.found_in, row.used_in)
    if problem is not None:
        yield problem
    elif not _CHECKS[row.kind](found, row.name):
        yield f"{row.found_in} has no {row.kind} {row.name!r}, used in {row.used_in}"


def has_member(owner: Any, name: str) -> bool:
    """Whether a module or class has a member, or objects of the class do."""
    if hasattr(owner, name):
        return True
    classes = owner.__mro__ if isinstance(owner, type) else ()
    return any(name in _names_on_objects(cls) for cls in classes)


@functools.cache
def _names_on_objects(cls: type) -> set[str]:
    """What a class annotates, and what its methods set on ``self`` and others."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError):  # not written in Python
        return set()
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    stored = {node.attr for node in nodes if isinstance(node.ctx, ast.Store)}
    return stored | set(inspect.get_annotations(cls))


def _find(reference: str, place: str) -> tuple[Any, str | None]:
    """What ``"module:symbol"`` names, or the sentence that it is not there."""
    module, _, symbol = reference.partition(":")
    try:
        found = importlib.import_module(module)
        # A symbol may be a module that nobody has imported yet.
        return pkgutil.resolve_name(f"{module}.{symbol}") if symbol else found, None
    except ImportError as error:
        return None, f"{module} cannot be imported: {error}"
    except AttributeError:
        return None, f"{reference} does not exist, used in {place}"


def _check_call(
    name: str, found: Any, call: Call, skipped: int, place: str
) -> Iterator[str]:
    try:
        signature = inspect.signature(found)
    except ValueError:  # not written in Python
        return
    bind = signature.bind if call.is_complete else signature.bind_partial
    try:
        bind(*[None] * (skipped + call.positional), **dict.fromkeys(call.keywords))
    except TypeError as error:
        yield f"{name}: {error}, called in {place}"


def _check_override(
    name: str, stock: Any, ours: Signature, place: str
) -> Iterator[str]:
    """Whether a function of ours takes what stock's callers give."""
    if not ours.is_function or not inspect.isroutine(stock):
        return
    parameters = inspect.signature(stock).parameters.values()
    given = [p.name for p in parameters if p.kind not in _STARRED]
    for parameter in given:
        if parameter not in (*ours.names, "self") and not ours.takes_any:
            yield f"{name} has a parameter {parameter!r} that {place} does not take"
    for parameter in ours.required:
        if parameter not in (*given, "self", "cls") and len(given) == len(parameters):
            yield f"{name} has no parameter {parameter!r}, which {place} needs"


def _has_flag(owner: Any, name: str) -> bool:
    parser = argparse.ArgumentParser(conflict_handler="resolve")
    owner.add_cli_args(parser)
    return name in parser._option_string_actions


def _has_route(owner: Any, name: str) -> bool:
    return any(getattr(route, "path", None) == name for route in owner.routes)


def _says(module: Any, name: str) -> bool:
    return re.search(name, inspect.getsource(module)) is not None


_STARRED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_CHECKS: dict[str, Callable[[Any, str], bool]] = {
    "field": _says,
    "flag": _has_flag,
    "member": has_member,
    "message": _says,
    "route": _has_route,
    "variable": _says,
}
