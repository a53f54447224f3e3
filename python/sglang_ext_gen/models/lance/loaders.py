# SPDX-License-Identifier: Apache-2.0
"""Building the components of Lance from a checkpoint, strictly."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from sglang_ext_gen.models.lance.layout import (
    LanceFiles,
    VisionSource,
    has_bundled_vision,
)
from sglang_ext_gen.models.lance.mot import LanceTransformer
from sglang_ext_gen.models.lance.tasks import Variant
from sglang_ext_gen.models.lance.vision import LanceVisionTransformer
from sglang_ext_gen.models.lance.weights import (
    BUNDLED_VISION_RULES,
    TRANSFORMER_RULES,
    VISION_FILE,
    VISION_FOLDER,
    VISION_RULES,
)
from sglang_ext_gen.weights.layout import read_tensors
from sglang_ext_gen.weights.load import load_weights
from sglang_ext_gen.weights.rules import Rule


def load_transformer(
    files: LanceFiles, variant: Variant, *, dtype: torch.dtype, device: torch.device
) -> LanceTransformer:
    """Build the decoder of a variant, tensor by tensor.

    Raises:
        CheckpointError: The weights do not fit, or the directory is missing.
        ConfigError: The config does not fit; names the key.
    """
    config = files.read_transformer_config(variant)
    with torch.device("meta"):
        transformer = LanceTransformer(config).to(dtype)
    file = files.transformer(variant)
    return _fill(transformer, file, TRANSFORMER_RULES, f"{variant}/", device)


def load_vision(
    files: LanceFiles,
    variant: Variant,
    source: VisionSource,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> LanceVisionTransformer:
    """Build the vision tower.

    Args:
        source: ``checkpoint`` prefers the tower that the variant bundles, as the
            official loader does; ``standalone`` takes ``vit.safetensors`` always.

    Raises:
        CheckpointError: The weights do not fit.
        ConfigError: The config does not fit.
    """
    with torch.device("meta"):
        vision = LanceVisionTransformer(files.read_vision_config()).to(dtype)
    file = files.transformer(variant)
    if source == "checkpoint" and has_bundled_vision(read_tensors(file)):
        return _fill(vision, file, BUNDLED_VISION_RULES, f"{variant}/vit_model", device)
    file = files.root / VISION_FOLDER / VISION_FILE
    return _fill(vision, file, VISION_RULES, f"{VISION_FOLDER}/", device)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a variant; no code from the checkpoint is run."""
    return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)


def _fill(
    module: Any, file: Path, rules: tuple[Rule, ...], where: str, device: torch.device
) -> Any:
    load_weights(module, file, rules, where=where, device=device)
    return module.requires_grad_(False).eval()
