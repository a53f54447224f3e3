# SPDX-License-Identifier: Apache-2.0
"""The tensors of a Lance checkpoint: names and shapes.

Source: the headers of the release as published (``model.safetensors`` of both
variants, ``vit.safetensors``) and the names of the vendor's Wan 2.2 VAE. Independent
of ``weights.py`` and of our modules. Both float32 and bfloat16 releases exist.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sglang_ext_gen.checkpoint.layout import StoredTensor, TensorSpec, linear_specs
from sglang_ext_gen.errors import CheckpointError
from sglang_ext_gen.models.lance.config import (
    LATENT_CHANNELS,
    TIME_EMBEDDING_DIM,
    LanceTransformerConfig,
    LanceVisionConfig,
)

POSITION_TABLE = "latent_pos_embed.pos_embed"
# Prefix of the vision tower that Lance_3B_Video bundles.
BUNDLED_VISION = "vit_model."


def transformer_specs(config: LanceTransformerConfig) -> Iterator[TensorSpec]:
    """Tensors of ``model.safetensors`` but for position table and vision tower."""
    hidden, vocabulary = config.hidden_size, config.vocab_size
    yield TensorSpec("language_model.model.embed_tokens.weight", (vocabulary, hidden))
    yield TensorSpec("language_model.lm_head.weight", (vocabulary, hidden))
    for suffix in ("", "_moe_gen"):
        for i in range(config.num_hidden_layers):
            yield from _layer(f"language_model.model.layers.{i}", suffix, config)
        yield TensorSpec(f"language_model.model.norm{suffix}.weight", (hidden,))
    yield from _linear("vae2llm", hidden, LATENT_CHANNELS)
    yield from _linear("llm2vae", LATENT_CHANNELS, hidden)
    yield from _linear("time_embedder.mlp.0", hidden, TIME_EMBEDDING_DIM)
    yield from _linear("time_embedder.mlp.2", hidden, hidden)


def _layer(
    layer: str, suffix: str, config: LanceTransformerConfig
) -> Iterator[TensorSpec]:
    hidden, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
    attn, mlp = f"{layer}.self_attn", f"{layer}.mlp{suffix}"
    queries = config.num_attention_heads * head
    keys = config.num_key_value_heads * head
    for name, width in (("q", queries), ("k", keys), ("v", keys)):
        yield from _linear(f"{attn}.{name}_proj{suffix}", width, hidden)
    yield TensorSpec(f"{attn}.o_proj{suffix}.weight", (hidden, queries))
    for name in ("q_norm", "k_norm"):
        yield TensorSpec(f"{attn}.{name}{suffix}.weight", (head,))
    for name in ("gate_proj", "up_proj"):
        yield TensorSpec(f"{mlp}.{name}.weight", (inner, hidden))
    yield TensorSpec(f"{mlp}.down_proj.weight", (hidden, inner))
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield TensorSpec(f"{layer}.{name}{suffix}.weight", (hidden,))


def vision_specs(config: LanceVisionConfig, prefix: str = "") -> Iterator[TensorSpec]:
    """Tensors of the vision tower.

    Args:
        prefix: What stands before every name; the video checkpoint bundles a tower.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    merged = hidden * config.spatial_merge_size**2
    patch = (config.temporal_patch_size, config.patch_size, config.patch_size)
    yield TensorSpec(
        f"{prefix}patch_embed.proj.weight", (hidden, config.in_chans, *patch)
    )
    for i in range(config.depth):
        block = f"{prefix}blocks.{i}"
        yield from _linear(f"{block}.attn.qkv", 3 * hidden, hidden)
        yield from _linear(f"{block}.attn.proj", hidden, hidden)
        yield from _linear(f"{block}.mlp.gate_proj", inner, hidden)
        yield from _linear(f"{block}.mlp.up_proj", inner, hidden)
        yield from _linear(f"{block}.mlp.down_proj", hidden, inner)
        yield TensorSpec(f"{block}.norm1.weight", (hidden,))
        yield TensorSpec(f"{block}.norm2.weight", (hidden,))
    yield TensorSpec(f"{prefix}merger.ln_q.weight", (hidden,))
    yield from _linear(f"{prefix}merger.mlp.0", merged, merged)
    yield from _linear(f"{prefix}merger.mlp.2", config.out_hidden_size, merged)


@dataclass(frozen=True)
class VaeWidths:
    """Base widths of the VAE's halves (release: 160 and 256).

    No config file states them; they are read off the first convolutions.
    """

    encoder: int
    decoder: int

    @classmethod
    def from_tensors(cls, stored: Mapping[str, StoredTensor]) -> "VaeWidths":
        """Read the widths.

        Raises:
            CheckpointError: The tensors that tell them are missing.
        """
        first, last = "encoder.conv1.weight", "decoder.head.2.weight"
        for name in (first, last):
            if name not in stored or len(stored[name].shape) != 5:
                raise CheckpointError(
                    f"Wan2.2_VAE: {name} is missing or not a 3D filter"
                )
        return cls(stored[first].shape[0], stored[last].shape[1])


# Factors of the base width per stage, and stages that halve the frame rate.
_MULTIPLIERS = (1, 2, 4, 4)
_IS_TEMPORAL = (False, True, True)
_PATCH_CHANNELS = 12  # RGB of 2 x 2 pixels


def vae_specs(widths: VaeWidths) -> Iterator[TensorSpec]:
    """Tensors of ``Wan2.2_VAE.pth``."""
    yield from _encoder(widths.encoder)
    yield from _decoder(widths.decoder)
    yield from _conv("conv1", 2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, (1, 1, 1))
    yield from _conv("conv2", LATENT_CHANNELS, LATENT_CHANNELS, (1, 1, 1))


def _encoder(base: int) -> Iterator[TensorSpec]:
    yield from _conv("encoder.conv1", base, _PATCH_CHANNELS)
    before = base
    for i, factor in enumerate(_MULTIPLIERS):
        block, width = f"encoder.downsamples.{i}.downsamples", base * factor
        for j in range(2):
            yield from _resnet(f"{block}.{j}", before if j == 0 else width, width)
        if i < len(_IS_TEMPORAL):
            yield from _conv(f"{block}.2.resample.1", width, width, (3, 3))
            if _IS_TEMPORAL[i]:
                yield from _conv(f"{block}.2.time_conv", width, width, (3, 1, 1))
        before = width
    yield from _middle("encoder.middle", before)
    yield TensorSpec("encoder.head.0.gamma", (before, 1, 1, 1))
    yield from _conv("encoder.head.2", 2 * LATENT_CHANNELS, before)


def _decoder(base: int) -> Iterator[TensorSpec]:
    before = base * _MULTIPLIERS[-1]
    yield from _conv("decoder.conv1", before, LATENT_CHANNELS)
    yield from _middle("decoder.middle", before)
    rising = tuple(reversed(_IS_TEMPORAL))
    for i, factor in enumerate(reversed(_MULTIPLIERS)):
        block, width = f"decoder.upsamples.{i}.upsamples", base * factor
        for j in range(3):
            yield from _resnet(f"{block}.{j}", before if j == 0 else width, width)
        if i < len(rising):
            yield from _conv(f"{block}.3.resample.1", width, width, (3, 3))
            if rising[i]:
                yield from _conv(f"{block}.3.time_conv", 2 * width, width, (3, 1, 1))
        before = width
    yield TensorSpec("decoder.head.0.gamma", (before, 1, 1, 1))
    yield from _conv("decoder.head.2", _PATCH_CHANNELS, before)


def _middle(name: str, width: int) -> Iterator[TensorSpec]:
    yield from _resnet(f"{name}.0", width, width)
    yield TensorSpec(f"{name}.1.norm.gamma", (width, 1, 1))
    yield from _conv(f"{name}.1.to_qkv", 3 * width, width, (1, 1))
    yield from _conv(f"{name}.1.proj", width, width, (1, 1))
    yield from _resnet(f"{name}.2", width, width)


def _resnet(name: str, before: int, width: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.residual.0.gamma", (before, 1, 1, 1))
    yield from _conv(f"{name}.residual.2", width, before)
    yield TensorSpec(f"{name}.residual.3.gamma", (width, 1, 1, 1))
    yield from _conv(f"{name}.residual.6", width, width)
    if before != width:
        yield from _conv(f"{name}.shortcut", width, before, (1, 1, 1))


def _conv(
    name: str, out: int, into: int, kernel: tuple[int, ...] = (3, 3, 3)
) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", (out, into, *kernel))
    yield TensorSpec(f"{name}.bias", (out,))


def _linear(name: str, out_features: int, in_features: int) -> Iterator[TensorSpec]:
    yield from linear_specs(name, out_features, in_features, bias=True, is_fp8=False)
