# SPDX-License-Identifier: Apache-2.0
"""Write a small Qwen-Image or Qwen-Image-Edit checkpoint in the released layout.

All dimensions differ from the release. Four attention heads, so that tensor and
sequence parallelism over two ranks can be tried. The tokenizer is a small one: the
template in front of a prompt is longer than the released 34 or 64 tokens, so the tail
of the template reaches the transformer. The weights are random anyway.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from sglang_ext_gen.checkpoint.tiny import new_folder, write_component, write_json
from sglang_ext_gen.checkpoint.tiny_tokenizer import write_qwen_tokenizer
from sglang_ext_gen.models.qwen_image.checkpoint import (
    COMPONENTS,
    EDIT_PLUS_CLASS,
    PIPELINE_CLASS,
)
from sglang_ext_gen.models.qwen_image.config import TRANSFORMER_CLASS, VAEConfig
from sglang_ext_gen.models.qwen_image.tensors import vae_specs

_DIFFUSERS_VERSION = "0.37.0"
_SPARE_TOKENS = 14  # the released embedding, too, has rows that no token uses
# Statistics of the released VAE's latents, rounded; the numbers of a small one.
_LATENTS_MEAN = [-0.76, -0.71, -0.91, 0.11, -0.17, 0.97, -0.15, 1.55]
_LATENTS_MEAN += [0.41, -0.07, 0.55, -0.36, -0.19, -0.95, 0.25, -0.29]
_LATENTS_STD = [2.82, 1.45, 2.33, 2.66, 1.22, 1.77, 2.61, 2.07]
_LATENTS_STD += [3.27, 2.15, 2.87, 1.56, 1.64, 1.13, 2.83, 1.92]

TRANSFORMER: dict[str, Any] = {
    "_class_name": TRANSFORMER_CLASS,
    "_diffusers_version": _DIFFUSERS_VERSION,
    "attention_head_dim": 32,
    "axes_dims_rope": [8, 12, 12],
    "guidance_embeds": False,
    "in_channels": 64,
    "joint_attention_dim": 48,
    "num_attention_heads": 4,
    "num_layers": 3,
    "out_channels": 16,
    "patch_size": 2,
    "zero_cond_t": False,
}
# About 38 million parameters in the transformer, for benchmarks.
MID_SIZE = {**TRANSFORMER, "num_attention_heads": 16, "num_layers": 4}


def write_tiny(
    path: Path, seed: int = 0, transformer: dict[str, Any] = TRANSFORMER
) -> None:
    """Fill a new folder for text to image; the same seed gives the same bytes."""
    with new_folder(path) as folder:
        _write_common(folder, PIPELINE_CLASS, seed, transformer)


def write_tiny_edit(
    path: Path, seed: int = 0, transformer: dict[str, Any] = TRANSFORMER
) -> None:
    """As ``write_tiny``, for edits (the layout of Qwen-Image-Edit-2509)."""
    with new_folder(path) as folder:
        _write_common(folder, EDIT_PLUS_CLASS, seed, transformer)
        write_qwen_tokenizer(folder / "processor")
        write_json(folder / "processor" / "processor_config.json", _processor())


def _write_common(
    folder: Path, pipeline_class: str, seed: int, transformer: dict[str, Any]
) -> None:
    write_json(folder / "model_index.json", _model_index(pipeline_class))
    write_json(folder / "scheduler" / "scheduler_config.json", _scheduler())
    added = write_qwen_tokenizer(folder / "tokenizer")
    values = {
        "transformer": transformer,
        "vae": _vae(),
        "text_encoder": _text_encoder(added, transformer["joint_attention_dim"]),
    }
    specs = vae_specs(VAEConfig.from_dict(values["vae"], "vae/config.json"))
    gains = [spec.name for spec in specs if spec.name.endswith(".gamma")]
    for component in COMPONENTS:
        write_component(
            folder,
            component,
            values[component.name],
            seed=seed,
            streams={component.name: 1.0},
            adjust=dict.fromkeys(gains, _near_one),
        )


def _near_one(noise: Tensor) -> Tensor:
    return (1 + 0.1 * noise).bfloat16()


def _model_index(pipeline_class: str) -> dict[str, Any]:
    index: dict[str, Any] = {
        "_class_name": pipeline_class,
        "_diffusers_version": _DIFFUSERS_VERSION,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", TRANSFORMER_CLASS],
        "vae": ["diffusers", "AutoencoderKLQwenImage"],
    }
    if pipeline_class == EDIT_PLUS_CLASS:
        index["processor"] = ["transformers", "Qwen2VLProcessor"]
    return index


def _scheduler() -> dict[str, Any]:
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "_diffusers_version": _DIFFUSERS_VERSION,
        "base_image_seq_len": 256,
        "base_shift": 0.5,
        "max_image_seq_len": 8192,
        "max_shift": 0.9,
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "shift_terminal": 0.02,
        "time_shift_type": "exponential",
        "use_dynamic_shifting": True,
    }


def _text_encoder(added: dict[str, int], hidden_size: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "dtype": "bfloat16",
        "image_token_id": added["<|image_pad|>"],
        "model_type": "qwen2_5_vl",
        "text_config": {
            "attention_dropout": 0.0,
            "eos_token_id": added["<|im_end|>"],
            "hidden_act": "silu",
            "hidden_size": hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": 112,
            "max_position_embeddings": 8192,
            "max_window_layers": 80,
            "model_type": "qwen2_5_vl_text",
            "num_attention_heads": 3,
            "num_hidden_layers": 2,
            "num_key_value_heads": 1,
            "rms_norm_eps": 1e-06,
            "rope_parameters": {
                "mrope_section": [2, 3, 3],
                "rope_theta": 1000000.0,
                "rope_type": "default",
                "type": "default",
            },
            "sliding_window": None,
            "tie_word_embeddings": False,
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": max(added.values()) + 1 + _SPARE_TOKENS,
        },
        "tie_word_embeddings": False,
        "video_token_id": added["<|video_pad|>"],
        "vision_config": {
            "depth": 2,
            "fullatt_block_indexes": [1],
            "hidden_act": "silu",
            "hidden_size": 32,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": 56,
            "model_type": "qwen2_5_vl_vision",
            "num_heads": 2,
            "out_hidden_size": hidden_size,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
        },
        "vision_end_token_id": added["<|vision_end|>"],
        "vision_start_token_id": added["<|vision_start|>"],
    }


def _vae() -> dict[str, Any]:
    return {
        "_class_name": "AutoencoderKLQwenImage",
        "_diffusers_version": _DIFFUSERS_VERSION,
        "attn_scales": [],
        "base_dim": 8,
        "dim_mult": [1, 2, 4, 4],
        "dropout": 0.0,
        "input_channels": 3,
        "latents_mean": _LATENTS_MEAN,
        "latents_std": _LATENTS_STD,
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
        "z_dim": 16,
    }


def _processor() -> dict[str, Any]:
    common = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "merge_size": 2,
        "patch_size": 14,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "temporal_patch_size": 2,
    }
    return {
        "image_processor": {
            **common,
            "image_processor_type": "Qwen2VLImageProcessor",
            "size": {"longest_edge": 12845056, "shortest_edge": 3136},
        },
        # No edit takes a video, but the processor is not made without it.
        "video_processor": {
            **common,
            "do_sample_frames": False,
            "max_frames": 768,
            "min_frames": 4,
            "size": {"longest_edge": 602112, "shortest_edge": 100352},
            "video_processor_type": "Qwen2VLVideoProcessor",
        },
        "processor_class": "Qwen2_5_VLProcessor",
    }
