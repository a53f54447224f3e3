# SPDX-License-Identifier: Apache-2.0
"""Where the tensors of a Lance checkpoint go in our modules.

Source: the tensor names of ``model.safetensors``, ``vit.safetensors`` and
``Wan2.2_VAE.pth``. Suffix rule of the release: ``_moe_gen`` follows the module name.
"""

from sglang_ext_gen.checkpoint.rules import (
    KEEP_NAME,
    Merge,
    Rename,
    Rule,
    Skip,
    with_prefix,
)

# Prefix of the vision tower that Lance_3B_Video bundles.
BUNDLED_VISION = "vit_model."
_LAYER = "language_model.model.layers.{i}"


def _layer_rules(suffix: str) -> tuple[Rule, ...]:
    attn, mlp = "self_attn", f"mlp{suffix}"
    return (
        Merge(
            tuple(f"{_LAYER}.{attn}.{p}_proj{suffix}.{{p}}" for p in ("q", "k", "v")),
            f"layers.{{i}}.{attn}.qkv_proj{suffix}.{{p}}",
        ),
        Rename(
            f"{_LAYER}.{attn}.o_proj{suffix}.weight",
            f"layers.{{i}}.{attn}.o_proj{suffix}.weight",
        ),
        Merge(
            (f"{_LAYER}.{mlp}.gate_proj.weight", f"{_LAYER}.{mlp}.up_proj.weight"),
            f"layers.{{i}}.{mlp}.gate_up_proj.weight",
        ),
        Rename(
            f"{_LAYER}.{mlp}.down_proj.weight",
            f"layers.{{i}}.{mlp}.down_proj.weight",
        ),
        *(
            Rename(
                f"{_LAYER}.{norm}{suffix}.weight",
                f"layers.{{i}}.{norm}{suffix}.weight",
            )
            for norm in (
                f"{attn}.q_norm",
                f"{attn}.k_norm",
                "input_layernorm",
                "post_attention_layernorm",
            )
        ),
        Rename(f"language_model.model.norm{suffix}.weight", f"norm{suffix}.weight"),
    )


TRANSFORMER_RULES: tuple[Rule, ...] = (
    Rename("language_model.model.embed_tokens.weight", "embed_tokens.weight"),
    *_layer_rules(""),
    *_layer_rules("_moe_gen"),
    Rename("time_embedder.mlp.{i}.{p}", "time_embedder.mlp.{i}.{p}"),
    Rename("vae2llm.{p}", "vae2llm.{p}"),
    Rename("llm2vae.{p}", "llm2vae.{p}"),
    Skip("language_model.lm_head.weight", "generation writes no text"),
    Skip(
        "latent_pos_embed.pos_embed",
        "recomputed, as the official loader does: the stored tables differ in shape",
    ),
    Skip(f"{BUNDLED_VISION}**", "loaded as a component of its own"),
)

VISION_RULES: tuple[Rule, ...] = (KEEP_NAME,)
# The vision tower inside the video checkpoint; everything else there is not its.
BUNDLED_VISION_RULES: tuple[Rule, ...] = (
    *with_prefix(VISION_RULES, BUNDLED_VISION),
    Skip("language_model.**", "the decoder is a component of its own"),
    Skip("time_embedder.**", "the decoder is a component of its own"),
    Skip("vae2llm.{p}", "the decoder is a component of its own"),
    Skip("llm2vae.{p}", "the decoder is a component of its own"),
    Skip("latent_pos_embed.pos_embed", "recomputed"),
)


# Stages of either half of the VAE, residual blocks of a stage.
_VAE_STAGES = 4
_VAE_RESNETS = {"encoder": 2, "decoder": 3}
_RESNET_PARTS = {
    "residual.0.gamma": "norm1.gamma",
    "residual.2.{p}": "conv1.{p}",
    "residual.3.gamma": "norm2.gamma",
    "residual.6.{p}": "conv2.{p}",
    "shortcut.{p}": "conv_shortcut.{p}",
}


def _vae_half(half: str, way: str) -> tuple[Rule, ...]:
    """Rules of the encoder (way "down") or the decoder (way "up")."""
    names = {
        f"{half}.conv1.{{p}}": f"{half}.conv_in.{{p}}",
        f"{half}.head.0.gamma": f"{half}.norm_out.gamma",
        f"{half}.head.2.{{p}}": f"{half}.conv_out.{{p}}",
        f"{half}.middle.1.**": f"{half}.mid_block.attentions.0.**",
    }
    resnets = {f"{half}.middle.0": "0", f"{half}.middle.2": "1"}
    blocks = {old: f"{half}.mid_block.resnets.{new}" for old, new in resnets.items()}
    count = _VAE_RESNETS[half]
    for stage in range(_VAE_STAGES):
        old = f"{half}.{way}samples.{stage}.{way}samples"
        new = f"{half}.{way}_blocks.{stage}"
        for index in range(count):
            blocks[f"{old}.{index}"] = f"{new}.resnets.{index}"
        names[f"{old}.{count}.**"] = f"{new}.{way}sampler.**"
    for old, new in blocks.items():
        for theirs, ours in _RESNET_PARTS.items():
            names[f"{old}.{theirs}"] = f"{new}.{ours}"
    return tuple(Rename(old, new) for old, new in names.items())


# From the vendor's names to those of SGLang's Wan VAE.
_VAE_DECODER: tuple[Rule, ...] = (
    Rename("conv1.{p}", "quant_conv.{p}"),
    Rename("conv2.{p}", "post_quant_conv.{p}"),
    *_vae_half("decoder", "up"),
)
VAE_RULES: tuple[Rule, ...] = (*_VAE_DECODER, *_vae_half("encoder", "down"))
VAE_DECODER_RULES: tuple[Rule, ...] = (
    *_VAE_DECODER,
    Skip("encoder.**", "no task that is served has a source"),
)

# Embeddings, the head, norms and what turns latents and times into tokens stay as
# released: little memory, and every latent passes through them.
_LAYERS = "language_model.model.layers."


def is_quantized_weight(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a released tensor becomes FP8: the matrices of the layers."""
    return name.startswith(_LAYERS) and len(shape) == 2
