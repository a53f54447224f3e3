# SPDX-License-Identifier: Apache-2.0
"""The parts of a checkpoint as a table: one ``Component`` a row, one table a family.

A row says where a part is, how its config is read, which tensors it holds (``specs``),
where they go (``rules``) and what builds the module (``build``). The two last are
independent statements about the first: checking, loading, converting and writing tiny
checkpoints are generic. Nothing here imports torch or SGLang.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from posixpath import normpath
from typing import Any, Generic, Protocol, Self, TypeVar

from sglang_ext_gen.checkpoint.files import is_there
from sglang_ext_gen.checkpoint.layout import (
    StoredTensor,
    TensorSpec,
    check_tensors,
    read_json,
    read_tensors,
)
from sglang_ext_gen.checkpoint.pickle_layout import is_stand_in, read_pickle_layout
from sglang_ext_gen.checkpoint.rules import Rule
from sglang_ext_gen.errors import CheckpointError, ConfigError

WEIGHTS = "diffusion_pytorch_model.safetensors"
PICKLES = (".pt", ".pth")
# Far above any release: keeps a wrong layer count from filling the memory.
_MAX_TENSORS = 100_000
_SHOWN_PROBLEMS = 5

Stored = Mapping[str, StoredTensor]


class ReleasedConfig(Protocol):
    """A frozen dataclass that reads a released JSON file strictly."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> Self:
        """Read the file; ``where`` is its name for messages."""
        ...


C = TypeVar("C")


@dataclass(frozen=True)
class Component(Generic[C]):
    """One row: a part of a checkpoint that has weights.

    Args:
        name: As SGLang and the user call it (``--component-paths.NAME``).
        specs: From config and the tensors on disk, of which some layouts exist, to
            every tensor that must be there.
        rules: Where each tensor goes; a function of the names on disk where layouts
            differ. Empty where stock SGLang loads the part.
        config: Dataclass of the config file; None where there is none.
        read_config: From the folder to the config where several files hold it.
        build: ``"module:function"`` from (``StoredComponent``, dtype, load options) to
            an unfilled module on the meta device; empty where stock loads the part.
        folder: Inside the checkpoint; by default the name.
        file: Inside the folder; a pickle (``.pt``, ``.pth``) may have been converted.
        other_file: Taken where ``file`` is not there.
        config_file: From the folder on.
        precision: Component whose precision holds where this one has none of its own.
        quantizes: Floating point weights may fill FP8 parameters while they are read.
        unchecked: Prefixes of tensor names that may be there and are not looked at.
        parts: Where a module is spread over several files, the row of each submodule,
            which has folders inside this one's; this row has no file then.
    """

    name: str
    specs: Callable[[C, Stored], Iterable[TensorSpec]] = lambda config, stored: ()
    rules: tuple[Rule, ...] | Callable[[Stored], tuple[Rule, ...]] = ()
    config: type[ReleasedConfig] | None = None
    read_config: Callable[[Path], C] | None = None
    build: str = ""
    folder: str | None = None
    file: str = WEIGHTS
    other_file: str | None = None
    config_file: str = "config.json"
    precision: str = "transformer"
    quantizes: bool = False
    unchecked: tuple[str, ...] = ()
    parts: Mapping[str, "Component[Any]"] = field(default_factory=dict)

    def at(self, root: Path) -> "StoredComponent[C]":
        """This component of the checkpoint in ``root``."""
        folder = self.name if self.folder is None else self.folder
        return StoredComponent(self, root / folder)


@dataclass(frozen=True)
class StoredComponent(Generic[C]):
    """A component of one checkpoint, read as it is asked for."""

    component: Component[C]
    folder: Path

    @property
    def parts(self) -> "dict[str, StoredComponent[Any]]":
        """The rows of its submodules."""
        return {
            name: part.at(self.folder) for name, part in self.component.parts.items()
        }

    @property
    def file(self) -> Path:
        """Its weights; for a pickle the converted file where there is one."""
        file, other = self.folder / self.component.file, self.component.other_file
        choices = [file.with_suffix(".safetensors"), file] if self.is_pickle else [file]
        if other is not None:
            choices.append(self.folder / other)
        return next(filter(_is_there, choices), file)

    @property
    def is_pickle(self) -> bool:
        """Whether the release has it as a pickle."""
        return self.component.file.endswith(PICKLES)

    @property
    def where(self) -> str:
        """Its folder, for messages; its file where that is at the top."""
        if self.component.folder == "":
            return self.file.name
        return f"{self.folder.name}/"

    @cached_property
    def config(self) -> C:
        """The config file, read strictly.

        Raises:
            CheckpointError: It is missing or no JSON object.
            ConfigError: A key is unknown, missing or of the wrong kind.
        """
        if self.component.read_config is not None:
            return self.component.read_config(self.folder)
        if self.component.config is None:
            return None  # type: ignore[return-value]
        name = self.component.config_file
        values = read_json(self.folder / name)
        where = normpath(f"{self.where}{name}")
        return self.component.config.from_dict(values, where)  # type: ignore[return-value]

    @cached_property
    def stored(self) -> Stored:
        """What the headers of its safetensors file or shards, or its pickle, say."""
        if self.file.suffix in PICKLES:
            return read_pickle_layout(self.file)
        return read_tensors(self.file)

    @cached_property
    def specs(self) -> list[TensorSpec]:
        """Every tensor that must be there.

        Raises:
            ConfigError: The config describes more tensors than any release has.
        """
        specs = self.component.specs(self.config, self.stored)
        listed = list(islice(specs, _MAX_TENSORS + 1))
        if len(listed) > _MAX_TENSORS:
            raise ConfigError(
                f"{self.where}{self.component.config_file}: it describes over "
                f"{_MAX_TENSORS} tensors"
            )
        return listed

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Where its tensors go."""
        rules = self.component.rules
        return rules(self.stored) if callable(rules) else rules

    def check(self) -> list[str]:
        """Everything that keeps the part from being loaded, one line each.

        Only the config and headers are read, and of a pickle the operations.
        """
        if self.parts:
            return [line for part in self.parts.values() for line in part.check()]
        problems = problem_of(lambda: self.config)
        if self.is_pickle and is_stand_in(self.file):
            return problems
        if problems:
            # Damaged weights are named too where a wrong config ends the check.
            return problems + problem_of(lambda: self.stored)
        return found_by(self._check_tensors)

    def _check_tensors(self) -> list[str]:
        return check_tensors(
            self.specs,
            self.stored,
            where=self.where,
            unchecked=self.component.unchecked,
        )


def _is_there(file: Path) -> bool:
    """Whether a safetensors file, its index or one of its shards is."""
    shards = f"{file.stem}-*-of-*{file.suffix}"
    return (
        is_there(file)
        or is_there(file.with_name(f"{file.name}.index.json"))
        or any(file.parent.glob(shards))
    )


def found_by(check: Callable[[], list[str]]) -> list[str]:
    """The problems that a check returns, or the one that it raises."""
    try:
        return check()
    except (CheckpointError, ConfigError) as error:
        return [str(error)]


def problem_of(read: Callable[[], object]) -> list[str]:
    """The problem that reading something raises, or none."""
    try:
        read()
    except (CheckpointError, ConfigError) as error:
        return [str(error)]
    return []


def check_components(root: Path, components: Iterable[Component[Any]]) -> list[str]:
    """``StoredComponent.check`` of each, without repetitions."""
    problems = [line for part in components for line in part.at(root).check()]
    return list(dict.fromkeys(problems))


def refuse(path: Path, problems: list[str]) -> None:
    """Raise unless a check found nothing.

    Raises:
        CheckpointError: Names the first problems and how to see all of them.
    """
    if not problems:
        return
    shown = "; ".join(problems[:_SHOWN_PROBLEMS])
    raise CheckpointError(
        f"{path}: {len(problems)} problem(s): {shown}. Run "
        f"`sglang-ext-gen doctor --model {path}` for all of them"
    )


def read_or_empty(file: Path) -> Mapping[str, Any]:
    """A JSON object, or an empty one where it cannot be read; for recognition only."""
    try:
        return read_json(file)
    except CheckpointError:
        return {}
