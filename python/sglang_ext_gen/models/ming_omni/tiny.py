# SPDX-License-Identifier: Apache-2.0
"""Write a small Ming checkpoint in the official layout: thinker and generator.

All dimensions differ from the release and, where they may, from each other. What the
release fixes stays: 16 latent channels of 8 pixels, patches of 2 x 2, ByT5's bytes, the
time embedding. Two attention heads or more everywhere, so that tensor and sequence
parallelism over two ranks can be tried.

As in the release ``byt5/`` holds pickles, and ``base.pt`` beside them, which must never
be opened: here it is no pickle.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import ByT5Tokenizer

from sglang_ext_gen.checkpoint.autoencoder_layout import autoencoder_kl_specs
from sglang_ext_gen.checkpoint.layout import TensorSpec, read_json
from sglang_ext_gen.checkpoint.tiny import (
    Adjust,
    new_folder,
    random_tensors,
    write_json,
    write_tensors,
)
from sglang_ext_gen.models.ming_omni.config import (
    BridgeConfig,
    ConnectorConfig,
    GlyphConfig,
    TransformerConfig,
)
from sglang_ext_gen.models.ming_omni.tensors import (
    bridge_specs,
    connector_specs,
    glyph_encoder_specs,
    glyph_mapper_specs,
    transformer_specs,
)
from sglang_ext_gen.models.ming_omni.thinker import tiny as thinker
from sglang_ext_gen.models.ming_omni.weights import (
    BRIDGE_FILE,
    CONNECTOR_FILE,
    GLYPH_CONFIG,
    GLYPH_ENCODER,
    GLYPH_MAPPER,
    TRANSFORMER_FILE,
    VAE_FILE,
)

_DIFFUSERS_VERSION = "0.36.0"
_COLORS = {"white": 0, "black": 1, "red": 2}
# As in the release: some languages have tokens of their own, others share them.
_FONTS = {"cn-Kai": 0, "en-Arial": 0, "de-Futura": 0, "fr-Bodoni": 1}
_CONTRAST = 0.6  # keeps most pixels off black and white


@dataclass(frozen=True)
class Dimensions:
    """Sizes of a small generator; names as in the configs."""

    connector_hidden_size: int
    connector_layers: int
    caption_width: int
    dim: int
    n_layers: int
    n_refiner_layers: int
    n_heads: int
    axes_dims: tuple[int, int, int]
    vae_block_out_channels: tuple[int, int, int, int]
    vae_norm_num_groups: int
    byt5_max_length: int


# 3 MB; a picture takes seconds on a CPU.
TINY = Dimensions(
    connector_hidden_size=32,
    connector_layers=2,
    caption_width=48,
    dim=96,
    n_layers=3,
    n_refiner_layers=2,
    n_heads=4,
    axes_dims=(8, 8, 8),
    vae_block_out_channels=(8, 16, 16, 32),
    vae_norm_num_groups=4,
    byt5_max_length=64,
)
# About 100 million parameters in the transformer, for benchmarks.
MID_SIZE = Dimensions(
    connector_hidden_size=256,
    connector_layers=4,
    caption_width=512,
    dim=1024,
    n_layers=6,
    n_refiner_layers=2,
    n_heads=16,
    axes_dims=(16, 24, 24),
    vae_block_out_channels=(32, 64, 128, 128),
    vae_norm_num_groups=16,
    byt5_max_length=128,
)


def write_tiny(path: Path, seed: int = 0, dimensions: Dimensions = TINY) -> None:
    """Write a complete checkpoint; the same seed gives the same tensors.

    Args:
        path: A new or empty folder.
        seed: Of the random weights.
        dimensions: Of the generator; the thinker is always the tiny one.

    Raises:
        ConfigError: ``path`` exists and is not an empty folder.
    """
    with new_folder(path) as folder:
        thinker.write_tiny(folder, seed)
        _write_bridge(folder, dimensions, seed)
        _write_transformer(folder / "transformer", dimensions, seed)
        _write_vae(folder / "vae", dimensions, seed)
        write_json(folder / "scheduler" / "scheduler_config.json", _scheduler())
        _write_glyphs(folder / "byt5", dimensions, seed)


def _write_bridge(folder: Path, dimensions: Dimensions, seed: int) -> None:
    thinker_config = read_json(folder / "config.json")
    scales = read_json(folder / "mlp" / "config.json")["img_gen_scales"]
    connector_config = _connector(dimensions)
    bridge_config = {
        "diffusion_c_input_dim": dimensions.caption_width,
        "img_gen_scales": scales,
        "dit_type": "zimage",
        "use_identity_mlp": True,
        "text_encoder_norm": True,
    }
    connector = ConnectorConfig.from_dict(connector_config, "tiny")
    bridge = BridgeConfig.from_dict(bridge_config, "tiny")
    write_json(folder / "connector" / "config.json", connector_config)
    _write(folder / "connector" / CONNECTOR_FILE, connector_specs(connector), seed)
    write_json(folder / "mlp" / "config.json", bridge_config)
    width = thinker_config["llm_config"]["hidden_size"]
    _write(folder / "mlp" / BRIDGE_FILE, bridge_specs(bridge, connector, width), seed)


def _write_transformer(folder: Path, dimensions: Dimensions, seed: int) -> None:
    config = _transformer(dimensions)
    specs = transformer_specs(TransformerConfig.from_dict(config, "tiny"))
    write_json(folder / "config.json", config)
    _write(folder / TRANSFORMER_FILE, specs, seed)


def _write_vae(folder: Path, dimensions: Dimensions, seed: int) -> None:
    config = _vae(dimensions)
    write_json(folder / "config.json", config)
    _write(
        folder / VAE_FILE,
        autoencoder_kl_specs(config),
        seed,
        {"decoder.conv_out.weight": lambda weight: (_CONTRAST * weight).bfloat16()},
    )


def _write_glyphs(folder: Path, dimensions: Dimensions, seed: int) -> None:
    values, t5 = _byt5(dimensions), _t5()
    config = GlyphConfig.from_dicts(values, "tiny", t5, "tiny")
    write_json(folder / GLYPH_CONFIG, values)
    write_json(folder / "color_idx.json", _COLORS)
    write_json(folder / "font_uni_10-lang_idx.json", _FONTS)
    tokenizer = folder / config.tokenizer_folder
    ByT5Tokenizer().save_pretrained(str(tokenizer))
    write_json(tokenizer / "config.json", t5)
    vocabulary = t5["vocab_size"] + len(_COLORS) + len(_FONTS)
    for name, specs in (
        (GLYPH_ENCODER, glyph_encoder_specs(config, vocabulary)),
        (GLYPH_MAPPER, glyph_mapper_specs(config)),
    ):
        file = folder / f"{name}.pt"
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(_random(specs, seed), file)
    base = folder / "byt5_model" / "base.pt"
    base.write_text("A training checkpoint in the release; nobody opens it.\n")


def _write(
    file: Path,
    specs: Iterable[TensorSpec],
    seed: int,
    adjust: dict[str, Adjust] | None = None,
) -> None:
    write_tensors(file, _random(specs, seed, adjust))


def _random(
    specs: Iterable[TensorSpec], seed: int, adjust: dict[str, Adjust] | None = None
) -> dict[str, Tensor]:
    # The thinker's stream: its query tokens are among the tensors of mlp/.
    streams = {"thinker": 1.0}
    return random_tensors(specs, seed=seed, streams=streams, adjust=adjust)


def _connector(dimensions: Dimensions) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": dimensions.connector_hidden_size,
        "intermediate_size": 3 * dimensions.connector_hidden_size,
        "max_position_embeddings": 512,
        "model_type": "qwen2",
        "num_attention_heads": 4,
        "num_hidden_layers": dimensions.connector_layers,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 72,
    }


def _transformer(dimensions: Dimensions) -> dict[str, Any]:
    return {
        "_class_name": "ZImageTransformer2DModel",
        "_diffusers_version": _DIFFUSERS_VERSION,
        "all_f_patch_size": [1],
        "all_patch_size": [2],
        "axes_dims": list(dimensions.axes_dims),
        "axes_lens": [1536, 512, 512],
        "cap_feat_dim": dimensions.caption_width,
        "dim": dimensions.dim,
        "in_channels": 16,
        "n_heads": dimensions.n_heads,
        "n_kv_heads": dimensions.n_heads,
        "n_layers": dimensions.n_layers,
        "n_refiner_layers": dimensions.n_refiner_layers,
        "norm_eps": 1e-05,
        "qk_norm": True,
        "rope_theta": 256.0,
        "t_scale": 1000.0,
    }


def _vae(dimensions: Dimensions) -> dict[str, Any]:
    widths = dimensions.vae_block_out_channels
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": _DIFFUSERS_VERSION,
        "act_fn": "silu",
        "block_out_channels": list(widths),
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": 16,
        "latents_mean": None,
        "latents_std": None,
        "layers_per_block": 1,
        "mid_block_add_attention": True,
        "norm_num_groups": dimensions.vae_norm_num_groups,
        "out_channels": 3,
        "sample_size": 1024,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "use_post_quant_conv": False,
        "use_quant_conv": False,
    }


def _scheduler() -> dict[str, Any]:
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "_diffusers_version": _DIFFUSERS_VERSION,
        "num_train_timesteps": 1000,
        "shift": 3.0,
        "use_dynamic_shifting": False,
    }


def _byt5(dimensions: Dimensions) -> dict[str, Any]:
    return {
        "byt5_max_length": dimensions.byt5_max_length,
        "byt5_config": {
            # The release spells it so.
            "byt5_ckpt_path": "./google__byt5-smal/",
            "byt5_name": "google/byt5-small",
            "special_token": True,
            "color_special_token": True,
            "font_special_token": True,
            "font_ann_path": "./font_uni_10-lang_idx.json",
            "color_ann_path": "./color_idx.json",
            "multilingual": True,
        },
        "byt5_mapper_type": "T5EncoderBlockByT5Mapper",
        "byt5_mapper_config": {
            "num_layers": 2,
            "sdxl_channels": dimensions.caption_width,
        },
    }


def _t5() -> dict[str, Any]:
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "d_ff": 56,
        "d_kv": 8,
        "d_model": 32,
        "dense_act_fn": "gelu_new",
        "dropout_rate": 0.1,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": True,
        "is_gated_act": True,
        "layer_norm_epsilon": 1e-06,
        "model_type": "t5",
        "num_decoder_layers": 1,
        "num_heads": 4,
        "num_layers": 2,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": 32,
        "tie_word_embeddings": False,
        "vocab_size": 384,
    }
