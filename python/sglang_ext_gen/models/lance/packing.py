# SPDX-License-Identifier: Apache-2.0
"""One request as a packed sequence: tokens, segments, positions.

Source: the official data code (text template on) and its KV-cache path. The order is

    generation  prefix | user text | suffix | noise
    edit        prefix | vision | source latents | user text | suffix | noise
    answer      prefix | vision | user text and suffix

where ``prefix`` is the system turn and the start of the user's, ``suffix`` the start of
the assistant's. A visual block is its start marker, one placeholder a token, its end
marker; it is seen by all that follow and sees both ways inside. Text is causal.

Deliberate differences: the closing ``<|im_end|>``, which nothing attends to, is left
out, and special tokens in the user's text stay plain text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

Grid = tuple[int, int, int]  # frames, height, width in tokens
Kind = Literal["prefix", "vision", "source", "text", "suffix", "noise"]
Numbering = Literal["released", "renumbered"]

# Positions that one latent frame, or one temporal patch, moves on the t axis
# (tokens_per_second 2, one second a grid row).
TIME_STEP = 2
# The t axis of the vision block in edits starts here, away from the latents.
EDIT_VISION_TIME = 1000


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that the template needs, from the tokenizer.

    The placeholder is ``<|video_pad|>`` for pictures too.
    """

    im_start: int
    im_end: int
    vision_start: int
    vision_end: int
    placeholder: int

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> "SpecialTokens":
        """Look the five tokens up by their text."""
        names = (
            "<|im_start|>",
            "<|im_end|>",
            "<|vision_start|>",
            "<|vision_end|>",
            "<|video_pad|>",
        )
        return cls(*tokenizer.convert_tokens_to_ids(list(names)))


@dataclass(frozen=True)
class PromptTokens:
    """The text pieces of a request, tokenised apart."""

    prefix: tuple[int, ...]
    text: tuple[int, ...]
    suffix: tuple[int, ...]
    special: SpecialTokens


@dataclass(frozen=True)
class Segment:
    """A run of tokens that enters the model at once.

    Args:
        kind: What it is.
        token_ids: [S] int64; placeholders stand for visual tokens.
        position_ids: [3, S] int64, axes t, h, w.
        grid: Of a visual block; None for text.
    """

    kind: Kind
    token_ids: Tensor
    position_ids: Tensor
    grid: Grid | None = None

    @property
    def is_causal(self) -> bool:
        return self.grid is None

    @property
    def has_latents(self) -> bool:
        """Whether the tokens between the markers use the generation weights."""
        return self.kind in ("source", "noise")


@dataclass(frozen=True)
class PackedRequest:
    """Both branches of a generation request.

    Args:
        shared: Segments before the user's text, equal in both branches.
        conditional: Segments that follow in the conditional branch.
        unconditional: The same without the user's text.
        noise: The noise block of the conditional branch.
        unconditional_noise: That of the other; only its positions differ.
    """

    shared: tuple[Segment, ...]
    conditional: tuple[Segment, ...]
    unconditional: tuple[Segment, ...]
    noise: Segment
    unconditional_noise: Segment


def tokenize_prompt(tokenizer: Any, system_prompt: str, prompt: str) -> PromptTokens:
    """Tokenise the template around a prompt.

    Args:
        tokenizer: Qwen2 tokenizer of the checkpoint.
        system_prompt: Text of the system turn.
        prompt: The user's text; leading line breaks are dropped.
    """
    special = SpecialTokens.from_tokenizer(tokenizer)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(
            text, add_special_tokens=False, split_special_tokens=True
        )

    line_break = encode("\n")
    start, end = [special.im_start], [special.im_end]
    system = start + encode(f"system\n{system_prompt}") + end + line_break
    suffix = end + line_break + start + encode("assistant\n")
    return PromptTokens(
        prefix=tuple(system + start + encode("user\n")),
        text=tuple(encode(prompt.lstrip("\r\n"))),
        suffix=tuple(suffix),
        special=special,
    )


def pack_generation(
    tokens: PromptTokens,
    *,
    target: Grid,
    vision: Grid | None = None,
    source: Grid | None = None,
    numbering: Numbering = "released",
) -> PackedRequest:
    """Pack a request that makes a picture or a video.

    Args:
        tokens: See ``tokenize_prompt``.
        target: Latent grid of the result.
        vision: Merged grid of the source's vision features (edits).
        source: Latent grid of the source (edits); equal to ``target``.
        numbering: Positions of the suffix in the unconditional branch: as in the
            conditional one (``released``: the official cached path does so) or
            counted anew without the user's text (``renumbered``: the official
            path without cache).
    """
    special = tokens.special
    before = [_text("prefix", tokens.prefix)]
    if vision is not None:
        before.append(_block("vision", vision, special))
    if source is not None:
        assert source == target, "an edit has the size of its source"
        before.append(_block("source", source, special))
    text = [_text("text", tokens.text)] if tokens.text else []
    suffix = _text("suffix", tokens.suffix)
    noise = _block("noise", target, special)

    with_text = _shift_blocks(_number([*before, *text, suffix, noise]))
    without_text = _shift_blocks(_number([*before, suffix, noise]))
    released_suffix = with_text[-2]
    return PackedRequest(
        shared=tuple(with_text[: len(before)]),
        conditional=tuple(with_text[len(before) : -1]),
        unconditional=(
            released_suffix if numbering == "released" else without_text[-2],
        ),
        noise=with_text[-1],
        unconditional_noise=without_text[-1],
    )


def pack_answer(
    before: Sequence[int],
    vision: Grid | None,
    after: Sequence[int],
    special: SpecialTokens,
) -> tuple[Segment, ...]:
    """Number a sequence with at most one visual block, for an answer.

    Args:
        before: Ids before the block.
        vision: Merged grid of the block, or None.
        after: Ids behind it.
        special: Ids of markers and placeholder.
    """
    segments = [_text("prefix", before)]
    if vision is not None:
        segments += [_block("vision", vision, special), _text("text", after)]
    return tuple(_number(segments))


def latent_rows(grid: Grid, max_side: int) -> Tensor:
    """Rows of the latent position table, in token order (t, h, w).

    Returns:
        [I] int64, ``t * max_side**2 + h * max_side + w``.
    """
    frames, height, width = (torch.arange(size) for size in grid)
    rows = frames[:, None, None] * max_side**2 + height[:, None] * max_side + width
    return rows.flatten()


def _text(kind: Kind, token_ids: Sequence[int]) -> Segment:
    ids = torch.tensor(token_ids, dtype=torch.int64)
    return Segment(kind, ids, ids.new_zeros(3, len(ids)))


def _block(kind: Kind, grid: Grid, special: SpecialTokens) -> Segment:
    frames, height, width = grid
    body = [special.placeholder] * (frames * height * width)
    ids = torch.tensor([special.vision_start, *body, special.vision_end])
    return Segment(kind, ids, ids.new_zeros(3, len(ids)), grid)


def _number(segments: Sequence[Segment]) -> list[Segment]:
    """Qwen2.5-VL positions: one counter; a block advances it by its extent."""
    numbered, start = [], 0
    for segment in segments:
        if segment.grid is None:
            positions = _run(start, len(segment.token_ids))
        else:
            body = _grid_positions(segment.grid) + start + 1
            end = int(body.max()) + 1
            positions = torch.cat([_run(start, 1), body, _run(end, 1)], dim=1)
        numbered.append(replace(segment, position_ids=positions))
        start = int(positions.max()) + 1
    return numbered


def _run(start: int, length: int) -> Tensor:
    return torch.arange(start, start + length).expand(3, -1)


def _grid_positions(grid: Grid) -> Tensor:
    axes = torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")
    positions = torch.stack(axes).flatten(1)  # [3, I]
    return positions * torch.tensor([[TIME_STEP], [1], [1]])


def _shift_blocks(segments: Sequence[Segment]) -> list[Segment]:
    """Edits: vision far away in time, the noise where the source is."""
    shifted = list(segments)
    for index, segment in enumerate(segments):
        if segment.kind == "vision":
            positions = segment.position_ids.clone()
            positions[0] += EDIT_VISION_TIME - int(positions[0, 0])
            shifted[index] = replace(segment, position_ids=positions)
        elif segment.kind == "source":
            # The last segment is the noise; it has the source's length.
            shifted[-1] = replace(segments[-1], position_ids=segment.position_ids)
    return shifted
