# SPDX-License-Identifier: Apache-2.0
"""What this package takes from SGLang, read from its own source.

The syntax trees of all files say which symbols are imported, which members of imported
classes are read, what they are called with, and what subclasses override. Types are
known of imported names, of ``self`` and ``super()``, and of annotated parameters.
"""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
PARAMS = "sglang.multimodal_gen.configs.sample.sampling_params:SamplingParams"


@dataclass(frozen=True)
class Call:
    """With what something is called.

    Args:
        positional: Number of positional arguments.
        keywords: Names of the others.
        is_complete: Whether there is neither ``*args`` nor ``**kwargs``.
    """

    positional: int
    keywords: tuple[str, ...]
    is_complete: bool


@dataclass(frozen=True)
class Signature:
    """What a function of ours, or a value in its place, takes.

    Args:
        names: Of the parameters, ``self`` included.
        required: Of those without a default.
        takes_any: Whether there is ``**kwargs``.
        is_function: Whether it takes anything at all.
    """

    names: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    takes_any: bool = False
    is_function: bool = False


@dataclass(frozen=True)
class Use:
    """One thing that a line of ours expects of SGLang.

    Args:
        place: File and line.
        owners: ``"module:symbol"`` of the things of which one has the member.
        member: None where the owner itself is meant.
        call: With what it is called, if it is.
        is_bound: Whether it is reached through an object, not through its class.
        override: What stands in its place, where a class of ours overrides it.
    """

    place: str
    owners: tuple[str, ...]
    member: str | None = None
    call: Call | None = None
    is_bound: bool = False
    override: Signature | None = None


@dataclass
class _Class:
    """A class of ours: its bases as references, and the names that it defines."""

    bases: list[str]
    members: dict[str, ast.stmt]
    names: set[str] = field(default_factory=set)


class Sources:
    """All files of a package, parsed.

    Args:
        package: Its folder.
    """

    def __init__(self, package: Path = PACKAGE) -> None:
        self.package = package
        self.trees = {
            path.relative_to(package): ast.parse(path.read_text("utf-8"), str(path))
            for path in sorted(package.rglob("*.py"))
        }
        self.functions: dict[str, Signature] = {}
        self.classes: dict[str, _Class] = {}
        for file, tree in self.trees.items():
            names, module = _imported_names(tree), self.module(file)
            for node in tree.body:
                if isinstance(node, ast.ClassDef):
                    names[node.name] = f"{module}:{node.name}"
                    self.classes[names[node.name]] = _read_class(node, names)
                elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    self.functions[f"{module}:{node.name}"] = signature(node)

    def module(self, file: Path) -> str:
        """Dotted name of a file."""
        parts = (self.package.name, *file.with_suffix("").parts)
        return ".".join(parts).removesuffix(".__init__")

    @cached_property
    def words(self) -> set[str]:
        """Every attribute that is read anywhere, and every string."""
        nodes = [node for tree in self.trees.values() for node in ast.walk(tree)]
        read = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        said = {str(node.value) for node in nodes if isinstance(node, ast.Constant)}
        named = {node.arg for node in nodes if isinstance(node, ast.keyword)}
        return read | said | {name for name in named if name}

    @cached_property
    def declared(self) -> set[str]:
        """Names of the fields and options in the families' tables."""
        return {
            str(node.args[0].value)
            for tree in self.trees.values()
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and getattr(node.func, "id", None) == "RequestField"
            and isinstance(node.args[0], ast.Constant)
        }

    def uses(self) -> Iterator[Use]:
        """All that the package expects of SGLang."""
        for file, tree in self.trees.items():
            yield from _Reader(self, file, tree).found

    def stock_bases(self, reference: str) -> tuple[tuple[str, ...], set[str]]:
        """Bases of a class that are not ours, and the names that our classes define.

        For ``Req`` also the sampling params, to which it forwards.
        """
        if reference.endswith(":Req"):
            ours = [name for name in self.classes if self._is_params(name)]
            return (reference, PARAMS), set().union(
                *(self.classes[name].names for name in ours)
            )
        if reference not in self.classes:
            return (reference,), set()
        found = [self.stock_bases(base)[0] for base in self.classes[reference].bases]
        names = self.classes[reference].names | self.inherited(reference)
        return tuple(base for bases in found for base in bases), names

    def inherited(self, reference: str) -> set[str]:
        """The names that our classes above a class of ours define."""
        bases = self.classes[reference].bases
        return set().union(*(self.stock_bases(base)[1] for base in bases))

    def _is_params(self, reference: str) -> bool:
        return PARAMS in self.stock_bases(reference)[0]


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Signature:
    """What a function takes."""
    given = node.args
    plain = [parameter.arg for parameter in (*given.posonlyargs, *given.args)]
    named = dict(zip([p.arg for p in given.kwonlyargs], given.kw_defaults, strict=True))
    required = plain[: len(plain) - len(given.defaults)]
    required += [name for name, default in named.items() if default is None]
    takes_any = given.kwarg is not None
    return Signature((*plain, *named), tuple(required), takes_any, True)


def is_stock(references: Iterable[str]) -> bool:
    """Whether any of these is SGLang's."""
    return any(name.partition(":")[0].split(".")[0] == "sglang" for name in references)


def _imported_names(tree: ast.AST) -> dict[str, str]:
    """Local name -> ``"module:symbol"`` of all that a file imports."""
    return {
        alias.asname or alias.name: f"{node.module}:{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def _reference(node: ast.expr, names: dict[str, str]) -> str | None:
    """What an expression such as ``Req`` or ``module.Req`` names."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _reference(node.value, names)
        return None if owner is None else f"{owner}.{node.attr}"
    return None


def _annotated(node: ast.expr | None, names: dict[str, str]) -> str | None:
    """What an annotation such as ``Req``, ``"Req"`` or ``Req | None`` names."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        node = ast.parse(node.value, mode="eval").body
    if isinstance(node, ast.BinOp):
        node = node.left
    return None if node is None else _reference(node, names)


def _read_class(node: ast.ClassDef, names: dict[str, str]) -> _Class:
    members: dict[str, ast.stmt] = {}
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            members[statement.name] = statement
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            is_plain = isinstance(statement, ast.Assign)
            targets = statement.targets if is_plain else [statement.target]
            members |= {t.id: statement for t in targets if isinstance(t, ast.Name)}
    stored = {
        child.attr
        for child in ast.walk(node)
        if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store)
    }
    bases = [_reference(base, names) for base in node.bases]
    return _Class([b for b in bases if b], members, {*members, *stored})


class _Reader(ast.NodeVisitor):
    """Collects the uses of one file."""

    def __init__(self, sources: Sources, file: Path, tree: ast.Module) -> None:
        self.sources, self.file = sources, file
        self.module = sources.module(file)
        self.names = _imported_names(tree)
        self.types: dict[str, str] = {}
        self.inside: str | None = None
        self.found: list[Use] = []
        self.visit(tree)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(node, (alias.name,))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            self._add(node, (f"{node.module}:{alias.name}",))

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        before = self.inside, self.types
        self.inside = f"{self.module}:{node.name}"
        if self.inside in self.sources.classes:
            self.types = {**self.types, "self": self.inside, "cls": self.inside}
            bases, _ = self.sources.stock_bases(self.inside)
            for name, member in self.sources.classes[self.inside].members.items():
                is_function = isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef)
                taken = signature(member) if is_function else Signature()
                self._add(member, bases, name, override=taken)
        self.generic_visit(node)
        self.inside, self.types = before

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        before = self.types
        for parameter in (*node.args.args, *node.args.kwonlyargs):
            type_ = _annotated(parameter.annotation, self.names)
            if type_ is not None:
                self.types = {**self.types, parameter.arg: type_}
        self.generic_visit(node)
        self.types = before

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._read(node, None)

    def visit_Call(self, node: ast.Call) -> None:
        starred = any(isinstance(argument, ast.Starred) for argument in node.args)
        keywords = tuple(k.arg for k in node.keywords if k.arg is not None)
        complete = not starred and len(keywords) == len(node.keywords)
        call = Call(0 if starred else len(node.args), keywords, complete)
        if isinstance(node.func, ast.Attribute):
            self._read(node.func, call)
        else:
            owner = _reference(node.func, self.names)
            if owner is not None:
                self._add(node, (owner,), call=call)
            self.visit(node.func)
        for child in (*node.args, *node.keywords):
            self.visit(child)

    def _read(self, node: ast.Attribute, call: Call | None) -> None:
        """A member of something whose type is known."""
        value = node.value
        is_super = isinstance(value, ast.Call) and ast.unparse(value) == "super()"
        type_ = self.types.get(value.id) if isinstance(value, ast.Name) else None
        if is_super and self.inside in self.sources.classes:
            bases, _ = self.sources.stock_bases(self.inside)
            if node.attr not in self.sources.inherited(self.inside):
                self._add(node, bases, node.attr, call, is_bound=True)
        elif type_ is not None:
            bases, own = self.sources.stock_bases(type_)
            if node.attr not in own and isinstance(node.ctx, ast.Load):
                self._add(node, bases, node.attr, call, is_bound=True)
        else:
            owner = _reference(value, self.names)
            if owner is not None:
                self._add(node, (owner,), node.attr, call)
            self.visit(value)

    def _add(
        self,
        node: ast.stmt | ast.expr,
        owners: tuple[str, ...],
        member: str | None = None,
        call: Call | None = None,
        is_bound: bool = False,
        override: Signature | None = None,
    ) -> None:
        if is_stock(owners):
            place = f"{self.file}:{node.lineno}"
            use = Use(place, owners, member, call, is_bound, override)
            self.found.append(use)
