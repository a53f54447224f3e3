# SPDX-License-Identifier: Apache-2.0
"""Where the tensors of an Ideogram 4 checkpoint go in our modules.

Source: the tensor names of the release (vendor names, fused attention) and of its
diffusers-layout conversions (split attention). Our modules have the vendor names,
so that most tensors keep theirs; both layouts meet the same rules, and a weight's
``weight_scale`` follows it because ``{p}`` stands for either.
"""

from collections.abc import Collection

from sglang_ext_gen.checkpoint.rules import (
    KEEP_NAME,
    Merge,
    Rename,
    Rule,
    Skip,
    with_prefix,
)

CONDITIONAL_RULES: tuple[Rule, ...] = (
    Merge(
        (
            "layers.{i}.attention.to_q.{p}",
            "layers.{i}.attention.to_k.{p}",
            "layers.{i}.attention.to_v.{p}",
        ),
        "layers.{i}.attention.qkv.{p}",
    ),
    Rename("layers.{i}.attention.to_out.0.{p}", "layers.{i}.attention.o.{p}"),
    KEEP_NAME,
)

_NO_TEXT = "the unconditional transformer sees no text: this input is always zero"
UNCONDITIONAL_RULES: tuple[Rule, ...] = (
    Skip("llm_cond_norm.{p}", _NO_TEXT),
    Skip("llm_cond_proj.{p}", _NO_TEXT),
    *CONDITIONAL_RULES,
)

_TEXT_ENCODER: tuple[Rule, ...] = (
    Rename("language_model.embed_tokens.weight", "embed_tokens.weight"),
    Rename(
        "language_model.layers.{i}.input_layernorm.weight",
        "layers.{i}.input_layernorm.weight",
    ),
    Merge(
        (
            "language_model.layers.{i}.self_attn.q_proj.{p}",
            "language_model.layers.{i}.self_attn.k_proj.{p}",
            "language_model.layers.{i}.self_attn.v_proj.{p}",
        ),
        "layers.{i}.self_attn.qkv_proj.{p}",
    ),
    Rename(
        "language_model.layers.{i}.self_attn.q_norm.weight",
        "layers.{i}.self_attn.q_norm.weight",
    ),
    Rename(
        "language_model.layers.{i}.self_attn.k_norm.weight",
        "layers.{i}.self_attn.k_norm.weight",
    ),
    Rename(
        "language_model.layers.{i}.self_attn.o_proj.{p}",
        "layers.{i}.self_attn.o_proj.{p}",
    ),
    Rename(
        "language_model.layers.{i}.post_attention_layernorm.weight",
        "layers.{i}.post_attention_layernorm.weight",
    ),
    Merge(
        (
            "language_model.layers.{i}.mlp.gate_proj.{p}",
            "language_model.layers.{i}.mlp.up_proj.{p}",
        ),
        "layers.{i}.mlp.gate_up_proj.{p}",
    ),
    Rename(
        "language_model.layers.{i}.mlp.down_proj.{p}",
        "layers.{i}.mlp.down_proj.{p}",
    ),
    Skip("language_model.norm.weight", "the last tap is taken before the final norm"),
    Skip("visual.**", "prompts are text only"),
)


def text_encoder_rules(names: Collection[str]) -> tuple[Rule, ...]:
    """Rules of the text encoder's language tower.

    Args:
        names: All tensor names on disk; some re-packs put ``model.`` before each.
    """
    head = Skip("lm_head.{p}", "no text is generated")
    return (*with_prefix(_TEXT_ENCODER, text_encoder_prefix(names)), head)


def text_encoder_prefix(names: Collection[str]) -> str:
    """What stands before every tensor name of a text encoder: nothing or ``model.``"""
    is_prefixed = "model.language_model.embed_tokens.weight" in names
    return "model." if is_prefixed else ""
