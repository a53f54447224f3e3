# SPDX-License-Identifier: Apache-2.0
"""Write a small Lance checkpoint in the layout of the release.

Both variants, with a vision tower of its own in the video one. All dimensions differ
from the release; the rotary sections are unequal and key/value heads are fewer than
heads. What the code fixes stays: 48 latent channels, the VAE's stages.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sglang_ext_gen.checkpoint.layout import TensorSpec
from sglang_ext_gen.checkpoint.tiny import new_folder, write_component, write_json
from sglang_ext_gen.checkpoint.tiny_tokenizer import write_qwen_tokenizer
from sglang_ext_gen.models.lance.checkpoint import TRANSFORMERS, VAE, VARIANTS, VISION
from sglang_ext_gen.models.lance.config import (
    MAX_LATENT_SIDE,
    LanceTransformerConfig,
    LanceVisionConfig,
)
from sglang_ext_gen.models.lance.tasks import Variant
from sglang_ext_gen.models.lance.tensors import (
    BUNDLED_VISION,
    POSITION_TABLE,
    VaeWidths,
    transformer_specs,
    vae_specs,
    vision_specs,
)

_HIDDEN = 64
_SPARE_TOKENS = 14  # the released vocabulary, too, has rows that no token uses
_VAE_WIDTHS = VaeWidths(encoder=4, decoder=4)


def write_tiny(
    path: Path, seed: int = 0, decoder: Mapping[str, Any] | None = None
) -> None:
    """Write a complete checkpoint; the same seed gives the same tensors.

    Args:
        path: A new or empty folder.
        seed: Of the random weights.
        decoder: Keys of ``llm_config.json`` that shall differ, for benchmarks.

    Raises:
        ConfigError: ``path`` exists and is not an empty folder.
    """
    with new_folder(path) as folder:
        write_json(folder / "config.json", {"checkpoint_directories": list(VARIANTS)})
        for variant in VARIANTS:
            _write_variant(folder, variant, seed, decoder or {})
        config = vision_config((decoder or {}).get("hidden_size", _HIDDEN))
        write_component(folder, VISION, config, seed=seed, streams={"vision": 1.0})
        specs = list(vae_specs(_VAE_WIDTHS))
        # Scales of the VAE's norms have more than one dim, like a filter.
        gammas = {
            spec.name: lambda noise: 1 + 0.1 * noise
            for spec in specs
            if spec.name.endswith(".gamma")
        }
        write_component(
            folder, VAE, None, specs, seed=seed, streams={"vae": 1.0}, adjust=gammas
        )


def _write_variant(
    root: Path, variant: Variant, seed: int, decoder: Mapping[str, Any]
) -> None:
    added = write_qwen_tokenizer(root / variant)
    config = {**transformer_config(added), **decoder}
    hidden = config["hidden_size"]
    specs = list(transformer_specs(LanceTransformerConfig.from_dict(config, "tiny")))
    # Rows are cut; they are not read, and their number differs in the release too.
    specs.append(TensorSpec(POSITION_TABLE, (MAX_LATENT_SIDE, hidden)))
    if variant == "Lance_3B_Video":
        vision = LanceVisionConfig.from_dict(vision_config(hidden), "tiny")
        specs += vision_specs(vision, BUNDLED_VISION)
    part = TRANSFORMERS[variant]
    write_component(root, part, config, specs, seed=seed, streams={variant: 1.0})


def transformer_config(added: dict[str, int]) -> dict[str, Any]:
    """``llm_config.json``; ``added`` are the tokenizer's added tokens."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "bos_token_id": added["<|endoftext|>"],
        "eos_token_id": added["<|im_end|>"],
        "hidden_act": "silu",
        "hidden_size": _HIDDEN,
        "intermediate_size": 96,
        "max_position_embeddings": 128000,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": max(added.values()) + 1 + _SPARE_TOKENS,
    }


def vision_config(out_hidden_size: int = _HIDDEN) -> dict[str, Any]:
    """``Qwen2.5-VL-ViT/config.json``."""
    return {
        "depth": 3,
        "fullatt_block_indexes": [1],
        "hidden_act": "silu",
        "hidden_size": 32,
        "in_chans": 3,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": out_hidden_size,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
    }
