# SPDX-License-Identifier: Apache-2.0
"""The tensors of the image generator's parts: names and shapes.

Source: the names of the released files. Every dimension is read from the configs.
Independent of ``weights.py`` and of our modules: tiny checkpoints are written from
this file, so that a wrong rule cannot agree with itself.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict

from sglang_ext_gen.checkpoint.autoencoder_layout import autoencoder_kl_specs
from sglang_ext_gen.checkpoint.component import Stored
from sglang_ext_gen.checkpoint.layout import TensorSpec
from sglang_ext_gen.errors import CheckpointError
from sglang_ext_gen.models.ming_omni.config import (
    PATCH,
    TIME_FREQUENCIES,
    TIME_HIDDEN,
    AutoencoderConfig,
    BridgeConfig,
    ConnectorConfig,
    GlyphConfig,
    T5Sizes,
    TransformerConfig,
)


def connector_specs(config: ConnectorConfig, stored: Stored) -> Iterator[TensorSpec]:
    """``connector/``: a Qwen2 model; its language head may be there or not."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    yield TensorSpec("model.embed_tokens.weight", (config.vocab_size, hidden))
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        for part, width in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            yield from _linear(f"{layer}.self_attn.{part}", width, hidden)
        yield TensorSpec(f"{layer}.self_attn.o_proj.weight", (hidden, queries))
        yield TensorSpec(f"{layer}.mlp.gate_proj.weight", (inner, hidden))
        yield TensorSpec(f"{layer}.mlp.up_proj.weight", (inner, hidden))
        yield TensorSpec(f"{layer}.mlp.down_proj.weight", (hidden, inner))
        yield TensorSpec(f"{layer}.input_layernorm.weight", (hidden,))
        yield TensorSpec(f"{layer}.post_attention_layernorm.weight", (hidden,))
    yield TensorSpec("model.norm.weight", (hidden,))


def bridge_specs(config: BridgeConfig, stored: Stored) -> Iterator[TensorSpec]:
    """``mlp/``, whose two outer widths only the tensors on disk state."""
    return bridge_tensors(config, *bridge_widths(stored))


def bridge_widths(stored: Stored) -> tuple[int, int]:
    """Widths of connector and thinker, by the projection between them.

    Raises:
        CheckpointError: It is missing.
    """
    projection = stored.get("proj_in.weight")
    if projection is None or len(projection.shape) != 2:
        raise CheckpointError("mlp/: proj_in.weight is missing or no matrix")
    connector, thinker = projection.shape
    return connector, thinker


def bridge_tensors(
    config: BridgeConfig, connector_width: int, thinker_width: int
) -> Iterator[TensorSpec]:
    """``mlp/``: projections, and the query tokens that the thinker uses."""
    yield from _linear("proj_in", connector_width, thinker_width)
    yield from _linear("proj_out", config.diffusion_c_input_dim, connector_width)
    yield from query_token_specs(config.img_gen_scales, thinker_width)


def query_token_specs(scales: Iterable[int], width: int) -> Iterator[TensorSpec]:
    """The learnable query tokens, one tensor per scale."""
    for side in scales:
        yield TensorSpec(query_token_name(side), (side * side, width))


def query_token_name(side: int) -> str:
    """Name on disk of the query tokens of one scale."""
    return f"query_tokens_dict.{side}x{side}"


def transformer_specs(
    config: TransformerConfig, stored: Stored
) -> Iterator[TensorSpec]:
    """``transformer/``: diffusers' names."""
    dim, patch = config.dim, config.in_channels * PATCH * PATCH
    key, modulation = f"{PATCH}-1", config.modulation_width
    yield from _linear(f"all_x_embedder.{key}", dim, patch)
    yield from _linear(f"all_final_layer.{key}.linear", patch, dim)
    yield from _linear(f"all_final_layer.{key}.adaLN_modulation.1", dim, modulation)
    yield from _linear("t_embedder.mlp.0", TIME_HIDDEN, TIME_FREQUENCIES)
    yield from _linear("t_embedder.mlp.2", modulation, TIME_HIDDEN)
    yield TensorSpec("cap_embedder.0.weight", (config.cap_feat_dim,))
    yield from _linear("cap_embedder.1", dim, config.cap_feat_dim)
    yield TensorSpec("x_pad_token", (1, dim))
    yield TensorSpec("cap_pad_token", (1, dim))
    for i in range(config.n_refiner_layers):
        yield from _block(f"noise_refiner.{i}", config, is_modulated=True)
        yield from _block(f"context_refiner.{i}", config, is_modulated=False)
    for i in range(config.n_layers):
        yield from _block(f"layers.{i}", config, is_modulated=True)


def _block(
    name: str, config: TransformerConfig, *, is_modulated: bool
) -> Iterator[TensorSpec]:
    dim, inner = config.dim, config.ffn_dim
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        yield TensorSpec(f"{name}.attention.{part}.weight", (dim, dim))
    yield TensorSpec(f"{name}.attention.norm_q.weight", (config.head_dim,))
    yield TensorSpec(f"{name}.attention.norm_k.weight", (config.head_dim,))
    for norm in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"):
        yield TensorSpec(f"{name}.{norm}.weight", (dim,))
    yield TensorSpec(f"{name}.feed_forward.w1.weight", (inner, dim))
    yield TensorSpec(f"{name}.feed_forward.w2.weight", (dim, inner))
    yield TensorSpec(f"{name}.feed_forward.w3.weight", (inner, dim))
    if is_modulated:
        yield from _linear(
            f"{name}.adaLN_modulation.0", 4 * dim, config.modulation_width
        )


def vae_specs(config: AutoencoderConfig, stored: Stored) -> Iterator[TensorSpec]:
    """``vae/``: diffusers' names, without convolutions around the latents."""
    absent = {"use_quant_conv": False, "use_post_quant_conv": False}
    return autoencoder_kl_specs({**asdict(config), **absent})


def glyph_encoder_specs(config: GlyphConfig, stored: Stored) -> Iterator[TensorSpec]:
    """``byt5_model.pt``: a T5 encoder with the extended vocabulary."""
    hidden = config.t5.d_model
    yield TensorSpec("embed_tokens.weight", (config.vocab_size, hidden))
    for i in range(config.t5.num_layers):
        yield from _t5_block(f"block.{i}", config.t5, has_bias=i == 0)
    yield TensorSpec("final_layer_norm.weight", (hidden,))


def glyph_mapper_specs(config: GlyphConfig, stored: Stored) -> Iterator[TensorSpec]:
    """``byt5_mapper.pt``."""
    for i in range(config.mapper_layers):
        yield from _t5_block(f"blocks.{i}", config.t5, has_bias=i == 0)
    yield TensorSpec("layer_norm.weight", (config.t5.d_model,))
    yield from _linear("channel_mapper", config.width, config.t5.d_model)
    yield TensorSpec("final_layer_norm.weight", (config.width,))


def _t5_block(name: str, t5: T5Sizes, *, has_bias: bool) -> Iterator[TensorSpec]:
    hidden, inner = t5.d_model, t5.d_ff
    attention, width = f"{name}.layer.0.SelfAttention", t5.num_heads * t5.d_kv
    for part in ("q", "k", "v"):
        yield TensorSpec(f"{attention}.{part}.weight", (width, hidden))
    yield TensorSpec(f"{attention}.o.weight", (hidden, width))
    if has_bias:
        shape = (t5.relative_attention_num_buckets, t5.num_heads)
        yield TensorSpec(f"{attention}.relative_attention_bias.weight", shape)
    yield TensorSpec(f"{name}.layer.0.layer_norm.weight", (hidden,))
    feed_forward = f"{name}.layer.1.DenseReluDense"
    yield TensorSpec(f"{feed_forward}.wi_0.weight", (inner, hidden))
    yield TensorSpec(f"{feed_forward}.wi_1.weight", (inner, hidden))
    yield TensorSpec(f"{feed_forward}.wo.weight", (hidden, inner))
    yield TensorSpec(f"{name}.layer.1.layer_norm.weight", (hidden,))


def _linear(name: str, out_features: int, in_features: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", (out_features, in_features))
    yield TensorSpec(f"{name}.bias", (out_features,))
