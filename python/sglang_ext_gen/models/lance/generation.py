# SPDX-License-Identifier: Apache-2.0
"""From conditioning to latents: prefix once, then the noise block step by step.

Source: the official KV-cache path. Pure PyTorch: the stages of the diffusion runtime
and the tests drive the same functions.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sglang_ext_gen.models.lance.config import LATENT_CHANNELS, MAX_LATENT_SIDE
from sglang_ext_gen.models.lance.mot import (
    LanceTransformer,
    NoiseBlock,
    Prefix,
    batch_prefixes,
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


@torch.no_grad()
def denoise(
    transformer: LanceTransformer,
    conditionings: Sequence[LanceConditioning],
    latents: Tensor,
    times: Tensor,
    guidance: Guidance,
    on_step: Callable[[Tensor], None],
) -> Tensor:
    """Integrate from noise to clean latents.

    Args:
        transformer: Velocity of the noise block.
        conditionings: Of B requests with equal target grids and pinned tokens.
        latents: [B, I, C] float32 on the target device.
        times: [N + 1] float32, falling.
        guidance: The same for all requests.
        on_step: Called with the latents after each step.

    Returns:
        [B, I, C] float32.
    """
    (block, prefix), (free_block, free_prefix) = make_branches(
        transformer, conditionings, latents.device
    )
    tokens = torch.arange(latents.shape[1], device=latents.device)
    is_free = tokens >= conditionings[0].num_pinned
    for time, end in itertools.pairwise(times):
        token_times = time.to(latents.device) * is_free  # pinned tokens are clean
        velocity = transformer.velocity(latents, token_times, block, prefix)
        if guidance.is_active(float(time)):
            unconditional = transformer.velocity(
                latents, token_times, free_block, free_prefix
            )
            velocity = blend_guidance(velocity, unconditional, guidance)
        stepped = euler_step(latents, velocity, time, end)
        latents = torch.where(is_free[:, None], stepped, latents)
        on_step(latents)
    return latents


@torch.no_grad()
def make_branches(
    transformer: LanceTransformer,
    conditionings: Sequence[LanceConditioning],
    device: torch.device,
) -> list[tuple[NoiseBlock, Prefix]]:
    """Noise block and prefix of the conditional, then of the unconditional branch.

    Prefixes of several requests are padded to the longest.
    """
    prefixes = zip(*(prefill(transformer, c) for c in conditionings), strict=True)
    blocks = (
        [c.packed.noise for c in conditionings],
        [c.packed.unconditional_noise for c in conditionings],
    )
    return [
        (_noise_block(transformer, segments, device), batch_prefixes(list(rows)))
        for segments, rows in zip(blocks, prefixes, strict=True)
    ]


def _noise_block(
    transformer: LanceTransformer, segments: Sequence[Segment], device: torch.device
) -> NoiseBlock:
    position_ids = torch.stack([segment.position_ids for segment in segments]).to(
        device
    )
    return NoiseBlock(
        markers=segments[0].token_ids[[0, -1]].to(device),
        positions=_position_embedding(transformer, segments[0], device),
        rope=rope_cos_sin(position_ids, transformer.config),
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
        _, prefix = transformer(
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
        clean = torch.zeros(latents.shape[1], device=device)
        positions = _position_embedding(transformer, segment, device)
        body = transformer.embed_latents(latents, clean, positions)
    return transformer.wrap_block(body, token_ids[[0, -1]])
