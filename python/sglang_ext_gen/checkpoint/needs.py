# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint needs of a device, from headers and configs alone.

Weights are counted exactly, tensor by tensor, in the form and split that they take in
memory. What a step and decoding need beside them is estimated, by a formula whose
numbers each family declares in its ``needs.py``. Nothing here imports torch.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Literal

from sglang_ext_gen.checkpoint.component import StoredComponent
from sglang_ext_gen.checkpoint.layout import FLOAT8, FLOATS, StoredTensor
from sglang_ext_gen.checkpoint.pickle_layout import is_stand_in
from sglang_ext_gen.checkpoint.rules import plan_steps

# Of the compute dtype, which is bfloat16 unless a user asks for another, and of scales.
COMPUTE_BYTES = 2
_SCALE_BYTES = 4
# The driver's context, torch's workspaces and what its allocator cannot use.
RUNTIME_BYTES = 2**30
SIZES = ((1024, 1024), (2048, 2048))

Kind = Literal["stored", "plain", "quantized"]


@dataclass(frozen=True)
class Form:
    """How weights are held, and the flags that ask for it.

    Args:
        name: The option's word for it.
        kind: FP8 as stored, FP8 made plain, or matrices made FP8 while loading.
        flags: Of the command line.
    """

    name: str
    kind: Kind = "stored"
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Split:
    """How devices share the work.

    Args:
        name: For people.
        flags: Of the command line.
        tp: Ranks that divide matrices.
        sequence: Ranks that divide the tokens.
        branches: Ranks that divide the branches of guidance.
    """

    name: str = "1 GPU"
    flags: tuple[str, ...] = ()
    tp: int = 1
    sequence: int = 1
    branches: int = 1

    @property
    def gpus(self) -> int:
        """Devices that it takes."""
        return self.tp * self.sequence * self.branches


ONE = Split()


def diffusion_splits(heads: int) -> tuple[Split, ...]:
    """What SGLang's diffusion runtime offers a transformer of so many heads."""
    cfg = ("--enable-cfg-parallel",)
    found = [
        ONE,
        Split("2 GPUs, guidance", ("--num-gpus", "2", *cfg), branches=2),
    ]
    for n in (2, 4):
        if heads % n == 0:
            gpus = ("--num-gpus", f"{n}")
            tp, ulysses = ("--tp-size", f"{n}"), ("--ulysses-degree", f"{n}")
            found += [
                Split(f"{n} GPUs, tensor", (*gpus, *tp), tp=n),
                Split(f"{n} GPUs, Ulysses", (*gpus, *ulysses), sequence=n),
            ]
    both = ("--num-gpus", "4", *cfg)
    if heads % 2 == 0:
        found += [
            Split("4 GPUs, guidance x tensor", (*both, "--tp-size", "2"), 2, 1, 2),
            Split(
                "4 GPUs, guidance x Ulysses", (*both, "--ulysses-degree", "2"), 1, 2, 2
            ),
        ]
    return tuple(sorted(found, key=lambda split: split.gpus))


@dataclass(frozen=True)
class Held:
    """A component in the memory of a device.

    Args:
        part: The component.
        columns: Patterns of linears, as on disk, whose outputs tensor parallelism
            divides: weight, scale and bias.
        rows: Those whose inputs it divides: the weight alone.
        quantizes: Whether a form that makes FP8 makes it of a name and shape.
        share: From a name and the number of ranks to the part that one of them holds,
            where ``columns`` and ``rows`` do not say it.
        branch: Where guidance is divided, the one rank that loads it.
        used: Whether a tensor is loaded, where it is not the rules that say it.
    """

    part: StoredComponent[Any]
    columns: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    quantizes: Callable[[str, tuple[int, ...]], bool] = lambda name, shape: False
    share: Callable[[str, int], Fraction | None] = lambda name, tp: None
    branch: int | None = None
    used: Callable[[str], bool] | None = None

    @cached_property
    def tensors(self) -> list[StoredTensor]:
        """What of its file is loaded.

        Raises:
            CheckpointError: The file cannot be read, or a rule does not fit.
        """
        if self.part.is_pickle and is_stand_in(self.part.file):
            return []
        stored, used = self.part.stored, self.used
        if used is not None:
            return [tensor for name, tensor in stored.items() if used(name)]
        if not (rules := self.part.rules):  # stock loads all of it
            return list(stored.values())
        skipped = set(plan_steps(stored, rules, where=self.part.where).skipped)
        return [tensor for name, tensor in stored.items() if name not in skipped]

    def nbytes(self, form: Form, tp: int) -> int:
        """Bytes that one rank holds."""
        return sum(self._tensor_bytes(tensor, form, tp) for tensor in self.tensors)

    def _tensor_bytes(self, tensor: StoredTensor, form: Form, tp: int) -> int:
        count, scales = prod(tensor.shape), 0
        if tensor.dtype in FLOAT8:
            size = COMPUTE_BYTES if form.kind == "plain" else 1
        elif tensor.name.endswith("_scale"):
            size = 0 if form.kind == "plain" else _SCALE_BYTES
        elif tensor.dtype not in FLOATS:
            return tensor.nbytes
        elif form.kind == "quantized" and self.quantizes(tensor.name, tensor.shape):
            size, scales = 1, _SCALE_BYTES * tensor.shape[0]
        else:
            size = COMPUTE_BYTES
        weight, scale = self._shares(tensor.name, tp)
        return int(count * size * weight + scales * scale)

    def _shares(self, name: str, tp: int) -> tuple[Fraction, Fraction]:
        """The parts of a weight and of its scale that one rank holds."""
        whole, even = Fraction(1), Fraction(1, tp)
        given = self.share(name, tp)
        if given is not None:
            return given, given
        linear, _, leaf = name.rpartition(".")
        if _matches(linear, self.columns):
            return even, even
        if leaf == "weight" and _matches(linear, self.rows):
            return even, whole
        return whole, whole


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


@dataclass(frozen=True)
class Drawing:
    """Memory of a step and of decoding beside the weights: an estimate.

    Args:
        hidden: Width D of the transformer.
        inner: Width F of its feed-forward layers.
        decoder_channels: The most channels of a map of the picture's size.
        text_tokens: Of a long prompt.
        text_width: Numbers kept of each of them, beside the transformer's own.
        batch: Branches of guidance that run together on one device.
        token_side: Pixels of a side of a token.
        hidden_copies: Tensors of D and ...
        inner_copies: ... of F numbers a token that live at once.
        decoder_copies: Maps that live at once.
    """

    hidden: int
    inner: int
    decoder_channels: int
    text_tokens: int
    text_width: int = 0
    batch: int = 1
    token_side: int = 16
    hidden_copies: int = 10
    inner_copies: int = 3
    decoder_copies: int = 4

    @property
    def formula(self) -> str:
        """The estimate in words."""
        return (
            f"a step: {self.batch} x tokens x ({self.hidden_copies} x {self.hidden} + "
            f"{self.inner_copies} x {self.inner}) x {COMPUTE_BYTES} bytes, "
            f"{self.text_tokens} tokens of text among them; decoding: pixels x "
            f"{self.decoder_channels} x {self.decoder_copies} x {COMPUTE_BYTES} bytes"
        )

    def nbytes(self, width: int, height: int, split: Split) -> dict[str, int]:
        """Bytes of ``step`` and ``decode`` on one rank."""
        picture = width * height // self.token_side**2 // split.sequence
        tokens = max(1, self.batch // split.branches) * (self.text_tokens + picture)
        numbers = (
            self.hidden_copies * self.hidden
            + self.inner_copies * self.inner // split.tp
        )
        text = self.text_tokens * self.text_width
        maps = width * height * self.decoder_channels * self.decoder_copies
        return {
            "step": (tokens * numbers + text) * COMPUTE_BYTES,
            "decode": maps * COMPUTE_BYTES,
        }


@dataclass(frozen=True)
class Chatting:
    """Memory of a language model beside its weights: keys and values, an estimate.

    Args:
        layers: That keep them.
        heads: Of keys and values.
        head_dim: Of each.
        tokens: Of all conversations together.
    """

    layers: int
    heads: int
    head_dim: int
    tokens: int = 32_768

    @property
    def formula(self) -> str:
        """The estimate in words."""
        return (
            f"keys and values of {self.tokens} tokens: 2 x {self.layers} layers x "
            f"{self.heads} heads x {self.head_dim} x {COMPUTE_BYTES} bytes each"
        )

    def nbytes(self, width: int, height: int, split: Split) -> dict[str, int]:
        """Bytes of ``cache`` on one rank; the size of a picture matters little."""
        heads = max(1, self.heads // split.tp)
        numbers = 2 * self.layers * heads * self.head_dim
        return {"cache": self.tokens * numbers * COMPUTE_BYTES}


@dataclass(frozen=True)
class Role:
    """What one server of a checkpoint does.

    Args:
        name: For people.
        command: The program and its words, with ``MODEL`` for the checkpoint.
        held: Its components.
        work: What it needs beside them.
        forms: Best first.
        splits: Fewest devices first.
    """

    name: str
    command: tuple[str, ...]
    held: tuple[Held, ...]
    work: Drawing | Chatting
    forms: tuple[Form, ...] = (Form("released"),)
    splits: tuple[Split, ...] = (ONE,)

    def options(self) -> Iterator["Option"]:
        """Every form in every split."""
        for form in self.forms:
            for split in self.splits:
                yield Option(form, split, self.weights(form, split), self.work)

    def weights(self, form: Form, split: Split) -> int:
        """Bytes of weights on the rank that holds most."""
        ranks: list[int] = [0] * split.branches
        for held in self.held:
            size = held.nbytes(form, split.tp)
            is_divided = held.branch is not None and split.branches > 1
            for rank in range(split.branches):
                if not is_divided or held.branch == rank:
                    ranks[rank] += size
        return max(ranks)


@dataclass(frozen=True)
class Option:
    """One way to run a role, and what it takes of each device."""

    form: Form
    split: Split
    weights: int
    work: Drawing | Chatting

    @property
    def flags(self) -> tuple[str, ...]:
        """Of the command line."""
        return (*self.form.flags, *self.split.flags)

    def parts(self, width: int, height: int) -> dict[str, int]:
        """Bytes beside the weights, by what they are for."""
        return self.work.nbytes(width, height, self.split)

    def total(self, width: int, height: int) -> int:
        """Bytes of a device, everything on it, at the worst moment."""
        peak = max(self.parts(width, height).values())
        return self.weights + RUNTIME_BYTES + peak


@dataclass(frozen=True)
class Needs:
    """A checkpoint as an adviser sees it.

    Args:
        variant: Which of the family's it is.
        roles: What can be done with it.
        missing: What is not there and what for it would be needed.
    """

    variant: str
    roles: tuple[Role, ...]
    missing: tuple[str, ...] = ()

    @property
    def files(self) -> dict[Path, StoredComponent[Any]]:
        """Each file of weights once."""
        parts = [held.part for role in self.roles for held in role.held]
        return {part.file: part for part in parts}

    def parameters_of(self, file: Path) -> int:
        """Numbers in one of them, without the scales of FP8."""
        part = self.files[file]
        if part.is_pickle and is_stand_in(part.file):
            return 0
        return sum(
            prod(tensor.shape)
            for name, tensor in part.stored.items()
            if not name.endswith("_scale")
        )
