# SPDX-License-Identifier: Apache-2.0
"""The mixture-of-transformers decoder over a key/value prefix.

Source: the official cached attention path and the released names (queries, keys and
values, and the two halves of the gate, are merged here). Each layer holds two sets of
weights: plain ones for text, vision features and markers, ``*_moe_gen`` ones for the
tokens strictly between the markers of a latent block.

Deliberate differences, none of which changes a value in float32: rotary embedding is
always applied in float32; noise blocks of both guidance branches and of several
requests are rows of one call, each against its own prefix; the latent position table
is computed for the rows in use (both released tables are dropped by the official
loader too).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sglang.multimodal_gen.runtime.managers.memory_managers.layerwise_offload import (
    LayerwiseOffloadableModuleMixin,
)
from torch import Tensor, nn
from torch.nn import functional as F

from sglang_ext_gen.diffusion.step_cache import StepCachedTransformer
from sglang_ext_gen.layers.fp8_linear import FP8Linear
from sglang_ext_gen.layers.rotary import apply_rotary, inverse_frequencies
from sglang_ext_gen.models.lance.config import (
    LATENT_CHANNELS,
    MAX_LATENT_SIDE,
    TIME_EMBEDDING_DIM,
    LanceTransformerConfig,
)

_MAX_PERIOD = 10_000.0

Rope = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Prefix:
    """Keys and values of all that comes before, layer by layer, for rows of one length.

    Args:
        keys: One [R, K, P, d] tensor a layer, rotated.
        values: One [R, K, P, d] tensor a layer.
    """

    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()

    @property
    def rows(self) -> int:
        """R."""
        return self.keys[0].shape[0]

    @property
    def length(self) -> int:
        """P."""
        return self.keys[0].shape[2] if self.keys else 0


def join_prefixes(prefixes: Sequence[Prefix]) -> tuple[Prefix, ...]:
    """The same rows in as few prefixes as their lengths allow, in order."""
    joined = []
    for _, group in itertools.groupby(prefixes, key=lambda prefix: prefix.length):
        keys, values = zip(*((p.keys, p.values) for p in group), strict=True)
        joined.append(
            Prefix(
                keys=tuple(torch.cat(layer) for layer in zip(*keys, strict=True)),
                values=tuple(torch.cat(layer) for layer in zip(*values, strict=True)),
            )
        )
    return tuple(joined)


class PrefixWriter:
    """What a segment that becomes part of the prefix attends to: that and itself.

    Args:
        prefix: All before the segment.
        is_causal: Whether a token sees only what precedes it.
    """

    def __init__(self, prefix: Prefix, is_causal: bool) -> None:
        self._before, self._is_causal = prefix, is_causal
        self._layers: list[tuple[Tensor, Tensor]] = []

    @property
    def prefix(self) -> Prefix:
        """The prefix with the segment, behind all layers."""
        keys, values = zip(*self._layers, strict=True)
        return Prefix(keys, values)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q: [R, H, S, d], k and v: [R, K, S, d] -> [R, H, S, d]."""
        if self._before.keys:
            k = torch.cat([self._before.keys[layer], k], dim=2)
            v = torch.cat([self._before.values[layer], v], dim=2)
        self._layers.append((k, v))
        mask = None
        if self._is_causal:
            length, end = q.shape[2], k.shape[2]
            places = torch.arange(end, device=q.device)
            mask = places <= places[end - length :, None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


@dataclass(frozen=True)
class PrefixReader:
    """What noise blocks attend to: each row its own prefix, and itself.

    Args:
        prefixes: Of all rows, in order.
    """

    prefixes: tuple[Prefix, ...]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q: [R, H, S, d], k and v: [R, K, S, d] -> [R, H, S, d]."""
        outputs, end = [], 0
        for prefix in self.prefixes:
            start, end = end, end + prefix.rows
            outputs.append(
                F.scaled_dot_product_attention(
                    q[start:end],
                    torch.cat([prefix.keys[layer], k[start:end]], dim=2),
                    torch.cat([prefix.values[layer], v[start:end]], dim=2),
                    enable_gqa=True,
                )
            )
        return torch.cat(outputs)


def rope_cos_sin(position_ids: Tensor, config: LanceTransformerConfig) -> Rope:
    """Rotation of three-axis positions, contiguous sections as in Qwen2.5-VL.

    Args:
        position_ids: [..., 3, S] positions (t, h, w).
        config: The first section of frequencies follows t, the next h, the last w.

    Returns:
        cos and sin, each [..., S, 1, d / 2] float32.
    """
    device = position_ids.device
    frequencies = inverse_frequencies(config.head_dim, config.rope_theta, device)
    sections = torch.tensor(config.mrope_section, device=device)
    axis = torch.repeat_interleave(torch.arange(3, device=device), sections)
    angles = position_ids.float().transpose(-1, -2)[..., axis] * frequencies
    return angles.cos().unsqueeze(-2), angles.sin().unsqueeze(-2)


def latent_position_embedding(rows: Tensor, hidden_size: int) -> Tensor:
    """Rows of the sine-cosine table over frames, height and width.

    Args:
        rows: [I] int64, see ``packing.latent_rows``.
        hidden_size: D; a third each (made even) for t and h, the rest for w.

    Returns:
        [I, D] float32, computed in float64.
    """
    third = hidden_size // 3 // 2 * 2
    widths = (third, third, hidden_size - 2 * third)
    axes = (
        rows // MAX_LATENT_SIDE**2,
        rows // MAX_LATENT_SIDE % MAX_LATENT_SIDE,
        rows % MAX_LATENT_SIDE,
    )
    parts = []
    for position, width in zip(axes, widths, strict=True):
        exponents = torch.arange(width // 2, device=rows.device).double() / (width / 2)
        angles = position[:, None] * _MAX_PERIOD**-exponents
        parts += [angles.sin(), angles.cos()]
    return torch.cat(parts, dim=-1).float()


class LanceAttention(nn.Module):
    """Grouped-query attention with per-head norms and two sets of weights."""

    def __init__(self, config: LanceTransformerConfig, is_fp8: bool) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.num_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        width = self.num_heads * self.head_dim
        merged = width + 2 * self.num_key_value_heads * self.head_dim
        eps = config.rms_norm_eps
        for suffix in ("", "_moe_gen"):
            self.add_module(
                f"qkv_proj{suffix}",
                FP8Linear(config.hidden_size, merged, is_quantized=is_fp8),
            )
            self.add_module(
                f"o_proj{suffix}",
                FP8Linear(width, config.hidden_size, bias=False, is_quantized=is_fp8),
            )
            for norm in ("q_norm", "k_norm"):
                self.add_module(f"{norm}{suffix}", nn.RMSNorm(self.head_dim, eps=eps))

    def project(self, x: Tensor, suffix: str) -> tuple[Tensor, Tensor, Tensor]:
        """x: [B, S, D] -> normed q [B, S, H, d], normed k and v [B, S, K, d]."""
        heads = (self.num_heads, self.num_key_value_heads, self.num_key_value_heads)
        qkv = self.get_submodule(f"qkv_proj{suffix}")(x)
        q, k, v = qkv.unflatten(-1, (-1, self.head_dim)).split(heads, dim=2)
        q = self.get_submodule(f"q_norm{suffix}")(q)
        return q, self.get_submodule(f"k_norm{suffix}")(k), v


class LanceMLP(nn.Module):
    """Gated feed-forward layer."""

    def __init__(self, config: LanceTransformerConfig, is_fp8: bool) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_up_proj = FP8Linear(
            hidden, 2 * inner, bias=False, is_quantized=is_fp8
        )
        self.down_proj = FP8Linear(inner, hidden, bias=False, is_quantized=is_fp8)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, S, D] -> [B, S, D]."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class LanceTransformerBlock(nn.Module):
    """One layer; ``split_experts`` decides which tokens meet which weights.

    Args:
        index: Which layer.
        config: Architecture.
        is_fp8: Whether the linears hold FP8 weights.
    """

    def __init__(
        self, index: int, config: LanceTransformerConfig, is_fp8: bool
    ) -> None:
        super().__init__()
        self.index = index
        self.self_attn = LanceAttention(config, is_fp8)
        for suffix in ("", "_moe_gen"):
            self.add_module(f"mlp{suffix}", LanceMLP(config, is_fp8))
            for norm in ("input_layernorm", "post_attention_layernorm"):
                self.add_module(
                    f"{norm}{suffix}",
                    nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps),
                )

    def forward(
        self,
        x: Tensor,
        rope: Rope,
        memory: PrefixWriter | PrefixReader,
        has_latents: bool,
    ) -> Tensor:
        """One layer over a segment.

        Args:
            x: [R, S, D].
            rope: cos and sin of the segment.
            memory: What it attends to.
            has_latents: Whether all but the first and last token are latents.

        Returns:
            [R, S, D].
        """
        parts = [
            self.self_attn.project(self._norm("input_layernorm", part, suffix), suffix)
            for part, suffix in split_experts(x, has_latents)
        ]
        q, k, v = (join_experts(list(tensors)) for tensors in zip(*parts, strict=True))
        q, k = (apply_rotary(part.float(), *rope).to(v.dtype) for part in (q, k))
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        attended = memory.attend(self.index, q, k, v).transpose(1, 2).flatten(2)
        outputs = [
            self._finish(residual, part, suffix)
            for (residual, suffix), (part, _) in zip(
                split_experts(x, has_latents),
                split_experts(attended, has_latents),
                strict=True,
            )
        ]
        return join_experts(outputs)

    def _norm(self, name: str, x: Tensor, suffix: str) -> Tensor:
        return self.get_submodule(f"{name}{suffix}")(x)

    def _finish(self, residual: Tensor, attended: Tensor, suffix: str) -> Tensor:
        x = residual + self.self_attn.get_submodule(f"o_proj{suffix}")(attended)
        normed = self._norm("post_attention_layernorm", x, suffix)
        return x + self.get_submodule(f"mlp{suffix}")(normed)


def split_experts(x: Tensor, has_latents: bool) -> list[tuple[Tensor, str]]:
    """The tokens of each set of weights with the set's suffix: markers, latents."""
    if not has_latents:
        return [(x, "")]
    markers = torch.cat([x[:, :1], x[:, -1:]], dim=1)
    return [(markers, ""), (x[:, 1:-1], "_moe_gen")]


def join_experts(parts: list[Tensor]) -> Tensor:
    """Undo ``split_experts``."""
    if len(parts) == 1:
        return parts[0]
    markers, latents = parts
    return torch.cat([markers[:, :1], latents, markers[:, 1:]], dim=1)


class LanceTimeEmbedder(nn.Module):
    """Time in [0, 1], not scaled, as a D-vector."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(TIME_EMBEDDING_DIM, hidden_size),
            nn.SiLU(),
            nn.Linear(hidden_size, hidden_size),
        )

    def forward(self, times: Tensor) -> Tensor:
        """[N] float32 -> [N, D]."""
        half = TIME_EMBEDDING_DIM // 2
        exponents = torch.arange(half, device=times.device).float() / half
        angles = times.float()[:, None] * torch.exp(-math.log(_MAX_PERIOD) * exponents)
        embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.mlp(embedding.to(next(self.parameters()).dtype))


class LanceTransformer(
    StepCachedTransformer, LayerwiseOffloadableModuleMixin, nn.Module
):
    """The decoder without its language head, which generation never uses.

    Args:
        config: Architecture.
        is_fp8: Whether the linears of the layers hold FP8 weights.
    """

    layer_names = ["layers"]  # noqa: RUF012  (SGLang reads it from the class)
    # Time is not scaled here, so its embedding moves by a quarter from noise to picture
    # in a random model: this spares 19 of 30 steps there.
    teacache_threshold = 0.02

    def __init__(self, config: LanceTransformerConfig, is_fp8: bool = False) -> None:
        super().__init__()
        self._init_teacache_state()
        self.config = config
        self.hidden_size = config.hidden_size
        self.num_attention_heads = config.num_attention_heads
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            LanceTransformerBlock(index, config, is_fp8)
            for index in range(config.num_hidden_layers)
        )
        for suffix in ("", "_moe_gen"):
            norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            self.add_module(f"norm{suffix}", norm)
        self.time_embedder = LanceTimeEmbedder(config.hidden_size)
        self.vae2llm = nn.Linear(LATENT_CHANNELS, config.hidden_size)
        self.llm2vae = nn.Linear(config.hidden_size, LATENT_CHANNELS)

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.weight.dtype

    def time_signal(self, time: Tensor) -> Tensor:
        """What a step's latents are told: scalar float32 -> [1, D]."""
        return self.time_embedder(time[None])

    def embed_latents(
        self, latents: Tensor, time_rows: Tensor, positions: Tensor
    ) -> Tensor:
        """Latent tokens at their noise level.

        Args:
            latents: [B, I, C] float32.
            time_rows: [I or 1, D] of the time embedder; that of time 0 for a token
                that is clean.
            positions: [I, D] float32, see ``latent_position_embedding``.

        Returns:
            [B, I, D].
        """
        embedding = time_rows + positions.to(self.dtype)
        return self.vae2llm(latents.to(self.dtype)) + embedding

    def wrap_block(self, body: Tensor, markers: Tensor) -> Tensor:
        """Put the embedded markers [2] around a visual block [B, I, D]."""
        edges = self.embed_tokens(markers).expand(len(body), -1, -1)
        return torch.cat([edges[:, :1], body, edges[:, 1:]], dim=1)

    def extend(
        self,
        hidden_states: Tensor,
        rope: Rope,
        prefix: Prefix,
        *,
        is_causal: bool = False,
        has_latents: bool = False,
    ) -> tuple[Tensor, Prefix]:
        """Run one segment that later ones attend to.

        Args:
            hidden_states: [1, S, D] embedded tokens.
            rope: cos and sin of their positions, [1, S, 1, d / 2].
            prefix: All that comes before.
            is_causal: Whether a token sees only what precedes it.
            has_latents: Whether the block holds latents between its markers.

        Returns:
            [1, S, D] before the final norm, and the prefix with the segment.
        """
        memory = PrefixWriter(prefix, is_causal)
        for layer in self.layers:
            hidden_states = layer(hidden_states, rope, memory, has_latents)
        return hidden_states, memory.prefix

    def forward(
        self,
        latents: Tensor,
        time: Tensor,
        block: "NoiseBlock",
        prefixes: tuple[Prefix, ...],
    ) -> Tensor:
        """Velocities of the noise block in every guidance branch.

        Args:
            latents: [B, I, C] float32.
            time: Scalar float32, 1 is pure noise.
            block: What the block's tokens are, constant over the steps.
            prefixes: Of k B rows, branch by branch; they stay as they are.

        Returns:
            [k B, I, C] float32.
        """
        times = self.time_embedder(torch.stack([time, torch.zeros_like(time)]))
        time_rows = torch.where(block.is_clean[:, None], times[1], times[0])
        body = self.embed_latents(latents, time_rows, block.positions)
        branches = len(block.rope[0]) // len(latents)
        x = self.wrap_block(body.repeat(branches, 1, 1), block.markers)
        memory = PrefixReader(prefixes)

        def blocks(x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x, block.rope, memory, True)
            return x

        x = self.run_blocks(x, blocks)
        normed = self.get_submodule("norm_moe_gen")(x[:, 1:-1])
        return self.llm2vae(normed).float()


@dataclass(frozen=True)
class NoiseBlock:
    """The noise block of R rows but for its latents.

    Args:
        markers: [2] int64 ids of the markers.
        positions: [I, D] float32 latent position embedding.
        is_clean: [I] bool, true for tokens of the result that are given.
        rope: cos and sin, [R, I + 2, 1, d / 2].
    """

    markers: Tensor
    positions: Tensor
    is_clean: Tensor
    rope: Rope
