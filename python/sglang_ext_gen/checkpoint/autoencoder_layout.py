# SPDX-License-Identifier: Apache-2.0
"""The tensors of diffusers' AutoencoderKL, and of its kin with the same two halves.

Source: the state dict of the class. Every dimension is read from ``config.json``.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from sglang_ext_gen.checkpoint.layout import TensorSpec, linear_specs

Config = Mapping[str, Any]


def autoencoder_kl_specs(config: Config) -> Iterator[TensorSpec]:
    """Encoder, decoder and the quantisation convolutions, from ``vae/config.json``."""
    latent, depth = config["latent_channels"], config["layers_per_block"]
    widths = config["block_out_channels"]
    decoder_widths = config.get("decoder_block_out_channels") or widths
    has_attention = config["mid_block_add_attention"]

    yield from _conv("encoder.conv_in", (widths[0], config["in_channels"], 3, 3))
    for i, (before, width) in enumerate(pairwise([widths[0], *widths])):
        block = f"encoder.down_blocks.{i}"
        for j in range(depth):
            yield from _resnet(
                f"{block}.resnets.{j}", before if j == 0 else width, width
            )
        if i < len(widths) - 1:
            yield from _conv(f"{block}.downsamplers.0.conv", (width, width, 3, 3))
    yield from _mid_block("encoder.mid_block", widths[-1], has_attention)
    yield from _norm("encoder.conv_norm_out", widths[-1])
    yield from _conv("encoder.conv_out", (2 * latent, widths[-1], 3, 3))

    rising = list(reversed(decoder_widths))
    yield from _conv("decoder.conv_in", (rising[0], latent, 3, 3))
    yield from _mid_block("decoder.mid_block", rising[0], has_attention)
    for i, (before, width) in enumerate(pairwise([rising[0], *rising])):
        block = f"decoder.up_blocks.{i}"
        for j in range(depth + 1):
            yield from _resnet(
                f"{block}.resnets.{j}", before if j == 0 else width, width
            )
        if i < len(rising) - 1:
            yield from _conv(f"{block}.upsamplers.0.conv", (width, width, 3, 3))
    yield from _norm("decoder.conv_norm_out", rising[-1])
    yield from _conv("decoder.conv_out", (config["out_channels"], rising[-1], 3, 3))

    if config["use_quant_conv"]:
        yield from _conv("quant_conv", (2 * latent, 2 * latent, 1, 1))
    if config["use_post_quant_conv"]:
        yield from _conv("post_quant_conv", (latent, latent, 1, 1))


def _mid_block(name: str, width: int, has_attention: bool) -> Iterator[TensorSpec]:
    yield from _resnet(f"{name}.resnets.0", width, width)
    yield from _resnet(f"{name}.resnets.1", width, width)
    if has_attention:
        attention = f"{name}.attentions.0"
        yield from _norm(f"{attention}.group_norm", width)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            yield from linear_specs(
                f"{attention}.{part}", width, width, bias=True, is_fp8=False
            )


def _resnet(name: str, before: int, width: int) -> Iterator[TensorSpec]:
    yield from _norm(f"{name}.norm1", before)
    yield from _conv(f"{name}.conv1", (width, before, 3, 3))
    yield from _norm(f"{name}.norm2", width)
    yield from _conv(f"{name}.conv2", (width, width, 3, 3))
    if before != width:
        yield from _conv(f"{name}.conv_shortcut", (width, before, 1, 1))


def _norm(name: str, width: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", (width,))
    yield TensorSpec(f"{name}.bias", (width,))


def _conv(name: str, shape: tuple[int, ...]) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", shape)
    yield TensorSpec(f"{name}.bias", shape[:1])
