# SPDX-License-Identifier: Apache-2.0
"""Architecture of the Ideogram 4 components, read strictly from ``config.json``.

Source: the config files of the released checkpoint. A key that is neither used nor
listed as ignored with a reason is an error: it would mean another architecture.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from sglang_ext_gen.checkpoint.released_config import (
    read_fields,
    refuse_unknown_keys,
    require_class,
    require_object,
    require_values,
)
from sglang_ext_gen.errors import ConfigError
from sglang_ext_gen.models.ideogram4.latent_statistics import LATENT_SCALE

TRANSFORMER_CLASS = "Ideogram4Transformer2DModel"
VAE_CLASS = "AutoencoderKLFlux2"
# The second one where the file was cut out of the whole language model.
TEXT_ENCODER_CLASSES = ("Qwen3VLModel", "Qwen3VLForConditionalGeneration")

# Layers whose residual stream feeds the transformer. Constants of the release:
# they do not scale with the depth of the text encoder.
TAP_LAYERS = (0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 35)

# What the release fixes of its VAE: a token is a patch of 2 x 2 latents, a latent 8 x 8
# pixels (one halving fewer than there are blocks), and the latent statistics are known
# for this many channels only.
PATCH_SIZE = (2, 2)
LATENT_CHANNELS = len(LATENT_SCALE) // math.prod(PATCH_SIZE)
_VAE_BLOCKS = 4


@dataclass(frozen=True)
class Ideogram4TransformerConfig:
    """One of the two transformers (conditional and unconditional are alike)."""

    in_channels: int
    num_layers: int
    num_attention_heads: int
    attention_head_dim: int
    intermediate_size: int
    adaln_dim: int
    llm_features_dim: int
    rope_theta: float
    mrope_section: tuple[int, int, int]
    norm_eps: float

    @property
    def hidden_size(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> Self:
        """Read ``transformer/config.json``.

        Raises:
            ConfigError: A key is unknown, missing or of another model.
        """
        config = read_fields(cls, values, where, ignored=_MODEL_IGNORED)
        require_class(values, TRANSFORMER_CLASS, where)
        return config


@dataclass(frozen=True)
class Ideogram4TextEncoderConfig:
    """The language tower of Qwen3-VL; the vision tower is never used."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    rope_theta: float

    @property
    def features_dim(self) -> int:
        """Width of the features: the taps, channel-major."""
        return len(TAP_LAYERS) * self.hidden_size

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> Self:
        """Read ``text_encoder/config.json`` (transformers 4 or 5 style).

        Raises:
            ConfigError: A key is unknown, missing or of another model, or the tower
                is too shallow for the taps.
        """
        refuse_unknown_keys(values, _ENCODER_TOP_LEVEL, where)
        require_values(values, {"model_type": "qwen3_vl"}, where)
        classes = [[name] for name in TEXT_ENCODER_CLASSES]
        if values.get("architectures", classes[0]) not in classes:
            raise ConfigError(
                f"{where}: architectures is {values['architectures']!r}, expected "
                f"{' or '.join(map(str, classes))}"
            )
        text = dict(require_object(values, "text_config", where))
        where = f"{where}: text_config"
        rope_key = "rope_parameters" if "rope_parameters" in text else "rope_scaling"
        rope = require_object({rope_key: {}, **text}, rope_key, where)
        text.pop(rope_key, None)
        refuse_unknown_keys(rope, _ROPE_KEYS, f"{where}: {rope_key}")
        require_values(rope, {"rope_type": "default"}, where)
        if "rope_theta" in rope:
            text["rope_theta"] = rope["rope_theta"]
        require_values(text, _TEXT_FIXED, where)
        config = read_fields(cls, text, where, {*_TEXT_FIXED, *_TEXT_IGNORED})
        if config.num_hidden_layers <= max(TAP_LAYERS):
            raise ConfigError(
                f"{where}: num_hidden_layers is {config.num_hidden_layers}, "
                f"at least {max(TAP_LAYERS) + 1} are needed for the feature taps"
            )
        return config


@dataclass(frozen=True)
class Ideogram4VAEConfig:
    """The picture autoencoder, which stock SGLang builds; for the check only."""

    in_channels: int
    out_channels: int
    latent_channels: int
    patch_size: tuple[int, ...]
    block_out_channels: tuple[int, ...]
    decoder_block_out_channels: tuple[int, ...]
    layers_per_block: int
    mid_block_add_attention: bool
    use_quant_conv: bool
    use_post_quant_conv: bool

    @property
    def token_channels(self) -> int:
        """Channels of a token: a patch of latents."""
        return self.latent_channels * math.prod(self.patch_size)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> Self:
        """Read ``vae/config.json``.

        Raises:
            ConfigError: A key is unknown, missing or of another model.
        """
        widths = values.get("decoder_block_out_channels")
        filled = {
            **values,
            "decoder_block_out_channels": widths or values.get("block_out_channels"),
        }
        config = read_fields(cls, filled, where, {*_VAE_FIXED, *_VAE_IGNORED})
        require_class(values, VAE_CLASS, where)
        require_values(values, _VAE_FIXED, where)
        if len(config.block_out_channels) != _VAE_BLOCKS:
            raise ConfigError(
                f"{where}: block_out_channels has {len(config.block_out_channels)} "
                f"widths, expected {_VAE_BLOCKS}"
            )
        return config


_MODEL_IGNORED = {
    "_class_name": "required to be the model's",
    "_diffusers_version": "says who wrote the file",
    "_name_or_path": "says where the file came from",
}
_ENCODER_TOP_LEVEL = {
    "architectures": "required to be Qwen3-VL's",
    "dtype": "precision is chosen at run time",
    "torch_dtype": "older spelling of dtype",
    "ideogram_fp8_weight_only": "compared with the tensors by the check",
    "image_token_id": "text only",
    "video_token_id": "text only",
    "vision_start_token_id": "text only",
    "vision_end_token_id": "text only",
    "vision_config": "the vision tower is not used",
    "text_config": "read below",
    "model_type": "required to be Qwen3-VL's",
    "tie_word_embeddings": "there is no language-model head",
    "transformers_version": "says who wrote the file",
    "_name_or_path": "says where the file came from",
}
_TEXT_FIXED = {
    "attention_bias": False,
    "hidden_act": "silu",
    "model_type": "qwen3_vl_text",
}
_TEXT_IGNORED = {
    "attention_dropout": "inference",
    "bos_token_id": "tokens come from the tokenizer",
    "eos_token_id": "nothing is generated",
    "pad_token_id": "padding is masked",
    "dtype": "precision is chosen at run time",
    "torch_dtype": "older spelling of dtype",
    "initializer_range": "training",
    "max_position_embeddings": "the request limit is far below",
    "tie_word_embeddings": "there is no language-model head",
    "use_cache": "one forward pass",
}
_ROPE_KEYS = {
    "mrope_interleaved": "text positions are equal on all axes",
    "mrope_section": "text positions are equal on all axes",
    "rope_theta": "read",
    "rope_type": "only 'default' exists for this model",
    "type": "older spelling of rope_type",
}
_VAE_FIXED = {
    "act_fn": "silu",
    "latent_channels": LATENT_CHANNELS,
    "patch_size": list(PATCH_SIZE),
    "down_block_types": ["DownEncoderBlock2D"] * _VAE_BLOCKS,
    "up_block_types": ["UpDecoderBlock2D"] * _VAE_BLOCKS,
}
_VAE_IGNORED = {
    **_MODEL_IGNORED,
    "batch_norm_eps": "the VAE's own statistics are not used",
    "batch_norm_momentum": "training",
    "force_upcast": "precision is chosen at run time",
    "norm_num_groups": "read by stock's class",
    "sample_size": "training",
}
