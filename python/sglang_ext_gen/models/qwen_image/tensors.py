# SPDX-License-Identifier: Apache-2.0
"""What the released components hold: names and shapes from their configs.

Source: tensor names of the released Qwen-Image checkpoints
(``QwenImageTransformer2DModel``, Qwen2.5-VL text encoder, ``AutoencoderKLQwenImage``).
"""

import itertools
from collections.abc import Iterator, Mapping

from sglang_ext_gen.checkpoint.layout import StoredTensor, TensorSpec
from sglang_ext_gen.models.qwen_image.config import (
    TextEncoderConfig,
    TransformerConfig,
    VAEConfig,
    VisionConfig,
)

_TIME_FREQUENCIES = 256
_FEED_FORWARD_FACTOR = 4


def transformer_specs(config: TransformerConfig) -> Iterator[TensorSpec]:
    """Every tensor that a released transformer holds."""
    dim = config.num_attention_heads * config.attention_head_dim
    head = config.attention_head_dim
    text = config.joint_attention_dim
    channels = config.in_channels
    out = config.patch_size**2 * config.out_channels
    yield from _linear("img_in", dim, channels)
    yield from _linear("txt_in", dim, text)
    yield TensorSpec("txt_norm.weight", (text,))
    embedder = "time_text_embed.timestep_embedder"
    yield from _linear(f"{embedder}.linear_1", dim, _TIME_FREQUENCIES)
    yield from _linear(f"{embedder}.linear_2", dim, dim)
    yield from _linear("norm_out.linear", 2 * dim, dim)
    yield from _linear("proj_out", out, dim)
    for layer in range(config.num_layers):
        yield from _block_specs(f"transformer_blocks.{layer}", dim, head)


def _block_specs(name: str, dim: int, head: int) -> Iterator[TensorSpec]:
    for stream in ("img", "txt"):
        yield from _linear(f"{name}.{stream}_mod.1", 6 * dim, dim)
        inner = _FEED_FORWARD_FACTOR * dim
        yield from _linear(f"{name}.{stream}_mlp.net.0.proj", inner, dim)
        yield from _linear(f"{name}.{stream}_mlp.net.2", dim, inner)
    attention = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )
    for linear in attention:
        yield from _linear(f"{name}.attn.{linear}", dim, dim)
    for norm in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
        yield TensorSpec(f"{name}.attn.{norm}.weight", (head,))


def text_encoder_specs(
    config: TextEncoderConfig, stored: Mapping[str, StoredTensor]
) -> Iterator[TensorSpec]:
    """Language tower, vision tower, output head; what is there if it is quantised."""
    if config.is_quantized:
        for name, tensor in stored.items():
            yield TensorSpec(name, tensor.shape, (tensor.dtype,))
        return
    text = config.text
    hidden, vocabulary = text.hidden_size, text.vocab_size
    inner = text.intermediate_size
    key = hidden // text.num_attention_heads * text.num_key_value_heads
    yield TensorSpec("lm_head.weight", (vocabulary, hidden))
    yield TensorSpec("model.embed_tokens.weight", (vocabulary, hidden))
    yield TensorSpec("model.norm.weight", (hidden,))
    for layer in range(text.num_hidden_layers):
        name = f"model.layers.{layer}"
        yield TensorSpec(f"{name}.input_layernorm.weight", (hidden,))
        yield TensorSpec(f"{name}.post_attention_layernorm.weight", (hidden,))
        for projection, size in (("q", hidden), ("k", key), ("v", key)):
            yield from _linear(f"{name}.self_attn.{projection}_proj", size, hidden)
        yield TensorSpec(f"{name}.self_attn.o_proj.weight", (hidden, hidden))
        yield TensorSpec(f"{name}.mlp.gate_proj.weight", (inner, hidden))
        yield TensorSpec(f"{name}.mlp.up_proj.weight", (inner, hidden))
        yield TensorSpec(f"{name}.mlp.down_proj.weight", (hidden, inner))
    yield from _vision_specs(config.vision)


def _vision_specs(vision: VisionConfig) -> Iterator[TensorSpec]:
    hidden, inner = vision.hidden_size, vision.intermediate_size
    patch = vision.patch_size
    merged = hidden * vision.spatial_merge_size**2
    yield TensorSpec(
        "visual.patch_embed.proj.weight",
        (hidden, vision.in_channels, vision.temporal_patch_size, patch, patch),
    )
    for block in range(vision.depth):
        name = f"visual.blocks.{block}"
        yield TensorSpec(f"{name}.norm1.weight", (hidden,))
        yield TensorSpec(f"{name}.norm2.weight", (hidden,))
        yield from _linear(f"{name}.attn.qkv", 3 * hidden, hidden)
        yield from _linear(f"{name}.attn.proj", hidden, hidden)
        yield from _linear(f"{name}.mlp.gate_proj", inner, hidden)
        yield from _linear(f"{name}.mlp.up_proj", inner, hidden)
        yield from _linear(f"{name}.mlp.down_proj", hidden, inner)
    yield TensorSpec("visual.merger.ln_q.weight", (hidden,))
    yield from _linear("visual.merger.mlp.0", merged, merged)
    yield from _linear("visual.merger.mlp.2", vision.out_hidden_size, merged)


def vae_specs(config: VAEConfig) -> Iterator[TensorSpec]:
    """Encoder and decoder of the causal video VAE that Qwen-Image uses for pictures."""
    latent = config.z_dim
    yield from _convolution("quant_conv", 2 * latent, 2 * latent, (1, 1, 1))
    yield from _convolution("post_quant_conv", latent, latent, (1, 1, 1))
    yield from _encoder_specs(config)
    yield from _decoder_specs(config)


def _encoder_specs(config: VAEConfig) -> Iterator[TensorSpec]:
    widths = [config.base_dim * factor for factor in (1, *config.dim_mult)]
    channels = config.input_channels
    yield from _convolution("encoder.conv_in", widths[0], channels, (3, 3, 3))
    index = 0
    stages = list(itertools.pairwise(widths))
    for stage, (before, after) in enumerate(stages):
        for _ in range(config.num_res_blocks):
            yield from _resnet(f"encoder.down_blocks.{index}", before, after)
            before, index = after, index + 1
        if stage < len(stages) - 1:
            name = f"encoder.down_blocks.{index}"
            yield from _convolution(f"{name}.resample.1", after, after, (3, 3))
            if config.temperal_downsample[stage]:
                yield from _convolution(f"{name}.time_conv", after, after, (3, 1, 1))
            index += 1
    yield from _middle("encoder", widths[-1])
    yield from _norm("encoder.norm_out", widths[-1])
    yield from _convolution("encoder.conv_out", 2 * config.z_dim, widths[-1], (3, 3, 3))


def _decoder_specs(config: VAEConfig) -> Iterator[TensorSpec]:
    factors = config.dim_mult
    widths = [config.base_dim * f for f in (factors[-1], *reversed(factors))]
    upsamples_time = list(reversed(config.temperal_downsample))
    yield from _convolution("decoder.conv_in", widths[0], config.z_dim, (3, 3, 3))
    yield from _middle("decoder", widths[0])
    stages = list(itertools.pairwise(widths))
    for stage, (before, after) in enumerate(stages):
        # Every upsampler halves the channels.
        before = before // 2 if stage > 0 else before
        name = f"decoder.up_blocks.{stage}"
        for block in range(config.num_res_blocks + 1):
            yield from _resnet(f"{name}.resnets.{block}", before, after)
            before = after
        if stage < len(stages) - 1:
            name = f"{name}.upsamplers.0"
            yield from _convolution(f"{name}.resample.1", after // 2, after, (3, 3))
            if upsamples_time[stage]:
                yield from _convolution(
                    f"{name}.time_conv", 2 * after, after, (3, 1, 1)
                )
    yield from _norm("decoder.norm_out", widths[-1])
    yield from _convolution(
        "decoder.conv_out", config.input_channels, widths[-1], (3, 3, 3)
    )


def _middle(name: str, width: int) -> Iterator[TensorSpec]:
    name = f"{name}.mid_block"
    for block in range(2):
        yield from _resnet(f"{name}.resnets.{block}", width, width)
    attention = f"{name}.attentions.0"
    yield TensorSpec(f"{attention}.norm.gamma", (width, 1, 1))
    yield from _convolution(f"{attention}.to_qkv", 3 * width, width, (1, 1))
    yield from _convolution(f"{attention}.proj", width, width, (1, 1))


def _resnet(name: str, before: int, after: int) -> Iterator[TensorSpec]:
    yield from _norm(f"{name}.norm1", before)
    yield from _convolution(f"{name}.conv1", after, before, (3, 3, 3))
    yield from _norm(f"{name}.norm2", after)
    yield from _convolution(f"{name}.conv2", after, after, (3, 3, 3))
    if before != after:
        yield from _convolution(f"{name}.conv_shortcut", after, before, (1, 1, 1))


def _norm(name: str, width: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.gamma", (width, 1, 1, 1))


def _linear(name: str, out_features: int, in_features: int) -> Iterator[TensorSpec]:
    yield from _convolution(name, out_features, in_features, ())


def _convolution(
    name: str, out_channels: int, in_channels: int, kernel: tuple[int, ...]
) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", (out_channels, in_channels, *kernel))
    yield TensorSpec(f"{name}.bias", (out_channels,))
