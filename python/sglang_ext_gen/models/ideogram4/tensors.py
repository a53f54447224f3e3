# SPDX-License-Identifier: Apache-2.0
"""The tensors of an Ideogram 4 checkpoint: names, shapes, dtypes.

Source: the tensor names of the FP8 release (vendor names) and of its
diffusers-layout conversions (split attention names, FP8 or plain), and the state
dict of diffusers' AutoencoderKLFlux2. Independent of ``weights.py`` and of our
modules: tiny checkpoints are written from this file, so that a wrong rule cannot
agree with itself.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

from sglang_ext_gen.checkpoint.autoencoder_layout import autoencoder_kl_specs
from sglang_ext_gen.checkpoint.layout import INT64, TensorSpec, linear_specs
from sglang_ext_gen.models.ideogram4.config import (
    Ideogram4TextEncoderConfig,
    Ideogram4TransformerConfig,
    Ideogram4VAEConfig,
)

Names = Literal["vendor", "diffusers"]


def find_names(names: Collection[str]) -> Names:
    """Which of its two layouts a transformer has, from its tensors' names."""
    is_split = any(".attention.to_q." in name for name in names)
    return "diffusers" if is_split else "vendor"


def transformer_specs(
    config: Ideogram4TransformerConfig, *, names: Names, is_fp8: bool
) -> Iterator[TensorSpec]:
    """Tensors of one transformer; both hold the same."""
    linear = partial(linear_specs, is_fp8=is_fp8)
    hidden, head_dim = config.hidden_size, config.attention_head_dim
    inner, adaln = config.intermediate_size, config.adaln_dim
    features, channels = config.llm_features_dim, config.in_channels

    yield from linear("input_proj", hidden, channels, bias=True)
    yield TensorSpec("llm_cond_norm.weight", (features,))
    yield from linear("llm_cond_proj", hidden, features, bias=True)
    yield from linear("t_embedding.mlp_in", hidden, hidden, bias=True)
    yield from linear("t_embedding.mlp_out", hidden, hidden, bias=True)
    yield from linear("adaln_proj", adaln, hidden, bias=True)
    yield TensorSpec("embed_image_indicator.weight", (2, hidden))
    for i in range(config.num_layers):
        layer = f"layers.{i}"
        if names == "vendor":
            yield from linear(f"{layer}.attention.qkv", 3 * hidden, hidden, bias=False)
            yield from linear(f"{layer}.attention.o", hidden, hidden, bias=False)
        else:
            for part in ("to_q", "to_k", "to_v", "to_out.0"):
                name = f"{layer}.attention.{part}"
                yield from linear(name, hidden, hidden, bias=False)
        yield TensorSpec(f"{layer}.attention.norm_q.weight", (head_dim,))
        yield TensorSpec(f"{layer}.attention.norm_k.weight", (head_dim,))
        yield from linear(f"{layer}.feed_forward.w1", inner, hidden, bias=False)
        yield from linear(f"{layer}.feed_forward.w2", hidden, inner, bias=False)
        yield from linear(f"{layer}.feed_forward.w3", inner, hidden, bias=False)
        for norm in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"):
            yield TensorSpec(f"{layer}.{norm}.weight", (hidden,))
        yield from linear(f"{layer}.adaln_modulation", 4 * hidden, adaln, bias=True)
    yield from linear("final_layer.linear", channels, hidden, bias=True)
    yield from linear("final_layer.adaln_modulation", hidden, adaln, bias=True)


def text_encoder_specs(
    config: Ideogram4TextEncoderConfig, *, prefix: str = "", is_fp8: bool
) -> Iterator[TensorSpec]:
    """Tensors of the language tower.

    Args:
        prefix: What stands before every name; ``model.`` in some re-packs.
    """
    linear = partial(linear_specs, bias=False, is_fp8=is_fp8)
    hidden, inner = config.hidden_size, config.intermediate_size
    head_dim = config.head_dim
    queries = config.num_attention_heads * head_dim
    keys = config.num_key_value_heads * head_dim

    tower = f"{prefix}language_model"
    yield TensorSpec(f"{tower}.embed_tokens.weight", (config.vocab_size, hidden))
    for i in range(config.num_hidden_layers):
        layer = f"{tower}.layers.{i}"
        yield from linear(f"{layer}.self_attn.q_proj", queries, hidden)
        yield from linear(f"{layer}.self_attn.k_proj", keys, hidden)
        yield from linear(f"{layer}.self_attn.v_proj", keys, hidden)
        yield from linear(f"{layer}.self_attn.o_proj", hidden, queries)
        yield TensorSpec(f"{layer}.self_attn.q_norm.weight", (head_dim,))
        yield TensorSpec(f"{layer}.self_attn.k_norm.weight", (head_dim,))
        yield from linear(f"{layer}.mlp.gate_proj", inner, hidden)
        yield from linear(f"{layer}.mlp.up_proj", inner, hidden)
        yield from linear(f"{layer}.mlp.down_proj", hidden, inner)
        yield TensorSpec(f"{layer}.input_layernorm.weight", (hidden,))
        yield TensorSpec(f"{layer}.post_attention_layernorm.weight", (hidden,))
    yield TensorSpec(f"{tower}.norm.weight", (hidden,))


def vision_specs(vision: Mapping[str, Any], *, is_fp8: bool) -> Iterator[TensorSpec]:
    """Tensors of the vision tower, used to write tiny checkpoints only.

    Args:
        vision: ``vision_config`` of ``text_encoder/config.json``.
    """
    linear = partial(linear_specs, bias=True, is_fp8=is_fp8)
    hidden, inner = vision["hidden_size"], vision["intermediate_size"]
    out, patch = vision["out_hidden_size"], vision["patch_size"]
    merged = hidden * vision["spatial_merge_size"] ** 2
    conv = (hidden, vision["in_channels"], vision["temporal_patch_size"], patch, patch)

    yield from _conv("visual.patch_embed.proj", conv)
    yield TensorSpec(
        "visual.pos_embed.weight", (vision["num_position_embeddings"], hidden)
    )
    for i in range(vision["depth"]):
        block = f"visual.blocks.{i}"
        yield from _norm(f"{block}.norm1", hidden)
        yield from _norm(f"{block}.norm2", hidden)
        yield from linear(f"{block}.attn.qkv", 3 * hidden, hidden)
        yield from linear(f"{block}.attn.proj", hidden, hidden)
        yield from linear(f"{block}.mlp.linear_fc1", inner, hidden)
        yield from linear(f"{block}.mlp.linear_fc2", hidden, inner)
    mergers = [("visual.merger", hidden)]
    for i in range(len(vision["deepstack_visual_indexes"])):
        mergers.append((f"visual.deepstack_merger_list.{i}", merged))
    for merger, normed in mergers:
        yield from _norm(f"{merger}.norm", normed)
        yield from linear(f"{merger}.linear_fc1", merged, merged)
        yield from linear(f"{merger}.linear_fc2", out, merged)


def vae_specs(config: Ideogram4VAEConfig) -> Iterator[TensorSpec]:
    """Tensors of AutoencoderKLFlux2."""
    yield from autoencoder_kl_specs(asdict(config))
    yield TensorSpec("bn.running_mean", (config.token_channels,))
    yield TensorSpec("bn.running_var", (config.token_channels,))
    yield TensorSpec("bn.num_batches_tracked", (), INT64)


def _norm(name: str, width: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", (width,))
    yield TensorSpec(f"{name}.bias", (width,))


def _conv(name: str, shape: tuple[int, ...]) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", shape)
    yield TensorSpec(f"{name}.bias", shape[:1])
