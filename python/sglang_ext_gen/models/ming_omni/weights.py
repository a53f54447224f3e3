# SPDX-License-Identifier: Apache-2.0
"""Where the tensors of the image generator's parts go in our modules.

Source: the names of the released files. Most keep theirs; q, k, v and the two halves of
a gated layer become one matrix each.
"""

from sglang_ext_gen.checkpoint.rules import KEEP_NAME, Merge, Rename, Rule, Skip

CONNECTOR_RULES: tuple[Rule, ...] = (
    Skip("lm_head.**", "only the base model is used"),
    Skip("model.embed_tokens.weight", "the connector sees no tokens"),
    Merge(
        (
            "model.layers.{i}.self_attn.q_proj.{p}",
            "model.layers.{i}.self_attn.k_proj.{p}",
            "model.layers.{i}.self_attn.v_proj.{p}",
        ),
        "layers.{i}.self_attn.qkv_proj.{p}",
    ),
    Rename(
        "model.layers.{i}.self_attn.o_proj.weight",
        "layers.{i}.self_attn.o_proj.weight",
    ),
    Merge(
        (
            "model.layers.{i}.mlp.gate_proj.weight",
            "model.layers.{i}.mlp.up_proj.weight",
        ),
        "layers.{i}.mlp.gate_up_proj.weight",
    ),
    Rename("model.layers.{i}.mlp.down_proj.weight", "layers.{i}.mlp.down_proj.weight"),
    Rename(
        "model.layers.{i}.input_layernorm.weight", "layers.{i}.input_layernorm.weight"
    ),
    Rename(
        "model.layers.{i}.post_attention_layernorm.weight",
        "layers.{i}.post_attention_layernorm.weight",
    ),
    Rename("model.norm.weight", "norm.weight"),
)

BRIDGE_RULES: tuple[Rule, ...] = (
    Rename("proj_in.{p}", "proj_in.{p}"),
    Rename("proj_out.{p}", "proj_out.{p}"),
    Skip("query_tokens_dict.**", "the thinker embeds them"),
)


def _block(name: str) -> tuple[Rule, ...]:
    attention = f"{name}.attention"
    return (
        Merge(
            (
                f"{attention}.to_q.weight",
                f"{attention}.to_k.weight",
                f"{attention}.to_v.weight",
            ),
            f"{attention}.to_qkv.weight",
        ),
        Rename(f"{attention}.to_out.0.weight", f"{attention}.to_out.weight"),
        Merge(
            (f"{name}.feed_forward.w1.weight", f"{name}.feed_forward.w3.weight"),
            f"{name}.feed_forward.w13.weight",
        ),
        Rename(f"{name}.adaLN_modulation.0.{{p}}", f"{name}.adaLN_modulation.{{p}}"),
    )


TRANSFORMER_RULES: tuple[Rule, ...] = (
    Rename("all_x_embedder.2-1.{p}", "x_embedder.{p}"),
    Rename("all_final_layer.2-1.linear.{p}", "final_layer.linear.{p}"),
    Rename(
        "all_final_layer.2-1.adaLN_modulation.1.{p}", "final_layer.adaLN_modulation.{p}"
    ),
    Rename("t_embedder.mlp.0.{p}", "t_embedder.mlp_in.{p}"),
    Rename("t_embedder.mlp.2.{p}", "t_embedder.mlp_out.{p}"),
    Rename("cap_embedder.0.weight", "cap_norm.weight"),
    Rename("cap_embedder.1.{p}", "cap_embedder.{p}"),
    *_block("noise_refiner.{i}"),
    *_block("context_refiner.{i}"),
    *_block("layers.{i}"),
    KEEP_NAME,
)

VAE_RULES: tuple[Rule, ...] = (KEEP_NAME,)

GLYPH_ENCODER_RULES: tuple[Rule, ...] = (
    Rename("embed_tokens.weight", "embed_tokens.weight"),
    Rename("block.{i}.**", "block.{i}.**"),
    Rename("final_layer_norm.weight", "final_layer_norm.weight"),
)
GLYPH_MAPPER_RULES: tuple[Rule, ...] = (
    Rename("blocks.{i}.**", "stack.block.{i}.**"),
    Rename("layer_norm.weight", "stack.final_layer_norm.weight"),
    Rename("channel_mapper.{p}", "channel_mapper.{p}"),
    Rename("final_layer_norm.weight", "final_layer_norm.weight"),
)
