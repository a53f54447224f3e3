# SPDX-License-Identifier: Apache-2.0
"""What a released ``config.json`` may say, as data.

A key that nobody here knows could change the model, and so could a known key with
another value than the one that is built in: both are refused by name. Source: the
official config classes and the released file; the keys that every Transformers config
may hold are listed once.

Nothing here imports torch or SGLang.
"""

from collections.abc import Mapping
from typing import Any

from sglang_ext_gen.checkpoint.released_config import (
    refuse_unknown_keys,
    require,
    require_object,
    require_values,
)
from sglang_ext_gen.errors import ConfigError

Config = Mapping[str, Any]

# Sections, and the keys that must be there; "" is the top level.
_REQUIRED: dict[str, frozenset[str]] = {
    "": frozenset(
        {"architectures", "model_type", "mlp_depth"}
        | {"llm_config", "vision_config", "audio_config"}
    ),
    "llm_config": frozenset(
        {
            *("eos_token_id", "first_k_dense_replace", "hidden_size"),
            *("image_patch_token", "intermediate_size", "moe_intermediate_size"),
            *("n_group", "num_attention_heads", "num_experts", "num_experts_per_tok"),
            *("num_hidden_layers", "num_key_value_heads", "num_shared_experts"),
            *("rms_norm_eps", "rope_theta", "router_type", "topk_group"),
            *("use_bias", "use_expert_bias", "use_qk_norm", "vocab_size"),
        }
    ),
    "vision_config": frozenset(
        {
            *("deepstack_visual_indexes", "depth", "hidden_act", "hidden_size"),
            *("intermediate_size", "num_heads", "num_position_embeddings"),
            *("out_hidden_size", "patch_size", "spatial_merge_size"),
            *("in_channels", "temporal_patch_size"),
        }
    ),
    "audio_config": frozenset(
        {"ds_kernel_size", "ds_stride", "norm_query_embeds", "whisper_encoder_config"}
    ),
    "audio_config.whisper_encoder_config": frozenset(
        {"n_ctx", "n_head", "n_layer", "n_mels", "n_state"}
    ),
}

_OPTIONAL: dict[str, frozenset[str]] = {
    "": frozenset({"talker_config"}),
    "llm_config": frozenset(
        {
            *("attention_dropout", "embedding_dropout", "output_dropout"),
            *("head_dim", "hidden_act", "image_start_token", "initializer_range"),
            *("max_position_embeddings", "max_window_layers", "norm_head"),
            *("moe_router_topk_scaling_factor", "norm_softmax", "norm_topk_prob"),
            *("output_router_logits", "partial_rotary_factor", "pretraining_tp"),
            *("rope_scaling", "routed_scaling_factor", "sliding_window", "use_cache"),
            *("use_interleaved_frame_timestamp", "use_qkv_bias"),
            *("use_sliding_window", "video_patch_token", "video_start_token"),
        }
    ),
    "vision_config": frozenset({"initializer_range", "tokens_per_second"}),
    "audio_config": frozenset(),
    "audio_config.whisper_encoder_config": frozenset(),
}

# Values that are built in: the code has no other.
_BUILT_IN: dict[str, dict[str, Any]] = {
    "": {"model_type": "bailingmm_moe_v2_lite"},
    "llm_config": {
        "hidden_act": "silu",
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
    },
    "vision_config": {
        "hidden_act": "gelu_pytorch_tanh",
        "in_channels": 3,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    "audio_config": {"norm_query_embeds": True},
    "audio_config.whisper_encoder_config": {},
}

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


def check_config(config: Config) -> None:
    """Raise unless this thinker does all that a ``config.json`` says.

    Raises:
        ConfigError: Names the first key that is unknown or missing, or whose value is
            not built in.
    """
    for section, required in _REQUIRED.items():
        where, values = "config.json", config
        for part in filter(None, section.split(".")):
            values = require_object(values, part, where)
            where = f"{where}: {part}"
        refuse_unknown_keys(values, required | _OPTIONAL[section] | _GENERIC, where)
        for key in sorted(required):
            require(values, key, where)
        require_values(values, _BUILT_IN[section], where)
    _check_rotation(config["llm_config"])


def _check_rotation(llm: Config) -> None:
    scaling = dict(llm.get("rope_scaling") or {})
    kind = scaling.pop("type", scaling.pop("rope_type", "video_rope"))
    if kind != "video_rope" or any(value is not None for value in scaling.values()):
        raise ConfigError(
            f"config.json: llm_config: rope_scaling is {llm['rope_scaling']}, expected "
            'type "video_rope" and no factor'
        )
    head = llm.get("head_dim") or llm["hidden_size"] // llm["num_attention_heads"]
    part = llm.get("partial_rotary_factor", 0.5)
    if head * part / 2 != _FREQUENCIES:
        raise ConfigError(
            f"config.json: llm_config: heads of {head}, partial_rotary_factor {part}, "
            f"have {head * part / 2:g} rotary frequencies, expected {_FREQUENCIES}"
        )
