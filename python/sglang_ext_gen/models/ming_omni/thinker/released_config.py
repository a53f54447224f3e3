# SPDX-License-Identifier: Apache-2.0
"""The thinker's released ``config.json`` as data: all that it may say.

A key that nobody here knows could change the model, and so could a known key with
another value than the one that is built in: both are refused by name. Source: the
official config classes and the released file; the keys that every Transformers config
may hold are listed once.

Nothing here imports torch or SGLang, which has a class of its own: ``config.py``.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from sglang_ext_gen.checkpoint.released_config import (
    Index,
    StrictConfig,
    require,
    require_values,
    with_rope_scaling,
)
from sglang_ext_gen.errors import ConfigError
from sglang_ext_gen.models.ming_omni.config import default_head_dim

Values = Mapping[str, Any]

# Rotary frequencies of a head, of which the official code gives 8 to time, 12 to rows
# and 12 to columns.
_FREQUENCIES = 32

# Keys of any Transformers config; they say nothing about this model's arithmetic.
_GENERIC = frozenset(
    {
        *("_attn_implementation", "_attn_implementation_autoset", "_commit_hash"),
        *("_name_or_path", "add_cross_attention", "architectures", "auto_map"),
        *("bad_words_ids", "begin_suppress_tokens", "bos_token_id"),
        *("chunk_size_feed_forward", "cross_attention_hidden_size"),
        *("decoder_start_token_id", "diversity_penalty", "do_sample", "dtype"),
        "early_stopping",
        *("encoder_no_repeat_ngram_size", "eos_token_id"),
        *("exponential_decay_length_penalty", "finetuning_task"),
        *("forced_bos_token_id", "forced_eos_token_id", "id2label", "in_chans"),
        *("is_decoder", "is_encoder_decoder", "label2id", "length_penalty"),
        *("max_length", "min_length", "model_type", "no_repeat_ngram_size"),
        *("num_beam_groups", "num_beams", "num_return_sequences"),
        *("output_attentions", "output_hidden_states", "output_scores"),
        *("pad_token_id", "prefix", "problem_type", "pruned_heads"),
        *("remove_invalid_values", "repetition_penalty", "return_dict"),
        *("return_dict_in_generate", "sep_token_id", "suppress_tokens"),
        *("task_specific_params", "temperature", "tf_legacy_loss"),
        *("tie_encoder_decoder", "tie_word_embeddings", "tokenizer_class"),
        *("top_k", "top_p", "torch_dtype", "torchscript", "transformers_version"),
        *("typical_p", "use_bfloat16"),
    }
)


@dataclass(frozen=True)
class DecoderConfig(StrictConfig):
    """``llm_config``."""

    eos_token_id: int
    first_k_dense_replace: Index
    head_dim: int
    hidden_size: int
    image_patch_token: int
    intermediate_size: int
    moe_intermediate_size: int
    n_group: int
    num_attention_heads: int
    num_experts: int
    num_experts_per_tok: int
    num_hidden_layers: int
    num_key_value_heads: int
    num_shared_experts: int
    rms_norm_eps: float
    rope_theta: float
    router_type: str
    topk_group: int
    use_bias: bool
    use_expert_bias: bool
    use_qk_norm: bool
    vocab_size: int

    fixed: ClassVar[Values] = {
        "hidden_act": "silu",
        "moe_router_enable_expert_bias": True,
        "norm_head": False,
        "norm_softmax": False,
        "norm_topk_prob": True,
        "router_type": "MultiRouter",
        "tie_word_embeddings": False,
        "use_bias": False,
        "use_expert_bias": True,
        "use_interleaved_frame_timestamp": True,
        "use_qk_norm": True,
        "use_qkv_bias": False,
        "use_sliding_window": False,
    }
    # Read by SGLang, checked below, or of training.
    ignored: ClassVar[Collection[str]] = (
        *("attention_dropout", "embedding_dropout", "output_dropout"),
        *("image_start_token", "initializer_range", "max_position_embeddings"),
        *("max_window_layers", "moe_router_topk_scaling_factor", "multi_gate"),
        *("output_router_logits", "partial_rotary_factor", "pretraining_tp"),
        *("rope_scaling", "routed_scaling_factor", "sliding_window", "use_cache"),
        *("video_patch_token", "video_start_token"),
        *_GENERIC,
    )

    @classmethod
    def from_dict(cls, values: Values, where: str) -> Self:
        """Read the section.

        Raises:
            ConfigError: A key is unknown or missing, or asks for what is not built in.
        """
        flat = with_rope_scaling(values, where)
        if not flat.get("head_dim"):
            flat["head_dim"] = default_head_dim(flat, where)
        config = super().from_dict(flat, where)
        _check_rotation(flat, config.head_dim, where)
        return config


@dataclass(frozen=True)
class VisionConfig(StrictConfig):
    """``vision_config``: the tower."""

    deepstack_visual_indexes: tuple[Index, ...]
    depth: int
    hidden_act: str
    hidden_size: int
    in_channels: int
    intermediate_size: int
    num_heads: int
    num_position_embeddings: int
    out_hidden_size: int
    patch_size: int
    spatial_merge_size: int
    temporal_patch_size: int

    fixed: ClassVar[Values] = {
        "hidden_act": "gelu_pytorch_tanh",
        "in_channels": 3,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "spatial_patch_size": 16,
        "temporal_patch_size": 2,
    }
    ignored: ClassVar[Collection[str]] = (
        "initializer_range",
        "tokens_per_second",
        *_GENERIC,
    )


@dataclass(frozen=True)
class WhisperConfig(StrictConfig):
    """``whisper_encoder_config`` of ``audio_config``."""

    n_ctx: int
    n_head: int
    n_layer: int
    n_mels: int
    n_state: int

    ignored: ClassVar[Collection[str]] = _GENERIC


@dataclass(frozen=True)
class AudioTowerConfig(StrictConfig):
    """``audio_config``: the tower and its projector."""

    ds_kernel_size: int
    ds_stride: int
    norm_query_embeds: bool
    whisper_encoder_config: WhisperConfig

    fixed: ClassVar[Values] = {"ds_conv_type": "conv1d", "norm_query_embeds": True}
    ignored: ClassVar[Collection[str]] = ("audio_encoder_output_size", *_GENERIC)

    @classmethod
    def from_dict(cls, values: Values, where: str) -> Self:
        """Read the section.

        Raises:
            ConfigError: A key is unknown or missing, or asks for what is not built in.
        """
        config = super().from_dict(values, where)
        width = config.whisper_encoder_config.n_state
        require_values(values, {"audio_encoder_output_size": width}, where)
        return config


@dataclass(frozen=True)
class ReleasedThinkerConfig(StrictConfig):
    """The file."""

    mlp_depth: int
    llm_config: DecoderConfig
    vision_config: VisionConfig
    audio_config: AudioTowerConfig

    fixed: ClassVar[Values] = {"model_type": "bailingmm_moe_v2_lite"}
    # Of the generator and the talker, which have files of their own.
    ignored: ClassVar[Collection[str]] = (
        *("connector_config", "image_gen_config", "talker_config"),
        *_GENERIC,
    )

    @classmethod
    def from_dict(cls, values: Values, where: str) -> Self:
        """Read the file.

        Raises:
            ConfigError: A key is unknown or missing, or asks for what is not built in.
        """
        for key in ("architectures", "model_type"):
            require(values, key, where)
        return super().from_dict(values, where)


def _check_rotation(llm: Values, head_dim: int, where: str) -> None:
    scaling = dict(llm.get("rope_scaling") or {})
    kind = scaling.pop("type", scaling.pop("rope_type", "video_rope"))
    if kind != "video_rope" or any(value is not None for value in scaling.values()):
        raise ConfigError(
            f"{where}: rope_scaling is {llm['rope_scaling']}, expected type "
            '"video_rope" and no factor'
        )
    part = llm.get("partial_rotary_factor", 0.5)
    if head_dim * part / 2 != _FREQUENCIES:
        raise ConfigError(
            f"{where}: heads of {head_dim}, partial_rotary_factor {part}, have "
            f"{head_dim * part / 2:g} rotary frequencies, expected {_FREQUENCIES}"
        )
