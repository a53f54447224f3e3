# SPDX-License-Identifier: Apache-2.0
"""From conditioning to latents: prefix once, then the noise block step by step.

Source: the official KV-cache path. Pure PyTorch: the stages of the diffusion runtime
and the tests drive the same functions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sglang_ext_gen.models.lance.config import LATENT_CHANNELS, MAX_LATENT_SIDE
from sglang_ext_gen.models.lance.mot import (
    LanceTransformer,
    NoiseBlock,
    Prefix,
    join_prefixes,
    latent_position_embedding,
    rope_cos_sin,
)
from sglang_ext_gen.models.lance.packing import PackedRequest, Segment, latent_rows
from sglang_ext_gen.models.lance.schedule import (
    Guidance,
    blend_guidance,
    euler_step,
)


@dataclass(frozen=True)
class LanceConditioning:
    """What the encoding stage hands to the denoising stage, one request.

    Args:
        packed: Tokens and positions of both branches.
        vision_features: [S, D] of the source (edits), or None.
        source_latents: [F, h, w, C] float32: the source of an edit, or the first
            frame of i2v; None for text alone.
        pins_first_frame: Whether ``source_latents`` is the result's first frame.
    """

    packed: PackedRequest
    vision_features: Tensor | None = None
    source_latents: Tensor | None = None
    pins_first_frame: bool = False

    @property
    def target_grid(self) -> tuple[int, int, int]:
        grid = self.packed.noise.grid
        assert grid is not None, "the noise block has a grid"
        return grid

    @property
    def num_pinned(self) -> int:
        """Tokens of the result that are given and stay as they are."""
        _, height, width = self.target_grid
        return height * width if self.pins_first_frame else 0


def draw_noise(seed: int, num_target: int, num_source: int) -> Tensor:
    """Noise of the target block.

    The official code draws for all latent blocks of the sequence and uses the last
    rows, so an edit's noise is the tail of a longer draw.

    Returns:
        [1, num_target, C] float32 on the CPU, the same whatever the device.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    rows = torch.randn(num_source + num_target, LATENT_CHANNELS, generator=generator)
    return rows[None, num_source:]


def draw_posterior_noise(seed: int, grid: tuple[int, int, int]) -> Tensor:
    """Noise of a sampled source latent; officially it is not seeded by the request.

    Returns:
        [1, C, F, h, w] float32 on the CPU.
    """
    generator = torch.Generator("cpu").manual_seed(seed + 1)
    return torch.randn(1, LATENT_CHANNELS, *grid, generator=generator)


def initial_latents(conditioning: LanceConditioning, seed: int) -> Tensor:
    """Noise, with the pinned frame in its place.

    Returns:
        [1, I, C] float32 on the CPU.
    """
    frames, height, width = conditioning.target_grid
    num_target, pinned = frames * height * width, conditioning.num_pinned
    is_edit = conditioning.source_latents is not None and not pinned
    latents = draw_noise(seed, num_target, num_target if is_edit else 0)
    if pinned:
        assert conditioning.source_latents is not None, "a pinned frame is given"
        latents[0, :pinned] = conditioning.source_latents.flatten(0, 2).cpu()
    return latents


def prefill(
    transformer: LanceTransformer, conditioning: LanceConditioning
) -> tuple[Prefix, Prefix]:
    """Keys and values of both branches; what they share is computed once."""
    packed = conditioning.packed
    shared = _extend(transformer, Prefix(), packed.shared, conditioning)
    return (
        _extend(transformer, shared, packed.conditional, conditioning),
        _extend(transformer, shared, packed.unconditional, conditioning),
    )


@dataclass(frozen=True)
class LanceLoop:
    """What the steps of B requests share.

    Args:
        times: [N + 1] float32, falling, on the device.
        guidance: The same for all requests.
        guided: In which steps it acts.
        block: The noise block of 2 B rows: all conditional ones, then the others.
        conditional: Prefixes of the first B rows.
        unconditional: Prefixes of the others.
    """

    times: Tensor
    guidance: Guidance
    guided: tuple[bool, ...]
    block: NoiseBlock
    conditional: tuple[Prefix, ...]
    unconditional: tuple[Prefix, ...]

    def inputs(self, index: int) -> dict[str, Any]:
        """What the transformer gets in a step, beside the latents."""
        time = self.times[index]
        if self.guided[index]:
            prefixes = (*self.conditional, *self.unconditional)
            return {"time": time, "block": self.block, "prefixes": prefixes}
        rows = sum(prefix.rows for prefix in self.conditional)
        cos, sin = self.block.rope
        block = replace(self.block, rope=(cos[:rows], sin[:rows]))
        return {"time": time, "block": block, "prefixes": self.conditional}

    def advance(self, index: int, latents: Tensor, velocities: Tensor) -> Tensor:
        """One Euler step; given tokens stay.

        Args:
            index: Of the step.
            latents: [B, I, C] float32.
            velocities: [B or 2 B, I, C] float32 of the transformer.
        """
        velocity = velocities
        if self.guided[index]:
            conditional, unconditional = velocities.chunk(2)
            velocity = blend_guidance(conditional, unconditional, self.guidance)
        time, end = self.times[index], self.times[index + 1]
        stepped = euler_step(latents, velocity, time, end)
        return torch.where(self.block.is_clean[:, None], latents, stepped)


@torch.no_grad()
def start(
    transformer: LanceTransformer,
    conditionings: Sequence[LanceConditioning],
    times: Tensor,
    guidance: Guidance,
    device: torch.device,
) -> LanceLoop:
    """Compute the prefixes of all requests and branches.

    Args:
        transformer: Of the task.
        conditionings: Of B requests with equal target grids and pinned tokens.
        times: [N + 1] float32, falling, on the CPU.
        guidance: The same for all requests.
        device: Where the steps run.
    """
    rows = [prefill(transformer, conditioning) for conditioning in conditionings]
    conditional, unconditional = zip(*rows, strict=True)
    segments = [
        *(c.packed.noise for c in conditionings),
        *(c.packed.unconditional_noise for c in conditionings),
    ]
    position_ids = torch.stack([segment.position_ids for segment in segments])
    frames, height, width = conditionings[0].target_grid
    tokens = torch.arange(frames * height * width, device=device)
    block = NoiseBlock(
        markers=segments[0].token_ids[[0, -1]].to(device),
        positions=_position_embedding(transformer, segments[0], device),
        is_clean=tokens < conditionings[0].num_pinned,
        rope=rope_cos_sin(position_ids.to(device), transformer.config),
    )
    return LanceLoop(
        times=times.to(device),
        guidance=guidance,
        guided=tuple(guidance.is_active(time) for time in times[:-1].tolist()),
        block=block,
        conditional=join_prefixes(conditional),
        unconditional=join_prefixes(unconditional),
    )


def _position_embedding(
    transformer: LanceTransformer, segment: Segment, device: torch.device
) -> Tensor:
    assert segment.grid is not None, "latent blocks have a grid"
    rows = latent_rows(segment.grid, MAX_LATENT_SIDE).to(device)
    return latent_position_embedding(rows, transformer.config.hidden_size)


def _extend(
    transformer: LanceTransformer,
    prefix: Prefix,
    segments: Sequence[Segment],
    conditioning: LanceConditioning,
) -> Prefix:
    device = transformer.embed_tokens.weight.device
    for segment in segments:
        rope = rope_cos_sin(segment.position_ids[None].to(device), transformer.config)
        _, prefix = transformer.extend(
            _embed(transformer, segment, conditioning, device),
            rope,
            prefix,
            is_causal=segment.is_causal,
            has_latents=segment.has_latents,
        )
    return prefix


def _embed(
    transformer: LanceTransformer,
    segment: Segment,
    conditioning: LanceConditioning,
    device: torch.device,
) -> Tensor:
    """[1, S, D] of a segment that enters the prefix."""
    token_ids = segment.token_ids.to(device)
    if segment.grid is None:
        return transformer.embed_tokens(token_ids)[None]
    if segment.kind == "vision":
        assert conditioning.vision_features is not None, "edits have features"
        body = conditioning.vision_features[None].to(device, transformer.dtype)
    else:
        assert conditioning.source_latents is not None, "edits have source latents"
        latents = conditioning.source_latents.flatten(0, 2)[None].to(device)
        clean = transformer.time_embedder(torch.zeros(1, device=device))
        positions = _position_embedding(transformer, segment, device)
        body = transformer.embed_latents(latents, clean, positions)
    return transformer.wrap_block(body, token_ids[[0, -1]])
