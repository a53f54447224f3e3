# SPDX-License-Identifier: Apache-2.0
"""What decides which tensors a released component holds.

Stock SGLang reads the whole files; keys that are not fields here are not looked at.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from sglang_ext_gen.checkpoint.released_config import (
    read_fields,
    require,
    require_object,
    require_values,
)
from sglang_ext_gen.errors import ConfigError

TRANSFORMER_CLASS = "QwenImageTransformer2DModel"


@dataclass(frozen=True)
class TransformerConfig:
    """``transformer/config.json``."""

    attention_head_dim: int
    in_channels: int
    joint_attention_dim: int
    num_attention_heads: int
    num_layers: int
    out_channels: int
    patch_size: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> Self:
        """Read the file.

        Raises:
            ConfigError: A key is missing or wrong, or it is another model's.
        """
        require(values, "_class_name", where)
        require_values(values, {"_class_name": TRANSFORMER_CLASS}, where)
        # Null where a patch has as many channels going out as coming in.
        out_channels = values.get("out_channels") or values.get("in_channels")
        values = {**values, "out_channels": out_channels}
        return read_fields(cls, values, where, ignored=values)


@dataclass(frozen=True)
class TextConfig:
    """The language tower of ``text_encoder/config.json``."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_hidden_layers: int
    num_key_value_heads: int
    vocab_size: int


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower of ``text_encoder/config.json``."""

    depth: int
    hidden_size: int
    in_channels: int
    intermediate_size: int
    out_hidden_size: int
    patch_size: int
    spatial_merge_size: int
    temporal_patch_size: int


@dataclass(frozen=True)
class TextEncoderConfig:
    """``text_encoder/config.json``."""

    text: TextConfig
    vision: VisionConfig
    is_quantized: bool

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> Self:
        """Read the file; older ones have the language tower's keys at the top.

        Raises:
            ConfigError: A key is missing or of the wrong kind.
        """
        values = {"text_config": values, **values}
        text = require_object(values, "text_config", where)
        # Older files call it in_chans.
        vision = {"in_channels": 3, **require_object(values, "vision_config", where)}
        return cls(
            read_fields(TextConfig, text, where, ignored=text),
            read_fields(VisionConfig, vision, f"{where}: vision_config", vision),
            "quantization_config" in values,
        )


@dataclass(frozen=True)
class VAEConfig:
    """``vae/config.json``."""

    base_dim: int
    dim_mult: tuple[int, ...]
    input_channels: int
    num_res_blocks: int
    temperal_downsample: tuple[bool, ...]
    z_dim: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> Self:
        """Read the file; older ones do not say that pictures have three channels.

        Raises:
            ConfigError: A key is missing or of the wrong kind, or two disagree.
        """
        values = {"input_channels": 3, **values}
        config = read_fields(cls, values, where, ignored=values)
        if len(config.temperal_downsample) != len(config.dim_mult) - 1:
            raise ConfigError(
                f"{where}: temperal_downsample is {config.temperal_downsample}, "
                f"expected one for each step between {config.dim_mult} (dim_mult)"
            )
        return config
