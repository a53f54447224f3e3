# SPDX-License-Identifier: Apache-2.0
"""What Ming's image generator needs of a device: weights, and the numbers of a step."""

from pathlib import Path

from sglang_ext_gen.checkpoint.component import read_or_empty
from sglang_ext_gen.checkpoint.needs import Drawing, Held, Needs, Role, diffusion_splits
from sglang_ext_gen.models.ming_omni.checkpoint import (
    BRIDGE,
    CONNECTOR,
    GLYPH_ENCODER,
    TRANSFORMER,
    VAE,
    has_glyphs,
)

# Linears that tensor parallelism divides.
_BLOCK = r"(layers|noise_refiner|context_refiner)\.\d+"
_COLUMNS = (rf"{_BLOCK}\.attention\.to_[qkv]", rf"{_BLOCK}\.feed_forward\.w[13]")
_ROWS = (rf"{_BLOCK}\.attention\.to_out\.0", rf"{_BLOCK}\.feed_forward\.w2")
# Queries, lettering and padding.
_TEXT_TOKENS = 512


def needs(path: Path) -> Needs:
    """Of the generator alone; its thinker needs devices of its own.

    Raises:
        CheckpointError: A file cannot be read.
        ConfigError: A config does not fit.
    """
    transformer, vae = TRANSFORMER.at(path), VAE.at(path)
    config = transformer.config
    parts = [CONNECTOR.at(path), BRIDGE.at(path), vae]
    if has_glyphs(path):
        parts += GLYPH_ENCODER.at(path).parts.values()
    held = (Held(transformer, _COLUMNS, _ROWS), *map(Held, parts))
    command = ("sglang-ext-gen", "generate", "MODEL", "--prompt", "A red fox")
    role = Role(
        name="draw, beside a thinker",
        command=(*command, "--thinker-url", "http://127.0.0.1:30000"),
        held=held,
        work=Drawing(
            hidden=config.dim,
            inner=config.ffn_dim,
            # Of the last but one block, enlarged to the picture's size.
            decoder_channels=vae.config.block_out_channels[1],
            text_tokens=_TEXT_TOKENS,
            batch=2,
        ),
        splits=diffusion_splits(config.n_heads),
    )
    return Needs("generator", (role,), tuple(_missing(path)))


def _missing(path: Path) -> list[str]:
    missing = []
    if not has_glyphs(path):
        missing.append("byt5/: quoted words are not lettered")
    if "llm_config" not in read_or_empty(path / "config.json"):
        missing.append(
            "the thinker: nothing can be drawn without one that runs elsewhere "
            "(--thinker-url)"
        )
    if not (path / "talker").is_dir():
        missing.append("talker/: no speech, which this package does not serve either")
    return missing
