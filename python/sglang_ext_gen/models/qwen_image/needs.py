# SPDX-License-Identifier: Apache-2.0
"""What a Qwen-Image checkpoint needs of a device: weights, the numbers of a step."""

from pathlib import Path

from sglang_ext_gen.checkpoint.component import read_or_empty
from sglang_ext_gen.checkpoint.needs import (
    Drawing,
    Form,
    Held,
    Needs,
    Role,
    diffusion_splits,
)
from sglang_ext_gen.models.qwen_image.checkpoint import (
    TEXT_ENCODER,
    TRANSFORMER,
    VAE,
    is_quantized_weight,
    recognises_edit,
)

FORMS = (
    Form("released"),
    Form("fp8", "quantized", ("--weight-format", "fp8")),
)
_BLOCK = r"transformer_blocks\.\d+"
# Linears that stock divides by tensor parallelism.
_COLUMNS = (
    r"img_in|txt_in|proj_out",
    rf"{_BLOCK}\.attn\.(to_[qkv]|add_[qkv]_proj)",
    rf"{_BLOCK}\.(img|txt)_mlp\.net\.0\.proj",
)
_ROWS = (
    rf"{_BLOCK}\.attn\.(to_out\.0|to_add_out)",
    rf"{_BLOCK}\.(img|txt)_mlp\.net\.2",
)
_FEED_FORWARD_FACTOR = 4


def needs(path: Path) -> Needs:
    """Of a checkpoint that draws or edits.

    Raises:
        CheckpointError: A file cannot be read.
        ConfigError: A config does not fit.
    """
    is_edit = recognises_edit(path)
    transformer, vae = TRANSFORMER.at(path), VAE.at(path)
    config = transformer.config
    hidden = config.num_attention_heads * config.attention_head_dim
    work = Drawing(
        hidden=hidden,
        inner=_FEED_FORWARD_FACTOR * hidden,
        # Of the last but one block, enlarged to the picture's size.
        decoder_channels=2 * vae.config.base_dim,
        # A prompt, and one reference of a megapixel.
        text_tokens=1024 + (4096 if is_edit else 0),
    )
    command = ("sglang-ext-gen", "generate", "MODEL", "--prompt", "A red fox")
    if is_edit:
        command += ("--image-path", "in.png")
    role = Role(
        name="edit" if is_edit else "draw",
        command=command,
        held=(
            Held(transformer, _COLUMNS, _ROWS, is_quantized_weight),
            Held(TEXT_ENCODER.at(path)),
            Held(vae),
        ),
        work=work,
        forms=FORMS,
        splits=diffusion_splits(config.num_attention_heads),
    )
    index = read_or_empty(path / "model_index.json")
    return Needs(variant=str(index.get("_class_name")), roles=(role,))
