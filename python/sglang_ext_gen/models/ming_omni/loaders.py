# SPDX-License-Identifier: Apache-2.0
"""Building the image generator's parts from a checkpoint, strictly.

The functions are for any caller; the classes are the same as SGLang component loaders.
"""

from pathlib import Path
from typing import Any

import torch
from sglang.multimodal_gen.configs.models.vaes.flux import FluxVAEConfig
from sglang.multimodal_gen.runtime.models.vaes.autoencoder import AutoencoderKL
from torch import nn

from sglang_ext_gen.checkpoint.layout import read_json
from sglang_ext_gen.checkpoint.load import load_weights
from sglang_ext_gen.checkpoint.pickles import convert_pickle, load_pickle
from sglang_ext_gen.diffusion.component_loader import StrictLoader
from sglang_ext_gen.layers.fp8_linear import tensor_parallel
from sglang_ext_gen.models.ming_omni.byt5 import GlyphEncoder, special_tokens
from sglang_ext_gen.models.ming_omni.connector import ConditionEncoder
from sglang_ext_gen.models.ming_omni.dit import ZImageTransformer
from sglang_ext_gen.models.ming_omni.layout import MingFiles
from sglang_ext_gen.models.ming_omni.tensors import (
    glyph_encoder_specs,
    glyph_mapper_specs,
)
from sglang_ext_gen.models.ming_omni.weights import (
    BRIDGE_FILE,
    BRIDGE_RULES,
    CONNECTOR_FILE,
    CONNECTOR_RULES,
    GLYPH_ENCODER,
    GLYPH_ENCODER_RULES,
    GLYPH_MAPPER,
    GLYPH_MAPPER_RULES,
    TRANSFORMER_FILE,
    TRANSFORMER_RULES,
    VAE_FILE,
    VAE_RULES,
)


def load_condition_encoder(
    files: MingFiles, *, dtype: torch.dtype, device: torch.device | str
) -> ConditionEncoder:
    """``connector/`` and the projections of ``mlp/``.

    Raises:
        CheckpointError: The weights do not fit; names the tensor.
        ConfigError: A config does not fit; names the key.
    """
    with torch.device("meta"):
        encoder = ConditionEncoder(
            files.bridge, files.connector, files.thinker_width
        ).to(dtype)
    for module, folder, file, rules in (
        (encoder.connector, "connector", CONNECTOR_FILE, CONNECTOR_RULES),
        (encoder.bridge, "mlp", BRIDGE_FILE, BRIDGE_RULES),
    ):
        path = files.root / folder / file
        load_weights(module, path, rules, where=f"{folder}/", device=device)
    return encoder.requires_grad_(False).eval()


def load_glyph_encoder(
    files: MingFiles, *, dtype: torch.dtype, device: torch.device | str
) -> GlyphEncoder | None:
    """``byt5/``, from its pickles or the files converted from them; None without it.

    Raises:
        CheckpointError: The weights do not fit, or a pickle is refused.
        ConfigError: A config does not fit; names the key.
    """
    if not files.has_glyphs:
        return None
    config, vocabulary = files.glyphs, glyph_vocabulary(files)
    with torch.device("meta"):
        encoder = GlyphEncoder(config, vocabulary).to(dtype)
    for module, name, specs, rules in (
        (
            encoder.encoder,
            GLYPH_ENCODER,
            glyph_encoder_specs(config, vocabulary),
            GLYPH_ENCODER_RULES,
        ),
        (
            encoder.mapper,
            GLYPH_MAPPER,
            glyph_mapper_specs(config),
            GLYPH_MAPPER_RULES,
        ),
    ):
        load_pickle(
            module,
            files.byt5 / f"{name}.pt",
            list(specs),
            rules,
            where=f"byt5/{name}",
            dtype=dtype,
            device=device,
        )
    return encoder.requires_grad_(False).eval()


def glyph_vocabulary(files: MingFiles) -> int:
    """Rows of the glyph encoder's embedding: bytes, colors, fonts."""
    config = files.glyphs
    return config.t5["vocab_size"] + len(special_tokens(files.byt5, config))


def convert(path: Path) -> list[Path]:
    """Write the pickles of ``byt5/`` as safetensors, once; returns what was written.

    Raises:
        CheckpointError: A pickle is refused or is not what it should be.
    """
    files = MingFiles(path)
    if not files.has_glyphs:
        return []
    config = files.glyphs
    specs = {
        GLYPH_ENCODER: glyph_encoder_specs(config, glyph_vocabulary(files)),
        GLYPH_MAPPER: glyph_mapper_specs(config),
    }
    return [
        convert_pickle(files.byt5 / f"{name}.pt", tensors)
        for name, tensors in specs.items()
    ]


def load_transformer(
    files: MingFiles, *, dtype: torch.dtype, device: torch.device | str
) -> ZImageTransformer:
    """``transformer/``, this rank's part of it.

    Raises:
        CheckpointError: The weights do not fit; names the tensor.
        ConfigError: The config does not fit; names the key.
    """
    with torch.device("meta"):
        transformer = ZImageTransformer(files.transformer, dtype=dtype)
    tp_rank, tp_size = tensor_parallel()
    load_weights(
        transformer,
        files.root / "transformer" / TRANSFORMER_FILE,
        TRANSFORMER_RULES,
        where="transformer/",
        device=device,
        tp_rank=tp_rank,
        tp_size=tp_size,
    )
    return transformer.requires_grad_(False).eval()


def load_vae(
    files: MingFiles, *, dtype: torch.dtype, device: torch.device | str
) -> AutoencoderKL:
    """``vae/``, in SGLang's own class.

    Raises:
        CheckpointError: The weights do not fit; names the tensor.
        ConfigError: The config does not fit; names the key.
    """
    released = read_json(files.root / "vae" / "config.json")
    config = FluxVAEConfig()
    config.update_model_arch(
        {
            "act_fn": "silu",
            "mid_block_add_attention": files.vae.mid_block_add_attention,
            **released,
        }
    )
    config.post_init()
    with torch.device("meta"):
        vae = AutoencoderKL(config).to(dtype)
    path = files.root / "vae" / VAE_FILE
    load_weights(vae, path, VAE_RULES, where="vae/", device=device)
    return vae.requires_grad_(False).eval()


class MingConditionEncoderLoader(StrictLoader):
    """Loads connector and projections."""

    precision_key = "text_encoder"

    def build(
        self, path: Path, config: Any, dtype: torch.dtype, device: Any
    ) -> nn.Module:
        """From the checkpoint's root."""
        return load_condition_encoder(MingFiles(path), dtype=dtype, device=device)


class MingGlyphEncoderLoader(StrictLoader):
    """Loads the glyph encoder."""

    precision_key = "text_encoder"

    def build(
        self, path: Path, config: Any, dtype: torch.dtype, device: Any
    ) -> nn.Module:
        """From the checkpoint's root, which has a ``byt5/``."""
        encoder = load_glyph_encoder(MingFiles(path), dtype=dtype, device=device)
        assert encoder is not None, "the pipeline leaves it out otherwise"
        return encoder


class MingTransformerLoader(StrictLoader):
    """Loads the transformer."""

    precision_key = "transformer"

    def build(
        self, path: Path, config: Any, dtype: torch.dtype, device: Any
    ) -> nn.Module:
        """From the checkpoint's root."""
        return load_transformer(MingFiles(path), dtype=dtype, device=device)


class MingAutoencoderLoader(StrictLoader):
    """Loads the VAE."""

    precision_key = "vae"

    def build(
        self, path: Path, config: Any, dtype: torch.dtype, device: Any
    ) -> nn.Module:
        """From the checkpoint's root."""
        return load_vae(MingFiles(path), dtype=dtype, device=device)
