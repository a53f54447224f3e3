# SPDX-License-Identifier: Apache-2.0
"""Building the components of Lance from a checkpoint, strictly.

The functions are for any caller; the classes are the same as SGLang component loaders.
"""

from pathlib import Path
from typing import Any

import torch
from sglang.multimodal_gen.runtime.loader.component_loaders.component_loader import (
    ComponentLoader,
)
from sglang.multimodal_gen.runtime.server_args import ServerArgs
from transformers import AutoTokenizer

from sglang_ext_gen.checkpoint.layout import read_tensors
from sglang_ext_gen.checkpoint.load import load_weights
from sglang_ext_gen.diffusion.component_loader import LIBRARY, StrictLoader
from sglang_ext_gen.layers.fp8_linear import finalize_fp8_linears
from sglang_ext_gen.models.lance.layout import (
    LanceFiles,
    VisionSource,
    WeightFormat,
    find_files,
    has_bundled_vision,
)
from sglang_ext_gen.models.lance.mot import LanceTransformer
from sglang_ext_gen.models.lance.options import takes_sources
from sglang_ext_gen.models.lance.tasks import Variant
from sglang_ext_gen.models.lance.vae import load_vae
from sglang_ext_gen.models.lance.vision import LanceVisionTransformer
from sglang_ext_gen.models.lance.weights import (
    BUNDLED_VISION_RULES,
    TRANSFORMER_RULES,
    VISION_FILE,
    VISION_FOLDER,
    VISION_RULES,
)


def load_transformer(
    files: LanceFiles,
    variant: Variant,
    *,
    dtype: torch.dtype,
    device: torch.device,
    weight_format: WeightFormat = "released",
) -> LanceTransformer:
    """Build the decoder of a variant, tensor by tensor.

    Args:
        weight_format: ``fp8`` quantises the linears of the layers while they are
            read; one tensor at a time is in memory in the released format.

    Raises:
        CheckpointError: The weights do not fit, or the directory is missing.
        ConfigError: The config does not fit; names the key.
    """
    config, is_fp8 = files.read_transformer_config(variant), weight_format == "fp8"
    with torch.device("meta"):
        transformer = LanceTransformer(config, is_fp8).to(dtype)
    load_weights(
        transformer,
        files.transformer(variant),
        TRANSFORMER_RULES,
        where=f"{variant}/",
        device=device,
        quantize=is_fp8,
    )
    if is_fp8:
        finalize_fp8_linears(transformer, "resident", dtype)
    return transformer.requires_grad_(False).eval()


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
    rules, where = BUNDLED_VISION_RULES, f"{variant}/vit_model"
    if source == "standalone" or not has_bundled_vision(read_tensors(file)):
        file = files.root / VISION_FOLDER / VISION_FILE
        rules, where = VISION_RULES, f"{VISION_FOLDER}/"
    load_weights(vision, file, rules, where=where, device=device)
    return vision.requires_grad_(False).eval()


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a variant; no code from the checkpoint is run."""
    return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)


class LanceTransformerLoader(StrictLoader):
    """Loads the decoder of one checkpoint directory."""

    precision_key = "transformer"

    def build(
        self, path: Path, config: Any, dtype: torch.dtype, device: torch.device
    ) -> Any:
        """Without the language head."""
        files = find_files(path)
        assert files.named is not None, f"{path} is no checkpoint directory"
        return load_transformer(
            files,
            files.named,
            dtype=dtype,
            device=device,
            weight_format=config.weight_format,
        )


class LanceVisionLoader(StrictLoader):
    """Loads the vision tower that goes with one checkpoint directory."""

    precision_key = "image_encoder"

    def build(
        self, path: Path, config: Any, dtype: torch.dtype, device: torch.device
    ) -> Any:
        """Which file it comes from is an option."""
        files = find_files(path)
        assert files.named is not None, f"{path} is no checkpoint directory"
        source = config.vision_source
        return load_vision(files, files.named, source, dtype=dtype, device=device)


class LanceVAELoader(StrictLoader):
    """Loads the VAE from the checkpoint root."""

    precision_key = "vae"

    def build(
        self, path: Path, config: Any, dtype: torch.dtype, device: torch.device
    ) -> Any:
        """From the converted file where there is one; without sources, half of it."""
        has_encoder = takes_sources(config.tasks)
        return load_vae(path, dtype=dtype, device=device, has_encoder=has_encoder)


class LanceTokenizerLoader(ComponentLoader):
    """Loads the tokenizer of one checkpoint directory."""

    expected_library = LIBRARY

    def load_customized(
        self, component_model_path: str, server_args: ServerArgs, component_name: str
    ) -> Any:
        """The same in both directories of the release."""
        return load_tokenizer(Path(component_model_path))
