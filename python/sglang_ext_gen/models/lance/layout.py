# SPDX-License-Identifier: Apache-2.0
"""A Lance checkpoint on disk: finding its parts and checking them without loading.

Source: the folder layout of the release,

    <root>/Lance_3B, Lance_3B_Video    llm_config.json, weights, tokenizer
    <root>/Qwen2.5-VL-ViT              config.json, vit.safetensors
    <root>/Wan2.2_VAE.pth

A user may name the root or one of the two checkpoint directories. The pickle is only
looked for here; what is in it is checked when it is loaded. torch is not imported.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from sglang_ext_gen.checkpoint.layout import (
    StoredTensor,
    check_tensors,
    read_json,
    read_tensors,
)
from sglang_ext_gen.errors import CheckpointError, ConfigError
from sglang_ext_gen.models.lance.config import (
    LanceTransformerConfig,
    LanceVisionConfig,
)
from sglang_ext_gen.models.lance.tasks import Variant
from sglang_ext_gen.models.lance.tensors import (
    POSITION_TABLE,
    VaeWidths,
    transformer_specs,
    vae_specs,
    vision_specs,
)
from sglang_ext_gen.models.lance.weights import (
    BUNDLED_VISION,
    TRANSFORMER_FILES,
    VAE_PICKLE,
    VAE_SAFETENSORS,
    VISION_FILE,
    VISION_FOLDER,
)

VARIANTS: tuple[Variant, ...] = get_args(Variant)
# The release ships both forms of the tokenizer; either will do.
TOKENIZER_FORMS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
VisionSource = Literal["checkpoint", "standalone"]
WeightFormat = Literal["released", "fp8"]


@dataclass(frozen=True)
class LanceFiles:
    """Where the parts of a checkpoint are.

    Args:
        root: Folder with the VAE and the vision tower.
        named: The variant that the user's path names, or None for the root.
    """

    root: Path
    named: Variant | None

    def variants(self) -> tuple[Variant, ...]:
        """Checkpoint directories that are there."""
        return tuple(name for name in VARIANTS if (self.root / name).is_dir())

    def folder(self, variant: Variant) -> Path:
        """A checkpoint directory.

        Raises:
            CheckpointError: It is not there; names the missing directory.
        """
        folder = self.root / variant
        if not folder.is_dir():
            there = ", ".join(self.variants()) or "none"
            raise CheckpointError(
                f"{folder} is missing (found: {there}). Download {variant} of the "
                "release beside the others, or choose another variant"
            )
        return folder

    def transformer(self, variant: Variant) -> Path:
        """The weights of a variant; ``model`` wins over ``ema``."""
        folder = self.folder(variant)
        for name in TRANSFORMER_FILES:
            if any((folder / file).exists() for file in (name, f"{name}.index.json")):
                return folder / name
        raise CheckpointError(f"{folder / TRANSFORMER_FILES[0]} is missing")

    def read_transformer_config(self, variant: Variant) -> LanceTransformerConfig:
        """``llm_config.json`` of a variant."""
        file = self.folder(variant) / "llm_config.json"
        return LanceTransformerConfig.from_dict(
            read_json(file), f"{variant}/llm_config.json"
        )

    def read_vision_config(self) -> LanceVisionConfig:
        """``config.json`` of the vision tower."""
        file = self.root / VISION_FOLDER / "config.json"
        return LanceVisionConfig.from_dict(
            read_json(file), f"{VISION_FOLDER}/config.json"
        )


def find_files(path: Path) -> LanceFiles:
    """Find the root from a path to it or to one of its checkpoint directories."""
    for variant in VARIANTS:
        if path.name == variant and (path / "llm_config.json").is_file():
            return LanceFiles(path.parent, variant)
    return LanceFiles(path, None)


def recognises(path: Path) -> bool:
    """Whether a local directory holds a Lance checkpoint, judged by its content."""
    files = find_files(path)
    has_vae = any(
        (files.root / name).is_file() for name in (VAE_PICKLE, VAE_SAFETENSORS)
    )
    return has_vae and any(
        (files.root / variant / "llm_config.json").is_file() for variant in VARIANTS
    )


def check_checkpoint(path: Path) -> list[str]:
    """Everything that keeps a checkpoint from being served, one line each.

    Only JSON files and safetensors headers are read.

    Args:
        path: The root, or one checkpoint directory: then only that one is checked.
    """
    files = find_files(path)
    variants = (files.named,) if files.named else files.variants()
    if not variants:
        return [f"{path}: neither {' nor '.join(VARIANTS)} is there"]
    problems: list[str] = []
    for variant in variants:
        problems += _collect(partial(_check_variant, files, variant))
    problems += _collect(partial(_check_vision, files))
    problems += _collect(partial(_check_vae, files))
    return problems


def has_bundled_vision(tensors: dict[str, StoredTensor]) -> bool:
    """Whether a variant's own weights hold a vision tower."""
    return any(name.startswith(BUNDLED_VISION) for name in tensors)


def _collect(check: Callable[[], list[str]]) -> list[str]:
    try:
        return check()
    except (CheckpointError, ConfigError) as error:
        return [str(error)]


def _check_variant(files: LanceFiles, variant: Variant) -> list[str]:
    config = files.read_transformer_config(variant)
    folder, tensors = files.folder(variant), read_tensors(files.transformer(variant))
    specs = list(transformer_specs(config))
    if has_bundled_vision(tensors):
        specs += vision_specs(files.read_vision_config(), BUNDLED_VISION)
    has_tokenizer = (folder / "tokenizer_config.json").is_file() and any(
        all((folder / name).is_file() for name in form) for form in TOKENIZER_FORMS
    )
    return [
        *([] if has_tokenizer else [f"{variant}/: its tokenizer is missing"]),
        *check_tensors(
            specs, tensors, where=f"{variant}/", unchecked=(POSITION_TABLE,)
        ),
    ]


def _check_vision(files: LanceFiles) -> list[str]:
    config = files.read_vision_config()
    tensors = read_tensors(files.root / VISION_FOLDER / VISION_FILE)
    return check_tensors(vision_specs(config), tensors, where=f"{VISION_FOLDER}/")


def _check_vae(files: LanceFiles) -> list[str]:
    converted = files.root / VAE_SAFETENSORS
    if converted.is_file():
        tensors = read_tensors(converted)
        specs = vae_specs(VaeWidths.from_tensors(tensors, converted.name))
        return check_tensors(specs, tensors, where=converted.name)
    if not (files.root / VAE_PICKLE).is_file():
        return [f"{files.root / VAE_PICKLE} is missing"]
    return []
