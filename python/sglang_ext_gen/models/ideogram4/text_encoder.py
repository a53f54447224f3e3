# SPDX-License-Identifier: Apache-2.0
"""Prompt to features: the language tower of Qwen3-VL, tapped at 13 layers.

Source: ``Qwen3VLModel`` of transformers and the feature rule of the reference
pipeline of diffusers.

Deliberate differences: no vision tower, no final norm (the last tap comes before
it) and one prompt at a time without padding, so that a prompt's features do not
depend on what else is in the batch. Text positions are equal on all mRoPE axes,
which makes it ordinary one-dimensional RoPE.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sglang_ext_gen.checkpoint.source import checkpoint_folder
from sglang_ext_gen.errors import ConfigError, RequestError
from sglang_ext_gen.layers.fp8_linear import (
    MergedColumnParallelFP8Linear,
    RowParallelFP8Linear,
    tensor_parallel,
)
from sglang_ext_gen.layers.rotary import apply_rotary, rope_cos_sin
from sglang_ext_gen.models.ideogram4.config import (
    TAP_LAYERS,
    Ideogram4TextEncoderConfig,
)
from sglang_ext_gen.models.ideogram4.request import MAX_PROMPT_TOKENS


@cache
def resolve_tokenizer(model_path: str, revision: str | None) -> Any:
    """The tokenizer of a checkpoint (transformers), once per process.

    Args:
        model_path: Local directory, or a Hugging Face id.
        revision: Of the id.
    """
    from transformers import AutoTokenizer

    folder = checkpoint_folder(model_path, revision)
    return AutoTokenizer.from_pretrained(folder / "tokenizer")


def tokenize_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Render the chat template around a prompt and tokenise it.

    Special tokens typed in the prompt become special tokens, as in the
    references.
    """
    content = [{"type": "text", "text": prompt}]
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=False,
    )
    return tokenizer(rendered, add_special_tokens=False)["input_ids"]


def check_prompt_length(tokenizer: Any, prompt: str) -> None:
    """Refuse a prompt beyond ``MAX_PROMPT_TOKENS``, template included.

    Raises:
        RequestError: States the length and the limit.
    """
    length = len(tokenize_prompt(tokenizer, prompt))
    if length > MAX_PROMPT_TOKENS:
        raise RequestError(
            "prompt",
            f"{length} tokens with the chat template, at most "
            f"{MAX_PROMPT_TOKENS} allowed",
        )


class Ideogram4TextAttention(nn.Module):
    """Causal grouped-query attention with normalised queries and keys."""

    def __init__(
        self, config: Ideogram4TextEncoderConfig, is_quantized: bool, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        _, tp_size = tensor_parallel()
        if heads % tp_size or kv_heads % tp_size:
            raise ConfigError(
                f"tp_size {tp_size} does not divide the {heads} query and "
                f"{kv_heads} key/value heads of the text encoder"
            )
        self.local_sizes = [
            count * self.head_dim // tp_size for count in (heads, kv_heads, kv_heads)
        ]
        linear = {"bias": False, "is_quantized": is_quantized, "dtype": dtype}
        self.qkv_proj = MergedColumnParallelFP8Linear(
            config.hidden_size,
            tuple(count * self.head_dim for count in (heads, kv_heads, kv_heads)),
            **linear,
        )
        self.o_proj = RowParallelFP8Linear(
            heads * self.head_dim, config.hidden_size, **linear
        )
        self.q_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps, dtype=dtype)
        self.k_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps, dtype=dtype)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [1, T, D] -> [1, T, D]."""
        q, k, v = (
            part.unflatten(-1, (-1, self.head_dim))
            for part in self.qkv_proj(x).split(self.local_sizes, dim=-1)
        )  # [1, T, H or K, d]
        q = apply_rotary(self.q_norm(q), cos, sin)
        k = apply_rotary(self.k_norm(k), cos, sin)
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            is_causal=True,
            enable_gqa=True,
        )
        return self.o_proj(out.transpose(1, 2).flatten(-2))


class Ideogram4TextMLP(nn.Module):
    """Gated feed-forward layer."""

    def __init__(
        self, config: Ideogram4TextEncoderConfig, is_quantized: bool, dtype: torch.dtype
    ) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        linear = {"bias": False, "is_quantized": is_quantized, "dtype": dtype}
        self.gate_up_proj = MergedColumnParallelFP8Linear(
            hidden, (inner, inner), **linear
        )
        self.down_proj = RowParallelFP8Linear(inner, hidden, **linear)

    def forward(self, x: Tensor) -> Tensor:
        """x: [1, T, D] -> [1, T, D]."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class Ideogram4TextLayer(nn.Module):
    """Pre-norm decoder layer."""

    def __init__(
        self, config: Ideogram4TextEncoderConfig, is_quantized: bool, dtype: torch.dtype
    ) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Ideogram4TextAttention(config, is_quantized, dtype)
        self.mlp = Ideogram4TextMLP(config, is_quantized, dtype)
        self.input_layernorm = nn.RMSNorm(hidden, eps=eps, dtype=dtype)
        self.post_attention_layernorm = nn.RMSNorm(hidden, eps=eps, dtype=dtype)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [1, T, D] -> [1, T, D]."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Ideogram4TextEncoder(nn.Module):
    """Runs the decoder layers causally and keeps the tapped residual streams.

    Args:
        config: Architecture of the released ``text_encoder/config.json``.
        is_quantized: Whether the linears hold FP8 weights with row scales.
        dtype: Compute dtype.
    """

    def __init__(
        self,
        config: Ideogram4TextEncoderConfig,
        *,
        is_quantized: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.embed_tokens = nn.Embedding(
            config.vocab_size, config.hidden_size, dtype=dtype
        )
        self.layers = nn.ModuleList(
            Ideogram4TextLayer(config, is_quantized, dtype)
            for _ in range(config.num_hidden_layers)
        )

    def forward(self, token_ids: Tensor) -> Tensor:
        """Features of one prompt.

        Args:
            token_ids: [T] int64, template included.

        Returns:
            [T, 13 * D] float32. Channel-major: the feature index is
            channel * 13 + tap.
        """
        x = self.embed_tokens(token_ids)[None]  # [1, T, D]
        positions = torch.arange(len(token_ids), device=x.device)
        config = self.config
        cos, sin = rope_cos_sin(
            positions, config.head_dim, config.rope_theta, self.dtype
        )
        taps = []
        for index, layer in enumerate(self.layers):
            x = layer(x, cos, sin)
            if index in TAP_LAYERS:
                taps.append(x[0])
        return torch.stack(taps, dim=-1).flatten(-2).float()
