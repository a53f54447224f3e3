# SPDX-License-Identifier: Apache-2.0
"""The mixture-of-transformers decoder over a key/value prefix.

Source: the official cached attention path and the released names (queries, keys and
values, and the two halves of the gate, are merged here). Each layer holds two sets of
weights: plain ones for text, vision features and markers, ``*_moe_gen`` ones for the
tokens strictly between the markers of a latent block.

Deliberate differences, none of which changes a value in float32: rotary embedding is
always applied in float32; noise blocks of several requests run as one batch against
their padded prefixes; the latent position table is computed for the rows in use (both
released tables are dropped by the official loader too).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    """Keys and values of all that comes before, layer by layer.

    Args:
        keys: One [B, K, S, d] tensor a layer, rotated.
        values: One [B, K, S, d] tensor a layer.
        mask: [B, S] bool, false at padding; None when there is none.
    """

    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()
    mask: Tensor | None = None

    @property
    def length(self) -> int:
        return self.keys[0].shape[2] if self.keys else 0


def batch_prefixes(prefixes: list[Prefix]) -> Prefix:
    """Prefixes of single requests as one batch, padded at their ends."""
    if len(prefixes) == 1:
        return prefixes[0]
    lengths = [prefix.length for prefix in prefixes]
    longest = max(lengths)

    def stack(rows: list[Tensor]) -> Tensor:
        return torch.cat([F.pad(r, (0, 0, 0, longest - r.shape[2])) for r in rows])

    layers = range(len(prefixes[0].keys))
    mask = None
    if min(lengths) < longest:
        ends = torch.tensor(lengths, device=prefixes[0].keys[0].device)
        mask = torch.arange(longest, device=ends.device) < ends[:, None]
    return Prefix(
        keys=tuple(stack([prefix.keys[i] for prefix in prefixes]) for i in layers),
        values=tuple(stack([prefix.values[i] for prefix in prefixes]) for i in layers),
        mask=mask,
    )


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

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """q: [B, S, H, d]; k, v: [B, K, P + S, d] -> [B, S, H * d]."""
        # Grouped heads reach a fused kernel only without a mask.
        is_grouped = mask is None
        if not is_grouped:
            repeats = self.num_heads // self.num_key_value_heads
            k, v = (part.repeat_interleave(repeats, dim=1) for part in (k, v))
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k, v, attn_mask=mask, enable_gqa=is_grouped
        )
        return out.transpose(1, 2).flatten(2)


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
    """One layer; ``split_experts`` decides which tokens meet which weights."""

    def __init__(self, config: LanceTransformerConfig, is_fp8: bool) -> None:
        super().__init__()
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
        past: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        has_latents: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One layer over a segment.

        Args:
            x: [B, S, D].
            rope: cos and sin of the segment.
            past: Keys and values before it, each [B, K, P, d].
            mask: [B or 1, 1, S or 1, P + S] bool, or None to see everything.
            has_latents: Whether all but the first and last token are latents.

        Returns:
            [B, S, D], and keys and values up to and including the segment.
        """
        parts = [
            self.self_attn.project(self._norm("input_layernorm", part, suffix), suffix)
            for part, suffix in split_experts(x, has_latents)
        ]
        q, k, v = (join_experts(list(tensors)) for tensors in zip(*parts, strict=True))
        q, k = (apply_rotary(part.float(), *rope).to(v.dtype) for part in (q, k))
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        attended = self.self_attn.attend(q, k, v, mask)
        outputs = [
            self._finish(residual, part, suffix)
            for (residual, suffix), (part, _) in zip(
                split_experts(x, has_latents),
                split_experts(attended, has_latents),
                strict=True,
            )
        ]
        return join_experts(outputs), k, v

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


class LanceTransformer(nn.Module):
    """The decoder without its language head, which generation never uses.

    Args:
        config: Architecture.
        is_fp8: Whether the linears of the layers hold FP8 weights.
    """

    def __init__(self, config: LanceTransformerConfig, is_fp8: bool = False) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            LanceTransformerBlock(config, is_fp8)
            for _ in range(config.num_hidden_layers)
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

    def embed_latents(
        self, latents: Tensor, times: Tensor, positions: Tensor
    ) -> Tensor:
        """Latent tokens at their noise level.

        Args:
            latents: [B, I, C] float32.
            times: [I] float32, 0 for tokens that are clean.
            positions: [I, D] float32, see ``latent_position_embedding``.

        Returns:
            [B, I, D].
        """
        levels, level = times.unique(return_inverse=True)
        embedding = self.time_embedder(levels)[level] + positions.to(self.dtype)
        return self.vae2llm(latents.to(self.dtype)) + embedding

    def wrap_block(self, body: Tensor, markers: Tensor) -> Tensor:
        """Put the embedded markers [2] around a visual block [B, I, D]."""
        edges = self.embed_tokens(markers).expand(len(body), -1, -1)
        return torch.cat([edges[:, :1], body, edges[:, 1:]], dim=1)

    def forward(
        self,
        hidden_states: Tensor,
        rope: Rope,
        prefix: Prefix,
        *,
        is_causal: bool = False,
        has_latents: bool = False,
    ) -> tuple[Tensor, Prefix]:
        """Run one segment.

        Args:
            hidden_states: [B, S, D] embedded tokens.
            rope: cos and sin of their positions, [B or 1, S, 1, d / 2].
            prefix: All that comes before.
            is_causal: Whether a token sees only what precedes it.
            has_latents: Whether the block holds latents between its markers.

        Returns:
            [B, S, D] before the final norm, and the prefix with the segment.
        """
        mask = _attention_mask(prefix, hidden_states, is_causal)
        keys, values = [], []
        for index, layer in enumerate(self.layers):
            past = (prefix.keys[index], prefix.values[index]) if prefix.keys else None
            hidden_states, k, v = layer(hidden_states, rope, past, mask, has_latents)
            keys.append(k)
            values.append(v)
        return hidden_states, Prefix(tuple(keys), tuple(values))

    def velocity(
        self, latents: Tensor, times: Tensor, block: "NoiseBlock", prefix: Prefix
    ) -> Tensor:
        """Velocity of the noise block against a prefix, which stays as it is.

        Args:
            latents: [B, I, C] float32.
            times: [I] float32, see ``embed_latents``.
            block: What the block's tokens are, constant over the steps.
            prefix: Of B requests.

        Returns:
            [B, I, C] float32.
        """
        body = self.embed_latents(latents, times, block.positions)
        hidden_states = self.wrap_block(body, block.markers)
        hidden_states, _ = self(hidden_states, block.rope, prefix, has_latents=True)
        normed = self.get_submodule("norm_moe_gen")(hidden_states[:, 1:-1])
        return self.llm2vae(normed).float()


@dataclass(frozen=True)
class NoiseBlock:
    """The noise block of a branch but for its latents.

    Args:
        markers: [2] int64 ids of the markers.
        positions: [I, D] float32 latent position embedding.
        rope: cos and sin, [B, I + 2, 1, d / 2].
    """

    markers: Tensor
    positions: Tensor
    rope: Rope


def _attention_mask(prefix: Prefix, x: Tensor, is_causal: bool) -> Tensor | None:
    length = x.shape[1]
    if is_causal:
        assert prefix.mask is None, "text is prefilled request by request"
        seen = torch.ones(length, prefix.length + length, device=x.device)
        return seen.tril(prefix.length).bool()[None, None]
    if prefix.mask is None:
        return None
    return F.pad(prefix.mask, (0, length), value=True)[:, None, None]
