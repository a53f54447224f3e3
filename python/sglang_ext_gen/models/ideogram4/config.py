# SPDX-License-Identifier: Apache-2.0
"""Architecture of the Ideogram 4 components, read strictly from ``config.json``.

Source: ``transformer/config.json`` and ``text_encoder/config.json`` of the
released checkpoint. A key that is neither used nor listed as ignored with a
reason is an error: it would mean another architecture. Imports nothing heavy,
so that ``doctor`` can check a checkpoint quickly.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import Field, dataclass, fields
from typing import Any, Self, TypeVar

from sglang_ext_gen.errors import ConfigError

# Layers whose residual stream feeds the transformer. Constants of the release:
# they do not scale with the depth of the text encoder.
TAP_LAYERS = (0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 35)


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
        """Read a released ``config.json``.

        Args:
            values: The parsed file.
            where: Name of the file for error messages.

        Raises:
            ConfigError: A key is unknown or missing.
        """
        return _from_dict(cls, values, where, ignored=_TRANSFORMER_IGNORED)


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
        """Read a released ``text_encoder/config.json`` (transformers 4 or 5 style).

        Raises:
            ConfigError: A key is unknown or missing, or the tower is too shallow
                for the taps.
        """
        _refuse_unknown_keys(values, _ENCODER_TOP_LEVEL, where)
        text = dict(_require_object(values, "text_config", where))
        rope_key = "rope_parameters" if "rope_parameters" in text else "rope_scaling"
        rope = _require_object({rope_key: {}, **text}, rope_key, where)
        text = {key: value for key, value in text.items() if key != rope_key}
        _refuse_unknown_keys(rope, _ROPE_KEYS, f"{where}: rope_parameters")
        _require_value(rope, "rope_type", "default", where)
        if "rope_theta" in rope:
            text["rope_theta"] = rope["rope_theta"]
        _require_value(text, "hidden_act", "silu", where)
        _require_value(text, "attention_bias", False, where)
        config = _from_dict(
            cls, text, f"{where}: text_config", ignored=_TEXT_CONFIG_IGNORED
        )
        if config.num_hidden_layers <= max(TAP_LAYERS):
            raise ConfigError(
                f"{where}: num_hidden_layers is {config.num_hidden_layers}, "
                f"at least {max(TAP_LAYERS) + 1} are needed for the feature taps"
            )
        return config


_TRANSFORMER_IGNORED = {
    "_class_name": "checked by the layout",
    "_diffusers_version": "says who wrote the file",
    "_name_or_path": "says where the file came from",
}
_ENCODER_TOP_LEVEL = {
    "architectures": "checked by the layout",
    "dtype": "precision is chosen at run time",
    "torch_dtype": "older spelling of dtype",
    "ideogram_fp8_weight_only": "FP8 is recognised by the tensors themselves",
    "image_token_id": "text only",
    "video_token_id": "text only",
    "vision_start_token_id": "text only",
    "vision_end_token_id": "text only",
    "vision_config": "the vision tower is not used",
    "text_config": "read below",
    "model_type": "checked by the layout",
    "tie_word_embeddings": "there is no language-model head",
    "transformers_version": "says who wrote the file",
    "_name_or_path": "says where the file came from",
}
_TEXT_CONFIG_IGNORED = {
    "attention_bias": "required to be false",
    "attention_dropout": "inference",
    "bos_token_id": "tokens come from the tokenizer",
    "eos_token_id": "nothing is generated",
    "pad_token_id": "padding is masked",
    "dtype": "precision is chosen at run time",
    "torch_dtype": "older spelling of dtype",
    "hidden_act": "required to be silu",
    "initializer_range": "training",
    "max_position_embeddings": "the request limit is far below",
    "model_type": "checked by the layout",
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


C = TypeVar("C", Ideogram4TransformerConfig, Ideogram4TextEncoderConfig)


def _from_dict(
    cls: type[C], values: Mapping[str, Any], where: str, ignored: Mapping[str, str]
) -> C:
    names = [field.name for field in fields(cls)]
    _refuse_unknown_keys(values, {*names, *ignored}, where)
    return cls(
        **{
            field.name: _checked(_require(values, field.name, where), field, where)
            for field in fields(cls)
        }
    )


def _checked(value: Any, field: Field[Any], where: str) -> Any:
    """``value`` as the declared type of its field."""
    if isinstance(value, list):
        value = tuple(value)
    is_right, expected = _KINDS[field.type]
    if not is_right(value):
        raise ConfigError(f"{where}: {field.name} is {value!r}, expected {expected}")
    return value


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


# Declared type -> what a JSON value must be. (bool is an int to isinstance.)
_KINDS: dict[Any, tuple[Callable[[Any], bool], str]] = {
    int: (_is_count, "a positive integer"),
    float: (
        lambda value: type(value) in (int, float) and 0 < value < math.inf,
        "a positive number",
    ),
    tuple[int, int, int]: (
        lambda value: (
            type(value) is tuple and len(value) == 3 and all(map(_is_count, value))
        ),
        "a list of three positive integers",
    ),
}


def _refuse_unknown_keys(
    values: Mapping[str, Any], known: Collection[str], where: str
) -> None:
    for key in values:
        if key not in known:
            raise ConfigError(
                f"{where}: unknown key {key!r}; this looks like another release"
            )


def _require(values: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in values:
        raise ConfigError(f"{where}: key {key!r} is missing")
    return values[key]


def _require_object(
    values: Mapping[str, Any], key: str, where: str
) -> Mapping[str, Any]:
    value = _require(values, key, where)
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {key} is {value!r}, expected an object")
    return value


def _require_value(values: Mapping[str, Any], key: str, want: Any, where: str) -> None:
    if values.get(key, want) != want:
        raise ConfigError(f"{where}: {key} is {values[key]!r}, expected {want!r}")
