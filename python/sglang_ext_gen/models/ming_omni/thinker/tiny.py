# SPDX-License-Identifier: Apache-2.0
"""Write a small Ming thinker in the official layout, from ``tensors.py`` alone.

Sizes differ from the release and from each other where they may. The vocabulary is one
token per byte and the special tokens in the released order, with the released quirks:
the tokenizer names a class that is not there, and ``video_start_token`` is wrong.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from sglang_ext_gen.checkpoint.layout import TensorSpec
from sglang_ext_gen.checkpoint.tiny import (
    new_folder,
    random_tensors,
    write_json,
    write_tensors,
)
from sglang_ext_gen.models.ming_omni.tensors import query_token_specs
from sglang_ext_gen.models.ming_omni.thinker.checkpoint import THINKER, WEIGHTS_FILE
from sglang_ext_gen.models.ming_omni.thinker.tensors import thinker_specs
from sglang_ext_gen.models.ming_omni.thinker_protocol import THINKER_ARCHITECTURE

SCALES = (2, 4)
_HIDDEN, _HEAD_DIM = 64, 128  # the rotary sections fix the size of a head
_STREAM = {"thinker": 1.0}

# In the order of the released vocabulary; the patch, start and end tokens of a picture
# must follow one another.
_SPECIAL = (
    *("<|startoftext|>", "<|endoftext|>", "[CLS]", "[gMASK]", "<|role_end|>"),
    *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    *(
        "<role>",
        "</role>",
        "<imagePatch>",
        "<image>",
        "</image>",
        "<video>",
        "</video>",
    ),
    *("<audioPatch>", "<audio>", "</audio>", "<framePatch>"),
)


def write_tiny(path: Path, seed: int = 0) -> None:
    """Write a checkpoint of about 3 MB.

    Raises:
        ConfigError: ``path`` exists and is not an empty folder.
    """
    write_checkpoint(path, seed=seed)


def write_checkpoint(
    path: Path,
    *,
    seed: int = 0,
    llm: Mapping[str, int] | None = None,
    shards: int = 1,
) -> None:
    """Write a checkpoint of any size.

    Args:
        path: New folder.
        seed: Same seed, same bytes.
        llm: Sizes of the decoder that differ from the tiny ones, as in
            ``llm_config``.
        shards: Files that hold the thinker, of about equal size; with an index, as
            released, when there are several.

    Raises:
        ConfigError: ``path`` exists and is not an empty folder.
    """
    with new_folder(path) as folder:
        ids = _write_tokenizer(folder)
        config = _config(ids)
        config["llm_config"] |= llm or {}
        write_json(folder / "config.json", config)
        write_json(folder / "mlp" / "config.json", {"img_gen_scales": list(SCALES)})
        released = THINKER.at(folder).config
        specs = list(thinker_specs(released, {}))
        if shards == 1:
            _write_random(folder / WEIGHTS_FILE, specs, seed)
        else:
            _write_shards(folder, specs, shards, seed)
        queries = query_token_specs(SCALES, released.llm_config.hidden_size)
        _write_random(folder / "mlp" / WEIGHTS_FILE, list(queries), seed)


def _write_random(file: Path, specs: Sequence[TensorSpec], seed: int) -> None:
    write_tensors(file, random_tensors(specs, seed=seed, streams=_STREAM))


def _write_shards(
    folder: Path, specs: Sequence[TensorSpec], shards: int, seed: int
) -> None:
    total = sum(math.prod(spec.shape) for spec in specs)
    parts: list[list[TensorSpec]] = [[] for _ in range(shards)]
    before = 0
    for spec in specs:
        parts[before * shards // total].append(spec)
        before += math.prod(spec.shape)
    weight_map = {}
    for number, part in enumerate(parts, 1):
        name = f"model-{number:05d}-of-{shards:05d}.safetensors"
        _write_random(folder / name, part, seed)
        weight_map |= {spec.name: name for spec in part}
    write_json(
        folder / f"{WEIGHTS_FILE}.index.json",
        {"metadata": {"total_size": 2 * total}, "weight_map": weight_map},
    )


def _write_tokenizer(folder: Path) -> dict[str, int]:
    """One token per byte, then the special tokens; returns the ids of the latter."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_ids = {character: index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=byte_ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in _SPECIAL]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "auto_map": {
                "AutoTokenizer": ["tokenization_bailing.BailingTokenizer", None]
            },
            "bos_token": "<|startoftext|>",
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|role_end|>",
            "pad_token": "<|role_end|>",
            "tokenizer_class": "BailingTokenizer",
        },
    )
    vocabulary = tokenizer.get_vocab()
    return {text: vocabulary[text] for text in _SPECIAL}


def _config(ids: dict[str, int]) -> dict[str, Any]:
    return {
        "architectures": [THINKER_ARCHITECTURE],
        "auto_map": {"AutoConfig": "configuration_bailingmm2.BailingMM2Config"},
        "model_type": "bailingmm_moe_v2_lite",
        "mlp_depth": 2,
        "torch_dtype": "bfloat16",
        "llm_config": _llm_config(ids),
        "vision_config": {
            "architectures": ["Qwen3MoeVisionTransformer"],
            "deepstack_visual_indexes": [0, 1],
            "depth": 2,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 48,
            "in_channels": 3,
            "intermediate_size": 80,
            "model_type": "qwen3_moe_vit",
            "num_heads": 4,
            "num_position_embeddings": 64,
            "out_hidden_size": 56,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        "audio_config": {
            "ds_kernel_size": 3,
            "ds_stride": 2,
            "norm_query_embeds": True,
            "whisper_encoder_config": {
                "n_ctx": 1500,
                "n_head": 2,
                "n_layer": 2,
                "n_mels": 128,
                "n_state": 48,
            },
        },
    }


def _llm_config(ids: dict[str, int]) -> dict[str, Any]:
    return {
        "architectures": ["BailingMoeV2ForCausalLM"],
        "embedding_dropout": 0.0,
        "eos_token_id": ids["<|role_end|>"],
        "first_k_dense_replace": 1,
        "head_dim": _HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": _HIDDEN,
        "image_patch_token": ids["<imagePatch>"],
        "image_start_token": ids["<image>"],
        "intermediate_size": 96,
        "max_position_embeddings": 4096,
        "model_type": "bailing_moe_v2",
        "moe_intermediate_size": 32,
        "moe_router_topk_scaling_factor": 2.5,
        "n_group": 4,
        "norm_head": False,
        "norm_topk_prob": True,
        "num_attention_heads": 4,
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "num_shared_experts": 1,
        "pad_token_id": ids["<|endoftext|>"],
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"factor": None, "type": "video_rope"},
        "rope_theta": 2400000,
        "router_type": "MultiRouter",
        "tie_word_embeddings": False,
        "topk_group": 2,
        "use_bias": False,
        "use_expert_bias": True,
        "use_interleaved_frame_timestamp": True,
        "use_qk_norm": True,
        "use_qkv_bias": False,
        # As in the release: the id of </image>.
        "video_start_token": ids["</image>"],
        "video_patch_token": ids["<framePatch>"],
        "vocab_size": 320,
    }
