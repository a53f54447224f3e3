# SPDX-License-Identifier: Apache-2.0
"""The Ideogram 4 transformer: text and image tokens in one stream.

Source: ``Ideogram4Transformer2DModel`` of diffusers and the released names.

Deliberate differences from the references, none of which changes a value:
- the projected text is an input of ``forward``: it is constant over the steps;
- no indicator masks: text rows and image rows are built apart, then joined;
- the unconditional transformer has no text path: its input would be zero;
- the packed sequence can be sharded over ranks (Ulysses, ring, K/V gather).
"""

import math
from dataclasses import dataclass

import torch
from sglang.multimodal_gen.runtime.distributed.sp_shard_utils import (
    SpShard,
    build_shard_plan,
    gather_seq,
    shard_like,
    tail_attn_meta,
)
from sglang.multimodal_gen.runtime.layers.attention import (
    DynamicVarlenMaskMeta,
    USPAttention,
    build_varlen_mask_meta,
)
from sglang.multimodal_gen.runtime.managers.memory_managers.layerwise_offload import (
    LayerwiseOffloadableModuleMixin,
)
from torch import Tensor, nn
from torch.nn import functional as F

from sglang_ext_gen.diffusion.step_cache import StepCachedTransformer
from sglang_ext_gen.errors import ConfigError
from sglang_ext_gen.layers.fp8_linear import (
    ColumnParallelFP8Linear,
    FP8Linear,
    MergedColumnParallelFP8Linear,
    RowParallelFP8Linear,
    tensor_parallel,
)
from sglang_ext_gen.layers.rotary import apply_rotary, mrope_cos_sin
from sglang_ext_gen.models.ideogram4.config import Ideogram4TransformerConfig
from sglang_ext_gen.models.ideogram4.packing import PackedText

# The time in [0, 1] is scaled by this before its sinusoidal embedding.
TIME_SCALE = 1.0e4
TIME_MAX_PERIOD = 1.0e4
# Query and key norms ignore the config's norm_eps; so does the text norm.
QK_NORM_EPS = 1.0e-5
TEXT_NORM_EPS = 1.0e-6
FINAL_NORM_EPS = 1.0e-6
# Rows of ``embed_image_indicator``.
TEXT_ROW, IMAGE_ROW = 0, 1


@dataclass(frozen=True)
class PackedSequence:
    """What attention needs to know of a packed sequence, constant over steps.

    Args:
        cos: [B, S_local, 1, d / 2] rotary cosines of this rank's tokens.
        sin: [B, S_local, 1, d / 2].
        shard: How the S tokens are spread over sequence-parallel ranks.
        mask: [B, S_local] bool, false at padding; None when there is none.
        mask_meta: SGLang's metadata for masked kernels, or None; under CUDA graphs
            an object that makes them anew from the mask of each replay.
    """

    cos: Tensor
    sin: Tensor
    shard: SpShard
    mask: Tensor | None
    mask_meta: dict | DynamicVarlenMaskMeta | None


class Ideogram4Attention(nn.Module):
    """Joint attention over all tokens, normalised queries and keys."""

    def __init__(
        self, config: Ideogram4TransformerConfig, is_quantized: bool, dtype: torch.dtype
    ) -> None:
        super().__init__()
        hidden, heads = config.hidden_size, config.num_attention_heads
        _, tp_size = tensor_parallel()
        if heads % tp_size:
            raise ConfigError(
                f"tp_size {tp_size} does not divide the {heads} attention heads"
            )
        self.num_heads = heads // tp_size
        self.head_dim = config.attention_head_dim
        linear = {"bias": False, "is_quantized": is_quantized, "dtype": dtype}
        self.qkv = MergedColumnParallelFP8Linear(hidden, (hidden,) * 3, **linear)
        self.o = RowParallelFP8Linear(hidden, hidden, **linear)
        self.norm_q = nn.RMSNorm(self.head_dim, eps=QK_NORM_EPS, dtype=dtype)
        self.norm_k = nn.RMSNorm(self.head_dim, eps=QK_NORM_EPS, dtype=dtype)
        self.attn = USPAttention(num_heads=self.num_heads, head_size=self.head_dim)

    def forward(self, x: Tensor, sequence: PackedSequence) -> Tensor:
        """x: [B, S_local, D] -> [B, S_local, D]."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        q, k, v = qkv.unbind(dim=2)  # each [B, S, H, d]
        q = apply_rotary(self.norm_q(q), sequence.cos, sequence.sin)
        k = apply_rotary(self.norm_k(k), sequence.cos, sequence.sin)
        out = self.attn(
            q, k, v, attn_mask=sequence.mask, attn_mask_meta=sequence.mask_meta
        )
        return self.o(out.flatten(-2))


class Ideogram4FeedForward(nn.Module):
    """Gated feed-forward layer, ``w2(silu(w1 x) * w3 x)``."""

    def __init__(
        self, config: Ideogram4TransformerConfig, is_quantized: bool, dtype: torch.dtype
    ) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        linear = {"bias": False, "is_quantized": is_quantized, "dtype": dtype}
        self.w1 = ColumnParallelFP8Linear(hidden, inner, **linear)
        self.w2 = RowParallelFP8Linear(inner, hidden, **linear)
        self.w3 = ColumnParallelFP8Linear(hidden, inner, **linear)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, S, D] -> [B, S, D]."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Ideogram4TransformerBlock(nn.Module):
    """Sandwich-normed block, modulated by time through scales and tanh gates."""

    def __init__(
        self, config: Ideogram4TransformerConfig, is_quantized: bool, dtype: torch.dtype
    ) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.norm_eps
        self.attention = Ideogram4Attention(config, is_quantized, dtype)
        self.feed_forward = Ideogram4FeedForward(config, is_quantized, dtype)
        self.attention_norm1 = nn.RMSNorm(hidden, eps=eps, dtype=dtype)
        self.attention_norm2 = nn.RMSNorm(hidden, eps=eps, dtype=dtype)
        self.ffn_norm1 = nn.RMSNorm(hidden, eps=eps, dtype=dtype)
        self.ffn_norm2 = nn.RMSNorm(hidden, eps=eps, dtype=dtype)
        self.adaln_modulation = FP8Linear(
            config.adaln_dim, 4 * hidden, is_quantized=is_quantized, dtype=dtype
        )

    def forward(self, x: Tensor, adaln: Tensor, sequence: PackedSequence) -> Tensor:
        """x: [B, S_local, D], adaln: [1, 1, A] -> [B, S_local, D]."""
        scale_attn, gate_attn, scale_ffn, gate_ffn = self.adaln_modulation(adaln).chunk(
            4, dim=-1
        )
        y = self.attention(self.attention_norm1(x) * (1 + scale_attn), sequence)
        x = x + torch.tanh(gate_attn) * self.attention_norm2(y)
        y = self.feed_forward(self.ffn_norm1(x) * (1 + scale_ffn))
        return x + torch.tanh(gate_ffn) * self.ffn_norm2(y)


class Ideogram4TimeEmbedding(nn.Module):
    """Sinusoid of the time, then a two-layer perceptron."""

    def __init__(self, hidden_size: int, is_quantized: bool, dtype: torch.dtype):
        super().__init__()
        linear = {"is_quantized": is_quantized, "dtype": dtype}
        self.hidden_size = hidden_size
        self.mlp_in = FP8Linear(hidden_size, hidden_size, **linear)
        self.mlp_out = FP8Linear(hidden_size, hidden_size, **linear)

    def forward(self, time: Tensor) -> Tensor:
        """time: scalar in the compute dtype -> [1, 1, D]."""
        half = self.hidden_size // 2
        index = torch.arange(half, dtype=torch.float32, device=time.device)
        # half - 1: the slowest frequency is exactly 1 / TIME_MAX_PERIOD.
        frequency = torch.exp(index * (-math.log(TIME_MAX_PERIOD) / (half - 1)))
        angle = TIME_SCALE * time.float() * frequency
        sinusoid = torch.cat([angle.sin(), angle.cos()]).to(time.dtype)
        return self.mlp_out(F.silu(self.mlp_in(sinusoid.view(1, 1, -1))))


class Ideogram4FinalLayer(nn.Module):
    """Modulated layer norm and projection to latent channels."""

    def __init__(
        self, config: Ideogram4TransformerConfig, is_quantized: bool, dtype: torch.dtype
    ) -> None:
        super().__init__()
        hidden = config.hidden_size
        linear = {"is_quantized": is_quantized, "dtype": dtype}
        self.linear = FP8Linear(hidden, config.in_channels, **linear)
        self.adaln_modulation = FP8Linear(config.adaln_dim, hidden, **linear)

    def forward(self, x: Tensor, adaln: Tensor) -> Tensor:
        """x: [B, S, D], adaln: [1, 1, A] -> [B, S, C]."""
        # The second silu is intended: ``adaln`` already went through one.
        scale = self.adaln_modulation(F.silu(adaln))
        normed = F.layer_norm(x, x.shape[-1:], eps=FINAL_NORM_EPS)
        return self.linear(normed * (1 + scale))


class Ideogram4Transformer(
    StepCachedTransformer, LayerwiseOffloadableModuleMixin, nn.Module
):
    """Predicts the velocity of image tokens.

    Args:
        config: Architecture of the released ``config.json``.
        has_text: False for the unconditional transformer, which never sees text.
        is_quantized: Whether the linears hold FP8 weights with row scales.
        dtype: Compute dtype.
    """

    layer_names = ["layers"]  # noqa: RUF012  (SGLang reads it from the class)

    def __init__(
        self,
        config: Ideogram4TransformerConfig,
        *,
        has_text: bool,
        is_quantized: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self._init_teacache_state()
        self.config = config
        self.dtype = dtype
        self.hidden_size = hidden = config.hidden_size
        self.num_attention_heads = config.num_attention_heads
        linear = {"is_quantized": is_quantized, "dtype": dtype}
        self.input_proj = FP8Linear(config.in_channels, hidden, **linear)
        if has_text:
            features = config.llm_features_dim
            self.llm_cond_norm = nn.RMSNorm(features, eps=TEXT_NORM_EPS, dtype=dtype)
            self.llm_cond_proj = FP8Linear(features, hidden, **linear)
        self.t_embedding = Ideogram4TimeEmbedding(hidden, is_quantized, dtype)
        self.adaln_proj = FP8Linear(hidden, config.adaln_dim, **linear)
        self.embed_image_indicator = nn.Embedding(2, hidden, dtype=dtype)
        self.layers = nn.ModuleList(
            Ideogram4TransformerBlock(config, is_quantized, dtype)
            for _ in range(config.num_layers)
        )
        self.final_layer = Ideogram4FinalLayer(config, is_quantized, dtype)
        # One for all requests: a graph is found by what its inputs are.
        self.replayed_mask_meta = DynamicVarlenMaskMeta()

    def project_text(self, text: PackedText) -> Tensor:
        """Text rows of the packed sequence, constant over the steps.

        Returns:
            [B, T, D] in the compute dtype.
        """
        normed = self.llm_cond_norm(text.features.to(self.dtype))
        projected = self.llm_cond_proj(normed) * text.mask[..., None]
        return projected + self.embed_image_indicator.weight[TEXT_ROW]

    def time_signal(self, time: Tensor) -> Tensor:
        """What modulates all layers: scalar float32 -> [1, 1, A]."""
        return F.silu(self.adaln_proj(self.t_embedding(time.to(self.dtype))))

    def pack(self, position_ids: Tensor, mask: Tensor | None) -> PackedSequence:
        """Prepare what attention needs, once per request.

        Args:
            position_ids: [B, S, 3] positions (t, h, w) of all tokens.
            mask: [B, S] bool, false at padding; None when there is none.
        """
        shard = build_shard_plan(position_ids.shape[1])
        config = self.config
        cos, sin = mrope_cos_sin(
            shard_like(position_ids, shard),
            config.attention_head_dim,
            config.rope_theta,
            config.mrope_section,
            self.dtype,
        )
        if mask is None:
            # Only the tail that evens out the ranks is padding, if anything.
            meta = tail_attn_meta(shard, position_ids.shape[0], position_ids.device)
            return PackedSequence(cos, sin, shard, None, meta)
        local_mask = shard_like(mask, shard)
        meta = build_varlen_mask_meta(local_mask) if shard.sp_size == 1 else None
        return PackedSequence(cos, sin, shard, local_mask, meta)

    def forward(
        self,
        latents: Tensor,
        time: Tensor,
        sequence: PackedSequence,
        text_rows: Tensor | None = None,
    ) -> Tensor:
        """Velocity at one time, the same for the whole batch.

        Args:
            latents: [B, I, C] float32.
            time: Scalar float32 in [0, 1], 0 is pure noise.
            sequence: From ``pack``; S = T + I tokens (T = 0 without text).
            text_rows: [B, T, D] from ``project_text``.

        Returns:
            [B, I, C] float32, from noise to image.
        """
        image_rows = self.input_proj(latents.to(self.dtype))
        x = image_rows + self.embed_image_indicator.weight[IMAGE_ROW]
        if text_rows is not None:
            x = torch.cat([text_rows, x], dim=1)  # [B, S, D]
        num_tokens = x.shape[1]
        adaln = self.time_signal(time)

        def blocks(x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x, adaln, sequence)
            return x

        x = self.run_blocks(shard_like(x, sequence.shard), blocks)
        velocity = gather_seq(self.final_layer(x, adaln), num_tokens)
        return velocity[:, num_tokens - latents.shape[1] :].float()
