# SPDX-License-Identifier: Apache-2.0
"""What a Lance checkpoint needs of a device: weights, and the numbers of a step."""

from pathlib import Path

from sglang_ext_gen.checkpoint.needs import (
    Chatting,
    Drawing,
    Form,
    Held,
    Needs,
    Role,
)
from sglang_ext_gen.models.lance.checkpoint import (
    VAE,
    VARIANTS,
    LanceFiles,
    find_files,
)
from sglang_ext_gen.models.lance.tasks import GENERATION_TASKS, TASKS, Variant
from sglang_ext_gen.models.lance.tensors import BUNDLED_VISION
from sglang_ext_gen.models.lance.weights import is_quantized_weight

FORMS = (
    Form("released"),
    Form("fp8", "quantized", ("--weight-format", "fp8")),
)
# Channels a pixel of the decoder's widest map: 512 at half the size of the picture.
_DECODER_CHANNELS = 128
_TEXT_TOKENS = 1024
_COMMAND = ("sglang-ext-gen", "generate", "MODEL", "--prompt", "A red fox")
# Weights that only drawing uses.
_GENERATION = ("vae2llm.", "llm2vae.", "time_embedder.", "latent_pos_embed.")
_GENERATION_LAYERS = "_moe_gen"


def needs(path: Path) -> Needs:
    """Of the root, or of one checkpoint directory, to draw.

    Raises:
        CheckpointError: A file cannot be read.
        ConfigError: A config does not fit.
    """
    files = find_files(path)
    there = (files.named,) if files.named else files.variants()
    has_vae = VAE.at(files.root).file.is_file()
    roles = [_drawing(files, there, "draw", ())] if has_vae else []
    for variant in there if has_vae and len(there) > 1 else ():
        tasks = ",".join(n for n in GENERATION_TASKS if TASKS[n].variant == variant)
        flags = ("--tasks", tasks)
        roles.append(_drawing(files, (variant,), f"draw, {tasks} alone", flags))
    missing = [] if has_vae else ["Wan2.2_VAE.pth: nothing can be drawn or edited"]
    missing += [
        f"{name}: {', '.join(n for n in TASKS if TASKS[n].variant == name)} lack the "
        "weights made for them"
        for name in VARIANTS
        if name not in there
    ]
    return Needs(" and ".join(there), tuple(roles), tuple(missing))


def understanding_needs(path: Path) -> Needs:
    """Of the directory that answers questions.

    Raises:
        CheckpointError: A file cannot be read.
        ConfigError: A config does not fit.
    """
    files = find_files(path)
    variant: Variant = files.named or files.variants()[-1]
    decoder = files.transformer(variant)
    config = decoder.config
    held = (Held(decoder, used=is_understanding), Held(files.vision(variant)))
    role = Role(
        name="understand",
        command=("sglang-ext-gen", "ask", "MODEL", "--prompt", "What is this?"),
        held=held,
        work=Chatting(
            layers=config.num_hidden_layers,
            heads=config.num_key_value_heads,
            head_dim=config.head_dim,
        ),
    )
    return Needs(f"answers by {variant}", (role,))


def is_understanding(name: str) -> bool:
    """Whether a tensor of a decoder's file is the language model's."""
    others = (*_GENERATION, BUNDLED_VISION)
    return _GENERATION_LAYERS not in name and not name.startswith(others)


def _drawing(
    files: LanceFiles, variants: tuple[Variant, ...], name: str, flags: tuple[str, ...]
) -> Role:
    """A server of the tasks of these directories."""
    decoders = [files.transformer(variant) for variant in variants]
    config = decoders[0].config
    return Role(
        name=name,
        command=(*_COMMAND, *flags),
        held=(
            *(Held(part, quantizes=is_quantized_weight) for part in decoders),
            *(Held(files.vision(variant)) for variant in variants),
            Held(VAE.at(files.root)),
        ),
        work=Drawing(
            hidden=config.hidden_size,
            inner=config.intermediate_size,
            decoder_channels=_DECODER_CHANNELS,
            text_tokens=_TEXT_TOKENS,
            # Keys and values of the prefix, in every layer.
            text_width=2
            * config.num_hidden_layers
            * config.num_key_value_heads
            * config.head_dim,
            batch=2,
        ),
        forms=FORMS,
    )
