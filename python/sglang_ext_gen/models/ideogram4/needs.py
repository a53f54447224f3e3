# SPDX-License-Identifier: Apache-2.0
"""What an Ideogram 4 checkpoint needs of a device: weights, numbers of a step."""

from pathlib import Path

from sglang_ext_gen.checkpoint.layout import has_float8
from sglang_ext_gen.checkpoint.needs import (
    Drawing,
    Form,
    Held,
    Needs,
    Role,
    diffusion_splits,
)
from sglang_ext_gen.models.ideogram4.checkpoint import (
    TEXT_ENCODER,
    TRANSFORMER,
    UNCONDITIONAL,
    VAE,
)
from sglang_ext_gen.models.ideogram4.request import MAX_PROMPT_TOKENS

FP8_FORMS = (
    Form("resident"),
    Form("expanded", "plain", ("--fp8-mode", "expanded")),
    Form("w8a8", flags=("--fp8-mode", "w8a8")),
)
# Linears that tensor parallelism divides, in both layouts of the transformer.
_COLUMNS = (
    r"layers\.\d+\.attention\.(qkv|to_q|to_k|to_v)",
    r"layers\.\d+\.feed_forward\.w[13]",
)
_ROWS = (r"layers\.\d+\.attention\.(o|to_out\.0)", r"layers\.\d+\.feed_forward\.w2")
_ENCODER = r"(model\.)?language_model\.layers\.\d+"
_ENCODER_COLUMNS = (
    rf"{_ENCODER}\.self_attn\.[qkv]_proj",
    rf"{_ENCODER}\.mlp\.(gate|up)_proj",
)
_ENCODER_ROWS = (rf"{_ENCODER}\.self_attn\.o_proj", rf"{_ENCODER}\.mlp\.down_proj")


def needs(path: Path) -> Needs:
    """Of a checkpoint, with or without its unconditional transformer.

    Raises:
        CheckpointError: A file cannot be read.
        ConfigError: A config does not fit.
    """
    transformer, encoder = TRANSFORMER.at(path), TEXT_ENCODER.at(path)
    vae = VAE.at(path)
    has_unconditional = (path / UNCONDITIONAL.name).is_dir()
    held = [
        Held(transformer, _COLUMNS, _ROWS, branch=0),
        Held(encoder, _ENCODER_COLUMNS, _ENCODER_ROWS),
        Held(vae),
    ]
    if has_unconditional:
        held.append(Held(UNCONDITIONAL.at(path), _COLUMNS, _ROWS, branch=1))
    splits = diffusion_splits(transformer.config.num_attention_heads)
    work = Drawing(
        hidden=transformer.config.hidden_size,
        inner=transformer.config.intermediate_size,
        # Of the last but one block, enlarged to the picture's size.
        decoder_channels=vae.config.decoder_block_out_channels[1],
        text_tokens=MAX_PROMPT_TOKENS,
        text_width=transformer.config.llm_features_dim,
    )
    is_fp8 = has_float8(transformer.stored)
    command = ("sglang-ext-gen", "generate", "MODEL", "--prompt", "A red fox")
    if not has_unconditional:
        command += ("--no-unconditional", "--guidance-scale", "1")
    role = Role(
        name="draw",
        command=command,
        held=tuple(held),
        work=work,
        forms=FP8_FORMS if is_fp8 else (Form("released"),),
        splits=tuple(s for s in splits if has_unconditional or s.branches == 1),
    )
    missing = (f"{UNCONDITIONAL.name}/: guidance above 1 cannot be drawn",)
    return Needs(
        variant="FP8" if is_fp8 else "plain weights",
        roles=(role,),
        missing=() if has_unconditional else missing,
    )
