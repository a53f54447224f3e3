# SPDX-License-Identifier: Apache-2.0
"""Text and media -> token ids, spans of media tokens, three-axis positions.

Source: the official processor's expansion of ``<IMAGE>``, ``<VIDEO>``, ``<AUDIO>`` and
the "video_rope" rule of the official model code, which no peer implements.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.models.ming_omni.thinker import tokens as text_of
from sglang_ext_gen.models.ming_omni.thinker.tokens import MediaTokens
from sglang_ext_gen.models.ming_omni.thinker_protocol import AUDIO, IMAGE, VIDEO

Kind = Literal["image", "frame", "audio", "query"]
_PLACEHOLDER = re.compile(f"({IMAGE}|{VIDEO}|{AUDIO})")


@dataclass(frozen=True)
class Span:
    """A run of patch tokens that media embeddings replace.

    Args:
        kind: What it holds.
        start: Index of its first patch token.
        length: Its number of patch tokens.
        grid: (rows, columns) in tokens, which decide its positions; None for audio,
            whose tokens count like text.
    """

    kind: Kind
    start: int
    length: int
    grid: tuple[int, int] | None

    @property
    def offsets(self) -> tuple[int, int]:
        """First and last token, both included, as SGLang counts."""
        return self.start, self.start + self.length - 1


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model gets it; spans in the order of their tokens."""

    ids: list[int]
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class _Piece:
    """Text with one patch token per run, and what each run stands for."""

    text: str
    runs: tuple[tuple[Kind, int, tuple[int, int] | None], ...] = ()


def image_piece(grid: tuple[int, int]) -> _Piece:
    """One picture of ``grid`` tokens."""
    text = f"{text_of.IMAGE_START}{text_of.IMAGE_PATCH}{text_of.IMAGE_END}\n"
    return _Piece(text, (("image", grid[0] * grid[1], grid),))


def video_piece(grid: tuple[int, int], seconds: Sequence[float]) -> _Piece:
    """One video: a timestamp before each pair of frames."""
    frame = f"{text_of.IMAGE_START}{text_of.FRAME_PATCH}{text_of.IMAGE_END}"
    # One decimal of the binary value, so 0.25 prints as 0.2 and 1.25 as 1.2.
    stamped = "".join(f"<{second:.1f} seconds>{frame}" for second in seconds)
    run: tuple[Kind, int, tuple[int, int]] = ("frame", grid[0] * grid[1], grid)
    return _Piece(
        f"{text_of.VIDEO_START}{stamped}{text_of.VIDEO_END}", (run,) * len(seconds)
    )


def audio_piece(length: int) -> _Piece:
    """One clip of ``length`` tokens."""
    text = f"{text_of.AUDIO_START}{text_of.AUDIO_PATCH}{text_of.AUDIO_END}"
    return _Piece(text, (("audio", length, None),))


def expand(
    text: str,
    images: Sequence[_Piece],
    videos: Sequence[_Piece],
    clips: Sequence[_Piece],
    encode: Callable[[str], list[int]],
    tokens: MediaTokens,
) -> Prompt:
    """Put media in the place of their placeholders.

    The whole text is tokenised at once, with one patch token per run, and the runs are
    stretched afterwards: special tokens split text, so the ids are those of the
    official code, which tokenises the stretched text.

    Raises:
        RequestError: The numbers of placeholders and of media differ, or the text
            contains patch tokens of its own.
    """
    given = {IMAGE: list(images), VIDEO: list(videos), AUDIO: list(clips)}
    parts = _PLACEHOLDER.split(text)
    for placeholder, media in given.items():
        if parts.count(placeholder) != len(media):
            raise RequestError(
                "prompt",
                f"it has {parts.count(placeholder)} {placeholder} and {len(media)} "
                f"{placeholder.strip('<>').lower()} inputs were given",
            )
    pieces = [given[part].pop(0) if part in given else _Piece(part) for part in parts]
    runs = [run for piece in pieces for run in piece.runs]
    return _stretch(encode("".join(piece.text for piece in pieces)), runs, tokens)


def _stretch(
    ids: list[int],
    runs: list[tuple[Kind, int, tuple[int, int] | None]],
    tokens: MediaTokens,
) -> Prompt:
    patch_of: dict[Kind, int] = {
        "image": tokens.image_patch,
        "frame": tokens.frame_patch,
        "audio": tokens.audio_patch,
    }
    patches = set(patch_of.values())
    if [i for i in ids if i in patches] != [patch_of[kind] for kind, _, _ in runs]:
        raise RequestError("prompt", "it contains patch tokens; they are not allowed")
    stretched: list[int] = []
    spans = []
    remaining = iter(runs)
    for token in ids:
        if token in patches:
            kind, length, grid = next(remaining)
            spans.append(Span(kind, len(stretched), length, grid))
            stretched += [token] * length
        else:
            stretched.append(token)
    return Prompt(stretched, tuple(spans))


def append_query_blocks(
    prompt: Prompt, scales: Sequence[int], tokens: MediaTokens
) -> Prompt:
    """Add the learnable query tokens of every scale after the prompt.

    A block counts as a picture of one row of s * s tokens.
    """
    ids = list(prompt.ids)
    spans = list(prompt.spans)
    for side in scales:
        count = side * side
        spans.append(Span("query", len(ids) + 1, count, (1, count)))
        ids += [tokens.image_start, *[tokens.image_patch] * count, tokens.image_end]
    return Prompt(ids, tuple(spans))


def position_ids(prompt: Prompt) -> tuple[Tensor, int]:
    """Positions of the "video_rope" rule.

    Text and audio tokens advance all axes by one. The tokens of a picture share one
    time; rows and columns are centred on it, so they can be negative. After a picture
    the count goes on from its time plus one, whatever its size.

    Returns:
        [3, T] int64 (time, row, column), and the position of the next token.
    """
    positions = torch.empty(3, len(prompt.ids), dtype=torch.int64)
    index = position = 0
    for span in prompt.spans:
        if span.grid is None:
            continue
        text = torch.arange(position, position + span.start - index)
        positions[:, index : span.start] = text
        position += span.start - index
        index = span.start + span.length
        rows, columns = span.grid
        row = torch.arange(rows) - (rows - 1) // 2
        column = torch.arange(columns) - (columns - 1) // 2
        positions[0, span.start : index] = position
        positions[1, span.start : index] = position + row.repeat_interleave(columns)
        positions[2, span.start : index] = position + column.repeat(rows)
        position += 1
    rest = len(prompt.ids) - index
    positions[:, index:] = torch.arange(position, position + rest)
    return positions, position + rest
