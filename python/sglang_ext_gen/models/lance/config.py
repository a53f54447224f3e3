# SPDX-License-Identifier: Apache-2.0
"""Architecture of Lance, read strictly from its two config files.

Source: ``Lance_3B*/llm_config.json`` (a Qwen2.5-VL config) and
``Qwen2.5-VL-ViT/config.json`` of the release. Neither knows of latents, of query
and key norms or of the second set of weights: those are constants of the official
code, given here. Imports nothing heavy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from sglang_ext_gen.checkpoint.released_config import (
    Index,
    read_fields,
    refuse_unknown_keys,
    require,
    require_object,
    require_values,
    with_rope_scaling,
)
from sglang_ext_gen.errors import ConfigError

# Constants of the official code (its dataclass default patch of 1, 2, 2 is not used).
LATENT_CHANNELS = 48
PIXELS_PER_LATENT = 16
FRAMES_PER_LATENT = 4
# Rows of the latent position table: frames x height x width.
MAX_LATENT_FRAMES = 31
MAX_LATENT_SIDE = 64
TIME_EMBEDDING_DIM = 256


@dataclass(frozen=True)
class LanceTransformerConfig:
    """The decoder; both sets of weights have these dimensions."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> Self:
        """Read a released ``llm_config.json``.

        Raises:
            ConfigError: A key is unknown or missing, or the sections of the rotary
                embedding do not fit the head size.
        """
        flat = with_rope_scaling(values, where)
        rope = require_object(flat, "rope_scaling", where)
        refuse_unknown_keys(rope, _ROPE_KEYS, f"{where}: rope_scaling")
        del flat["rope_scaling"]
        flat["mrope_section"] = require(rope, "mrope_section", where)
        require_values(flat, {"hidden_act": "silu", "use_sliding_window": False}, where)
        config = read_fields(cls, flat, where, ignored=_TRANSFORMER_IGNORED)
        if 2 * sum(config.mrope_section) != config.head_dim:
            raise ConfigError(
                f"{where}: mrope_section {config.mrope_section} does not add up to "
                f"half of the head size {config.head_dim}"
            )
        return config


@dataclass(frozen=True)
class LanceVisionConfig:
    """The Qwen2.5-VL vision tower."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_chans: int
    out_hidden_size: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    window_size: int
    fullatt_block_indexes: tuple[Index, ...]

    @property
    def patch_dim(self) -> int:
        """Values of one flattened patch."""
        return self.in_chans * self.temporal_patch_size * self.patch_size**2

    @property
    def pixels_per_token(self) -> int:
        """Side of the square that one merged token covers."""
        return self.patch_size * self.spatial_merge_size

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> Self:
        """Read a released ``Qwen2.5-VL-ViT/config.json``.

        Raises:
            ConfigError: A key is unknown or missing.
        """
        flat = dict(values)
        # Released files carry either spelling, or both.
        if "in_channels" in flat:
            flat.setdefault("in_chans", flat["in_channels"])
            del flat["in_channels"]
        patch = require(flat, "patch_size", where)
        supported = {"hidden_act": "silu", "tokens_per_second": 2}
        require_values(flat, {**supported, "spatial_patch_size": patch}, where)
        return read_fields(cls, flat, where, ignored=_VISION_IGNORED)


_TRANSFORMER_IGNORED = {
    "architectures": "the stock name of another model",
    "attention_dropout": "inference",
    "bos_token_id": "tokens come from the tokenizer",
    "eos_token_id": "tokens come from the tokenizer",
    "image_token_id": "tokens come from the tokenizer",
    "video_token_id": "tokens come from the tokenizer",
    "vision_start_token_id": "tokens come from the tokenizer",
    "vision_end_token_id": "tokens come from the tokenizer",
    "vision_token_id": "tokens come from the tokenizer",
    "hidden_act": "required to be silu",
    "initializer_range": "training",
    "max_position_embeddings": "the request limits are far below",
    "max_window_layers": "there is no sliding window",
    "model_type": "the stock name of another model",
    "sliding_window": "there is no sliding window",
    "tie_word_embeddings": "the release unties them whatever this says",
    "torch_dtype": "precision is chosen at run time",
    "dtype": "precision is chosen at run time",
    "transformers_version": "says who wrote the file",
    "use_cache": "training",
    "use_sliding_window": "required to be false",
    "vision_config": "the vision tower has its own file",
}
_VISION_IGNORED = {
    "_attn_implementation": "chosen here",
    "_attn_implementation_autoset": "chosen here",
    "architectures": "the stock name of another model",
    "dtype": "precision is chosen at run time",
    "hidden_act": "required to be silu",
    "initializer_range": "training",
    "model_type": "the stock name of another model",
    "spatial_patch_size": "required to be patch_size",
    "tokens_per_second": "required to be 2",
    "torch_dtype": "precision is chosen at run time",
    "transformers_version": "says who wrote the file",
}
_ROPE_KEYS = ("mrope_section", "rope_type", "type")
