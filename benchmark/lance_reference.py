# SPDX-License-Identifier: Apache-2.0
"""The official algorithm of Lance, put together from transformers' Qwen2.5-VL modules.

What ``bench_lance.py`` compares with. It does what the official script does, and no
more: one request, each branch fills its own key/value cache segment by segment, every
layer sends rows to the plain or to the generation weights by index, the two branches
run one after the other. Attribute names are those of the checkpoint, so
``load_state_dict`` fills it. Not shared with our modules: every layer, the vision
tower, the loop. Shared: token packing, which golden data covers, and the two latent
embeddings, which are formulas.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import (
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLVisionConfig,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLRMSNorm,
    Qwen2_5_VLRotaryEmbedding,
    Qwen2MLP,
    apply_rotary_pos_emb,
)

from sglang_ext_gen.models.lance.config import LATENT_CHANNELS, MAX_LATENT_SIDE
from sglang_ext_gen.models.lance.generation import LanceConditioning
from sglang_ext_gen.models.lance.mot import LanceTimeEmbedder, latent_position_embedding
from sglang_ext_gen.models.lance.packing import Grid, Segment, latent_rows
from sglang_ext_gen.models.lance.schedule import (
    Guidance,
    blend_guidance,
    euler_step,
)

PLAIN, GENERATION = "", "_moe_gen"


class Cache:
    """Keys and values of one branch, layer by layer, [1, K, S, d]."""

    def __init__(self, num_layers: int) -> None:
        self.layers: list[tuple[Tensor, Tensor] | None] = [None] * num_layers

    def join(self, layer: int, k: Tensor, v: Tensor, keep: bool) -> tuple[Tensor, ...]:
        """What was there with what is new; kept where the new belongs to the prefix."""
        past = self.layers[layer]
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        if keep:
            self.layers[layer] = (k, v)
        return k, v


class ReferenceLayer(nn.Module):
    """One decoder layer with two sets of weights, rows chosen by index."""

    def __init__(self, config: Qwen2_5_VLTextConfig) -> None:
        super().__init__()
        width, heads = config.hidden_size, config.num_attention_heads
        self.head_dim = width // heads
        keys = (config.num_key_value_heads or heads) * self.head_dim
        self.self_attn = nn.Module()
        for suffix in (PLAIN, GENERATION):
            for name, rows in (("q", width), ("k", keys), ("v", keys)):
                self.self_attn.add_module(
                    f"{name}_proj{suffix}", nn.Linear(width, rows)
                )
            self.self_attn.add_module(
                f"o_proj{suffix}", nn.Linear(width, width, bias=False)
            )
            for name in ("q_norm", "k_norm"):
                norm = Qwen2_5_VLRMSNorm(self.head_dim, config.rms_norm_eps)
                self.self_attn.add_module(f"{name}{suffix}", norm)
            self.add_module(f"mlp{suffix}", Qwen2MLP(config))
            for name in ("input_layernorm", "post_attention_layernorm"):
                norm = Qwen2_5_VLRMSNorm(width, config.rms_norm_eps)
                self.add_module(f"{name}{suffix}", norm)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        experts: dict[str, Tensor],
        cache: Cache,
        layer: int,
        mask: Tensor | None,
        keep: bool,
    ) -> Tensor:
        """x: [S, D] -> [S, D]; ``experts`` gives the rows of each set of weights."""
        normed = self._routed("input_layernorm", x, experts)
        q, k, v = (
            self._routed(f"self_attn.{n}_proj", normed, experts).unflatten(
                -1, (-1, self.head_dim)
            )
            for n in ("q", "k", "v")
        )
        q = self._routed("self_attn.q_norm", q, experts)
        k = self._routed("self_attn.k_norm", k, experts)
        q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))
        q, k = apply_rotary_pos_emb(q, k, *rotary)
        k, v = cache.join(layer, k, v, keep)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        out = out[0].transpose(0, 1).flatten(1)
        x = x + self._routed("self_attn.o_proj", out, experts)
        normed = self._routed("post_attention_layernorm", x, experts)
        return x + self._routed("mlp", normed, experts)

    def _routed(self, name: str, x: Tensor, experts: dict[str, Tensor]) -> Tensor:
        parts = {
            s: self.get_submodule(name + s)(x[rows]) for s, rows in experts.items()
        }
        first = next(iter(parts.values()))
        out = first.new_empty(len(x), *first.shape[1:])
        for suffix, rows in experts.items():
            out[rows] = parts[suffix]
        return out


class _Core(nn.Module):
    """What the checkpoint calls ``language_model.model``."""

    def __init__(self, config: Qwen2_5_VLTextConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            ReferenceLayer(config) for _ in range(config.num_hidden_layers)
        )
        for suffix in (PLAIN, GENERATION):
            norm = Qwen2_5_VLRMSNorm(config.hidden_size, config.rms_norm_eps)
            self.add_module(f"norm{suffix}", norm)


class _Language(nn.Module):
    def __init__(self, config: Qwen2_5_VLTextConfig) -> None:
        super().__init__()
        self.model = _Core(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)


class ReferenceLance(nn.Module):
    """The decoder with its head, filled from ``model.safetensors``."""

    def __init__(self, config: Qwen2_5_VLTextConfig) -> None:
        super().__init__()
        self.config = config
        self.language_model = _Language(config)
        self.time_embedder = LanceTimeEmbedder(config.hidden_size)
        self.vae2llm = nn.Linear(LATENT_CHANNELS, config.hidden_size)
        self.llm2vae = nn.Linear(config.hidden_size, LATENT_CHANNELS)
        text_config: Any = config  # annotated with the config of the whole model
        self.rotary = Qwen2_5_VLRotaryEmbedding(text_config)

    @classmethod
    def load(cls, folder: Path, values: dict, device: torch.device) -> "ReferenceLance":
        """Fill from a checkpoint directory, float32.

        Args:
            folder: Such as ``Lance_3B``.
            values: Its ``llm_config.json``.
            device: Where the weights go.
        """
        keys = {key: value for key, value in values.items() if key != "vision_config"}
        model = cls(Qwen2_5_VLTextConfig(**keys))
        tensors = {
            name: tensor
            for name, tensor in load_file(folder / "model.safetensors").items()
            if not name.startswith(("vit_model.", "latent_pos_embed."))
        }
        model.load_state_dict(tensors, strict=True)
        return model.to(device).requires_grad_(False).eval()

    def run(
        self, x: Tensor, segment: Segment, cache: Cache, *, keep: bool
    ) -> tuple[Tensor, Tensor]:
        """One segment of a packed sequence against a cache.

        Returns:
            [S, D] before the final norm, and the rows of latents.
        """
        rows = torch.arange(len(x), device=x.device)
        experts = {PLAIN: rows}
        if segment.has_latents:
            experts = {PLAIN: rows[[0, -1]], GENERATION: rows[1:-1]}
        rotary = self.rotary(x, segment.position_ids[:, None].to(x.device))
        past = cache.layers[0]
        before = 0 if past is None else past[0].shape[2]
        mask = None
        if segment.is_causal:
            seen = torch.ones(len(x), before + len(x), device=x.device)
            mask = seen.tril(before).bool()
        for index, layer in enumerate(self.language_model.model.layers):
            x = layer(x, rotary, experts, cache, index, mask, keep)
        return x, rows[1:-1]

    def embed_block(
        self,
        segment: Segment,
        latents: Tensor | None,
        times: Tensor | None,
        features: Tensor,
    ) -> Tensor:
        """[S, D] of a visual block: latents [I, C] at ``times`` [I], or features."""
        markers = self.language_model.model.embed_tokens(
            segment.token_ids[[0, -1]].to(features.device)
        )
        if latents is not None and times is not None and segment.grid is not None:
            table = latent_position_embedding(
                latent_rows(segment.grid, MAX_LATENT_SIDE), self.config.hidden_size
            ).to(latents.device)
            features = self.vae2llm(latents) + self.time_embedder(times) + table
        return torch.cat([markers[:1], features, markers[1:]])


@torch.no_grad()
def fill_cache(
    model: ReferenceLance,
    segments: Sequence[Segment],
    features: Tensor | None = None,
    source: Tensor | None = None,
) -> Cache:
    """The prefix of one branch, from its first token on.

    Args:
        model: See there.
        segments: All but the noise.
        features: [S, D] of a vision block.
        source: [I, C] clean latents of a source block.
    """
    cache = Cache(model.config.num_hidden_layers)
    embed = model.language_model.model.embed_tokens
    device = embed.weight.device
    for segment in segments:
        if segment.grid is None:
            x = embed(segment.token_ids.to(device))
        elif segment.kind == "vision":
            assert features is not None, "edits and questions have features"
            x = model.embed_block(segment, None, None, features)
        else:
            assert source is not None, "edits have source latents"
            clean = torch.zeros(len(source), device=device)
            x = model.embed_block(segment, source, clean, source)
        model.run(x, segment, cache, keep=True)
    return cache


@torch.no_grad()
def velocity(
    model: ReferenceLance,
    latents: Tensor,
    times: Tensor,
    segment: Segment,
    cache: Cache,
) -> Tensor:
    """[I, C] velocity of the noise block of one branch."""
    x = model.embed_block(segment, latents, times, latents)
    x, rows = model.run(x, segment, cache, keep=False)
    norm = model.language_model.model.get_submodule(f"norm{GENERATION}")
    return model.llm2vae(norm(x[rows]))


def fill_caches(
    model: ReferenceLance, request: LanceConditioning
) -> list[tuple[Cache, Segment]]:
    """Prefix and noise block of the conditional and the unconditional branch."""
    packed, features = request.packed, request.vision_features
    source = request.source_latents
    source = None if source is None else source.flatten(0, 2)
    branches = (
        ((*packed.shared, *packed.conditional), packed.noise),
        ((*packed.shared, *packed.unconditional), packed.unconditional_noise),
    )
    return [
        (fill_cache(model, segments, features, source), noise)
        for segments, noise in branches
    ]


@torch.no_grad()
def denoise(
    model: ReferenceLance,
    request: LanceConditioning,
    latents: Tensor,
    times: Tensor,
    guidance: Guidance,
) -> Tensor:
    """[I, C] noise -> [I, C] latents."""
    branches = fill_caches(model, request)
    is_free = torch.arange(len(latents), device=latents.device) >= request.num_pinned
    for time, end in itertools.pairwise(times):
        at = time.to(latents.device) * is_free
        (cache, noise), (free_cache, free_noise) = branches
        v = velocity(model, latents, at, noise, cache)
        if guidance.is_active(float(time)):
            free = velocity(model, latents, at, free_noise, free_cache)
            v = blend_guidance(v[None], free[None], guidance)[0]
        stepped = euler_step(latents, v, time, end)
        latents = torch.where(is_free[:, None], stepped, latents)
    return latents


class ReferenceVision(nn.Module):
    """transformers' vision tower, filled from ``vit.safetensors``."""

    def __init__(self, file: Path, values: dict, device: torch.device) -> None:
        super().__init__()
        config = Qwen2_5_VLVisionConfig(**values)
        config._attn_implementation = "sdpa"
        self.tower = Qwen2_5_VisionTransformerPretrainedModel(config)
        self.tower.load_state_dict(load_file(file), strict=True)
        nn.Module.to(self.tower, device).requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, patches: Tensor, grid: Grid) -> Tensor:
        """[S, patch_dim] -> [S / 4, D]."""
        sizes = torch.tensor([grid], device=patches.device)
        return self.tower(patches, grid_thw=sizes).pooler_output


@torch.no_grad()
def answer(
    model: ReferenceLance, segments: Sequence[Segment], features: Tensor, num: int
) -> list[int]:
    """``num`` greedy tokens after a packed question about a picture or video.

    Args:
        model: With the rows of its head that are tokens.
        segments: See ``packing.pack_answer``.
        features: [S, D] of the medium.
        num: No token ends the answer.
    """
    *before, last = segments
    cache = fill_cache(model, before, features)
    core = model.language_model.model
    device = core.embed_tokens.weight.device
    x, _ = model.run(
        core.embed_tokens(last.token_ids.to(device)), last, cache, keep=True
    )
    position = int(last.position_ids.max())
    tokens: list[int] = []
    norm = core.get_submodule("norm")
    for _ in range(num):
        logits = model.language_model.lm_head(norm(x[-1:]))[0]
        tokens.append(int(logits.argmax()))
        position += 1
        ids = torch.tensor(tokens[-1:])
        next_token = Segment("text", ids, torch.full((3, 1), position))
        x, _ = model.run(
            core.embed_tokens(ids.to(device)), next_token, cache, keep=True
        )
    return tokens
