# SPDX-License-Identifier: Apache-2.0
"""Write a small Ideogram 4 checkpoint in the layout of the FP8 release.

All dimensions differ from the release and, where they may, from each other (odd
numbers of layers, kv heads below heads, unequal mrope sections). What the release
fixes stays: 36 text layers, because the taps are fixed, and 32 VAE channels in 2 x 2
patches. Two attention heads or more everywhere, so that tensor and sequence
parallelism over two ranks can be tried.

The random model is made to resemble a trained one where tests depend on it:

- The unconditional transformer is a perturbed copy of the conditional one, so that
  guidance 7 does not drown the picture in noise.
- The weights on the fast time frequencies are damped: a bf16 time has no accuracy
  there, and a trained model does not listen to them either.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sglang_ext_gen.checkpoint.tiny import new_folder, write_component, write_json
from sglang_ext_gen.checkpoint.tiny_tokenizer import write_qwen_tokenizer
from sglang_ext_gen.models.ideogram4.checkpoint import (
    INDEX,
    PIPELINE_CLASS,
    SCHEDULER_CLASS,
    TEXT_ENCODER,
    TRANSFORMER,
    UNCONDITIONAL,
    VAE,
)
from sglang_ext_gen.models.ideogram4.config import (
    LATENT_CHANNELS,
    PATCH_SIZE,
    TAP_LAYERS,
    TEXT_ENCODER_CLASSES,
    TRANSFORMER_CLASS,
    VAE_CLASS,
    Ideogram4TextEncoderConfig,
    Ideogram4TransformerConfig,
)
from sglang_ext_gen.models.ideogram4.latent_statistics import (
    LATENT_SCALE,
    LATENT_SHIFT,
)
from sglang_ext_gen.models.ideogram4.tensors import (
    text_encoder_specs,
    transformer_specs,
    vision_specs,
)

_DIFFUSERS_VERSION = "0.39.0.dev0"
_BN_EPS = 1e-4
_TEXT_LAYERS = TAP_LAYERS[-1] + 1
_SPARE_TOKENS = 14  # the released embedding, too, has rows that no token uses
# Weight of the unconditional transformer's own noise; the rest is shared.
_OWN_NOISE = 0.2
# Time frequencies above this (radians per 1/10000 of the time) are damped.
_FAST_FREQUENCY, _FAST_GAIN = 0.005, 0.02

_CONTRAST = 0.6  # keeps most pixels off black and white


@dataclass(frozen=True)
class Dimensions:
    """Sizes of a small checkpoint; names as in the configs."""

    num_layers: int
    num_attention_heads: int
    attention_head_dim: int
    intermediate_size: int
    adaln_dim: int
    mrope_section: tuple[int, int, int]
    text_hidden_size: int
    text_intermediate_size: int
    text_num_attention_heads: int
    text_num_key_value_heads: int
    text_head_dim: int
    text_mrope_section: tuple[int, int, int]
    vae_block_out_channels: tuple[int, int, int, int]
    vae_norm_num_groups: int


# 2 MB; a picture takes seconds on a CPU.
TINY = Dimensions(
    num_layers=3,
    num_attention_heads=4,
    attention_head_dim=32,
    intermediate_size=160,
    adaln_dim=48,
    mrope_section=(3, 3, 2),
    text_hidden_size=32,
    text_intermediate_size=64,
    text_num_attention_heads=4,
    text_num_key_value_heads=2,
    text_head_dim=16,
    text_mrope_section=(4, 2, 2),
    vae_block_out_channels=(16, 16, 32, 32),
    vae_norm_num_groups=8,
)
# About 100 million parameters in each transformer, for benchmarks.
MID_SIZE = Dimensions(
    num_layers=7,
    num_attention_heads=16,
    attention_head_dim=64,
    intermediate_size=2816,
    adaln_dim=256,
    mrope_section=(6, 5, 5),
    text_hidden_size=128,
    text_intermediate_size=320,
    text_num_attention_heads=4,
    text_num_key_value_heads=2,
    text_head_dim=32,
    text_mrope_section=(6, 5, 5),
    vae_block_out_channels=(32, 64, 128, 128),
    vae_norm_num_groups=16,
)


def write_tiny(path: Path, seed: int = 0, dimensions: Dimensions = TINY) -> None:
    """Write a complete checkpoint; the same seed gives the same bytes.

    Args:
        path: A new or empty folder.
        seed: Of the random weights.
        dimensions: ``TINY``, ``MID_SIZE`` or others.

    Raises:
        ConfigError: ``path`` exists and is not an empty folder.
    """
    with new_folder(path) as folder:
        write_json(folder / "model_index.json", _model_index())
        write_json(folder / "scheduler" / "scheduler_config.json", _scheduler())
        added = write_qwen_tokenizer(folder / "tokenizer")
        _write_text_encoder(folder, dimensions, added, seed)
        _write_transformers(folder, dimensions, seed)
        _write_vae(folder, dimensions, seed)


def _write_text_encoder(
    path: Path, dimensions: Dimensions, added: dict[str, int], seed: int
) -> None:
    values = text_encoder_config(dimensions, added)
    config = Ideogram4TextEncoderConfig.from_dict(values, "text_encoder")
    specs = (
        *text_encoder_specs(config, is_fp8=True),
        *vision_specs(values["vision_config"], is_fp8=True),
    )
    write_component(path, TEXT_ENCODER, values, specs, seed=seed)


def _write_transformers(path: Path, dimensions: Dimensions, seed: int) -> None:
    values = transformer_config(dimensions)
    config = Ideogram4TransformerConfig.from_dict(values, "transformer")
    shared = math.sqrt(1 - _OWN_NOISE**2)
    for component, streams in (
        (TRANSFORMER, {TRANSFORMER.name: 1.0}),
        (UNCONDITIONAL, {TRANSFORMER.name: shared, UNCONDITIONAL.name: _OWN_NOISE}),
    ):
        write_component(
            path,
            component,
            values,
            transformer_specs(config, names="vendor", is_fp8=True),
            seed=seed,
            streams=streams,
            adjust={"t_embedding.mlp_in.weight": _damp_fast_frequencies},
        )


def _write_vae(path: Path, dimensions: Dimensions, seed: int) -> None:
    shift, scale = torch.tensor(LATENT_SHIFT), torch.tensor(LATENT_SCALE)
    write_component(
        path,
        VAE,
        vae_config(dimensions),
        seed=seed,
        adjust={
            "bn.running_mean": lambda _: shift,
            "bn.running_var": lambda _: scale.square() - _BN_EPS,
            "bn.num_batches_tracked": lambda _: torch.tensor(0),
            "decoder.conv_out.weight": lambda weight: (_CONTRAST * weight).bfloat16(),
        },
    )


def _damp_fast_frequencies(weight: Tensor) -> Tensor:
    """Columns are [sin, cos] of frequencies from 1 down to 1/10000."""
    half = weight.shape[1] // 2
    frequency = torch.logspace(0, -4, half).repeat(2)
    return weight * torch.where(frequency > _FAST_FREQUENCY, _FAST_GAIN, 1.0)


def _model_index() -> dict[str, Any]:
    components = {name: [lib, names[0]] for name, (lib, names) in INDEX.items()}
    return {
        "_class_name": PIPELINE_CLASS,
        "_diffusers_version": _DIFFUSERS_VERSION,
        **components,
    }


def _class(name: str) -> dict[str, Any]:
    return {"_class_name": name, "_diffusers_version": _DIFFUSERS_VERSION}


def _scheduler() -> dict[str, Any]:
    return {
        **_class(SCHEDULER_CLASS),
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "use_dynamic_shifting": False,
    }


def transformer_config(dimensions: Dimensions) -> dict[str, Any]:
    """``config.json`` of both transformers."""
    return {
        **_class(TRANSFORMER_CLASS),
        "adaln_dim": dimensions.adaln_dim,
        "attention_head_dim": dimensions.attention_head_dim,
        "in_channels": len(LATENT_SCALE),
        "intermediate_size": dimensions.intermediate_size,
        "llm_features_dim": len(TAP_LAYERS) * dimensions.text_hidden_size,
        "mrope_section": dimensions.mrope_section,
        "norm_eps": 1e-05,
        "num_attention_heads": dimensions.num_attention_heads,
        "num_layers": dimensions.num_layers,
        "rope_theta": 5000000,
    }


def text_encoder_config(
    dimensions: Dimensions, added: dict[str, int]
) -> dict[str, Any]:
    """``text_encoder/config.json``; ``added`` are the tokenizer's added tokens."""
    return {
        "architectures": [TEXT_ENCODER_CLASSES[0]],
        "dtype": "bfloat16",
        "ideogram_fp8_weight_only": True,
        "image_token_id": added["<|image_pad|>"],
        "model_type": "qwen3_vl",
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": added["<|endoftext|>"],
            "dtype": "bfloat16",
            "eos_token_id": added["<|im_end|>"],
            "head_dim": dimensions.text_head_dim,
            "hidden_act": "silu",
            "hidden_size": dimensions.text_hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": dimensions.text_intermediate_size,
            "max_position_embeddings": 4096,
            "model_type": "qwen3_vl_text",
            "num_attention_heads": dimensions.text_num_attention_heads,
            "num_hidden_layers": _TEXT_LAYERS,
            "num_key_value_heads": dimensions.text_num_key_value_heads,
            "rms_norm_eps": 1e-06,
            "rope_parameters": {
                "mrope_interleaved": True,
                "mrope_section": dimensions.text_mrope_section,
                "rope_theta": 5000000,
                "rope_type": "default",
            },
            "use_cache": True,
            "vocab_size": max(added.values()) + 1 + _SPARE_TOKENS,
        },
        "tie_word_embeddings": False,
        "transformers_version": "5.8.1",
        "video_token_id": added["<|video_pad|>"],
        "vision_config": _vision(dimensions),
        "vision_end_token_id": added["<|vision_end|>"],
        "vision_start_token_id": added["<|vision_start|>"],
    }


def _vision(dimensions: Dimensions) -> dict[str, Any]:
    """A vision tower of the least size: it is on disk and never used."""
    return {
        "deepstack_visual_indexes": [0, 1],
        "depth": 2,
        "dtype": "bfloat16",
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 16,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 32,
        "model_type": "qwen3_vl",
        "num_heads": 2,
        "num_position_embeddings": 16,
        "out_hidden_size": dimensions.text_hidden_size,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }


def vae_config(dimensions: Dimensions) -> dict[str, Any]:
    """``vae/config.json``."""
    widths = dimensions.vae_block_out_channels
    return {
        **_class(VAE_CLASS),
        "act_fn": "silu",
        "batch_norm_eps": _BN_EPS,
        "batch_norm_momentum": 0.1,
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": LATENT_CHANNELS,
        "layers_per_block": 1,
        "mid_block_add_attention": True,
        "norm_num_groups": dimensions.vae_norm_num_groups,
        "out_channels": 3,
        "patch_size": list(PATCH_SIZE),
        "sample_size": 1024,
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "use_post_quant_conv": True,
        "use_quant_conv": True,
    }
