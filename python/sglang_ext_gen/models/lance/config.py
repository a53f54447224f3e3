# SPDX-License-Identifier: Apache-2.0
"""Architecture of Lance, read strictly from its two config files.

Source: ``Lance_3B*/llm_config.json`` (a Qwen2.5-VL config) and
``Qwen2.5-VL-ViT/config.json`` of the release. Neither knows of latents, of query
and key norms or of the second set of weights: those are constants of the official
code, given here. Imports nothing heavy.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self, TypeVar

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
        flat = dict(values)
        rope = dict(_require(flat, "rope_scaling", where))
        del flat["rope_scaling"]
        _refuse_unknown_keys(rope, _ROPE_KEYS, f"{where}: rope_scaling")
        flat["mrope_section"] = tuple(_require(rope, "mrope_section", where))
        _require_value(flat, "hidden_act", "silu", where)
        _require_value(flat, "use_sliding_window", False, where)
        config = _from_dict(cls, flat, where, ignored=_TRANSFORMER_IGNORED)
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
    fullatt_block_indexes: tuple[int, ...]

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
        _require_value(flat, "hidden_act", "silu", where)
        _require_value(flat, "tokens_per_second", 2, where)
        _require_value(
            flat, "spatial_patch_size", _require(flat, "patch_size", where), where
        )
        return _from_dict(cls, flat, where, ignored=_VISION_IGNORED)


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

C = TypeVar("C", LanceTransformerConfig, LanceVisionConfig)


def _from_dict(
    cls: type[C], values: Mapping[str, Any], where: str, ignored: Mapping[str, str]
) -> C:
    names = [field.name for field in fields(cls)]
    _refuse_unknown_keys(values, {*names, *ignored}, where)
    kwargs: dict[str, Any] = {}
    for name in names:
        value = _require(values, name, where)
        kwargs[name] = tuple(value) if isinstance(value, list) else value
    return cls(**kwargs)


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


def _require_value(values: Mapping[str, Any], key: str, want: Any, where: str) -> None:
    if values.get(key, want) != want:
        raise ConfigError(f"{where}: {key} is {values[key]!r}, expected {want!r}")
