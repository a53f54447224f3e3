# SPDX-License-Identifier: Apache-2.0
"""Write a small Ming checkpoint in the official layout: thinker and generator.

All dimensions differ from the release and, where they may, from each other. What the
release fixes stays: 16 latent channels of 8 pixels, patches of 2 x 2, ByT5's bytes, the
time embedding. Two attention heads or more everywhere, so that tensor and sequence
parallelism over two ranks can be tried.

As in the release ``byt5/`` holds pickles, and ``base.pt`` beside them, which must never
be opened: here it is no pickle.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import ByT5Tokenizer

from sglang_ext_gen.checkpoint.tiny import new_folder, write_component, write_json
from sglang_ext_gen.models.ming_omni.checkpoint import (
    BRIDGE,
    BYT5,
    CONNECTOR,
    GLYPH_MAPPER,
    SCHEDULER,
    TRANSFORMER,
    VAE,
)
from sglang_ext_gen.models.ming_omni.config import GLYPH_FILE
from sglang_ext_gen.models.ming_omni.tensors import bridge_tensors
from sglang_ext_gen.models.ming_omni.thinker import tiny as thinker
from sglang_ext_gen.models.ming_omni.thinker.checkpoint import THINKER

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
    # The thinker's stream: its query tokens are among the tensors of mlp/.
    drawn: dict[str, Any] = {"seed": seed, "streams": {"thinker": 1.0}}
    with new_folder(path) as folder:
        thinker.write_tiny(folder, seed)
        write_component(folder, CONNECTOR, _connector(dimensions), **drawn)
        _write_bridge(folder, dimensions, drawn)
        write_component(folder, TRANSFORMER, transformer_config(dimensions), **drawn)
        write_component(
            folder,
            VAE,
            _vae(dimensions),
            adjust={
                "decoder.conv_out.weight": lambda weight: (
                    _CONTRAST * weight
                ).bfloat16()
            },
            **drawn,
        )
        write_json(SCHEDULER.at(folder).folder / SCHEDULER.config_file, _scheduler())
        _write_glyphs(folder / "byt5", dimensions, drawn)


def _write_bridge(folder: Path, dimensions: Dimensions, drawn: dict[str, Any]) -> None:
    bridge = BRIDGE.at(folder)
    values = {
        "diffusion_c_input_dim": dimensions.caption_width,
        "img_gen_scales": list(thinker.SCALES),
        "dit_type": "zimage",
        "use_identity_mlp": True,
        "text_encoder_norm": True,
    }
    write_json(bridge.folder / BRIDGE.config_file, values)
    specs = bridge_tensors(
        bridge.config,
        dimensions.connector_hidden_size,
        THINKER.at(folder).config.llm_config.hidden_size,
    )
    write_component(folder, BRIDGE, None, specs, **drawn)


def _write_glyphs(folder: Path, dimensions: Dimensions, drawn: dict[str, Any]) -> None:
    values = _byt5(dimensions)
    write_json(folder / GLYPH_FILE, values)
    write_json(folder / "color_idx.json", _COLORS)
    write_json(folder / "font_uni_10-lang_idx.json", _FONTS)
    tokenizer = folder / values["byt5_config"]["byt5_ckpt_path"]
    ByT5Tokenizer().save_pretrained(str(tokenizer))
    write_json(tokenizer / "config.json", _t5())
    for row in (BYT5, GLYPH_MAPPER):
        write_component(folder, row, None, **drawn)
    base = folder / "byt5_model" / "base.pt"
    base.write_text("A training checkpoint in the release; nobody opens it.\n")


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


def transformer_config(dimensions: Dimensions) -> dict[str, Any]:
    """``transformer/config.json``."""
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
