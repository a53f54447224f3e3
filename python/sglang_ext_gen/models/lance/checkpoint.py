# SPDX-License-Identifier: Apache-2.0
"""A Lance checkpoint on disk: its components, and checking them without loading.

Source: the folder layout of the release,

    <root>/Lance_3B, Lance_3B_Video    llm_config.json, weights, tokenizer
    <root>/Qwen2.5-VL-ViT              config.json, vit.safetensors
    <root>/Wan2.2_VAE.pth

A user may name the root or one of the two checkpoint directories, which may have any
name and be behind a link: the one that bundles a vision tower is ``Lance_3B_Video``.
The pickle's tensors are checked without running or importing anything, torch included.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from sglang_ext_gen.checkpoint.component import (
    Component,
    Stored,
    StoredComponent,
    found_by,
)
from sglang_ext_gen.errors import CheckpointError
from sglang_ext_gen.models.lance.config import (
    LanceTransformerConfig,
    LanceVisionConfig,
)
from sglang_ext_gen.models.lance.tasks import Variant
from sglang_ext_gen.models.lance.tensors import (
    BUNDLED_VISION,
    POSITION_TABLE,
    VaeWidths,
    transformer_specs,
    vae_specs,
    vision_specs,
)
from sglang_ext_gen.models.lance.weights import (
    BUNDLED_VISION_RULES,
    TRANSFORMER_RULES,
    VAE_DECODER_RULES,
    VAE_RULES,
    VISION_RULES,
)

VisionSource = Literal["checkpoint", "standalone"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
# The release ships both forms of the tokenizer; either will do.
_TOKENIZER_FORMS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_BUILD = "sglang_ext_gen.models.lance.build"

_TRANSFORMER: Component[LanceTransformerConfig] = Component(
    "transformer",
    config=LanceTransformerConfig,
    specs=lambda config, stored: transformer_specs(config),
    rules=TRANSFORMER_RULES,
    build=f"{_BUILD}:transformer",
    file="model.safetensors",
    other_file="ema.safetensors",
    config_file="llm_config.json",
    quantizes=True,
    unchecked=(POSITION_TABLE, BUNDLED_VISION),
)
TRANSFORMERS: dict[Variant, Component[LanceTransformerConfig]] = {
    "Lance_3B": replace(_TRANSFORMER, folder="Lance_3B"),
    "Lance_3B_Video": replace(
        _TRANSFORMER, name="transformer_2", folder="Lance_3B_Video"
    ),
}
VISION: Component[LanceVisionConfig] = Component(
    "image_encoder",
    config=LanceVisionConfig,
    specs=lambda config, stored: vision_specs(config),
    rules=VISION_RULES,
    build=f"{_BUILD}:vision",
    folder="Qwen2.5-VL-ViT",
    file="vit.safetensors",
    precision="image_encoder",
)
# The tower inside a variant's own weights; its config is the standalone one's.
_BUNDLED = replace(
    VISION,
    specs=lambda config, stored: vision_specs(config, BUNDLED_VISION),
    rules=BUNDLED_VISION_RULES,
    file=_TRANSFORMER.file,
    other_file=_TRANSFORMER.other_file,
    config_file=f"../{VISION.folder}/config.json",
    unchecked=("language_model.", "time_embedder.", "vae2llm.", "llm2vae.", "latent_"),
)
VISION_TOWERS: dict[Variant, Component[LanceVisionConfig]] = {
    "Lance_3B": replace(_BUNDLED, folder="Lance_3B"),
    "Lance_3B_Video": replace(
        _BUNDLED, name="image_encoder_2", folder="Lance_3B_Video"
    ),
}


def _vae_specs(config: None, stored: Stored) -> Any:
    return vae_specs(VaeWidths.from_tensors(stored))


VAE = Component(
    "vae",
    specs=_vae_specs,
    rules=VAE_RULES,
    build=f"{_BUILD}:vae",
    folder="",
    file="Wan2.2_VAE.pth",
    precision="vae",
)
# For tasks without a source, which encode nothing.
VAE_DECODER = replace(VAE, rules=VAE_DECODER_RULES, build=f"{_BUILD}:vae_decoder")

COMPONENTS: tuple[Component[Any], ...] = (
    *TRANSFORMERS.values(),
    *VISION_TOWERS.values(),
    VAE,
)


@dataclass(frozen=True)
class LanceFiles:
    """Where the parts of a checkpoint are.

    Args:
        root: Folder with the VAE and the vision tower.
        named: The variant that the user's path names, or None for the root.
        renamed: Directories that do not have the release's name.
    """

    root: Path
    named: Variant | None
    renamed: Mapping[Variant, Path] = field(default_factory=dict)

    def variants(self) -> tuple[Variant, ...]:
        """Checkpoint directories that are there."""
        return tuple(name for name in VARIANTS if self._place(name).is_dir())

    def _place(self, variant: Variant) -> Path:
        return self.renamed.get(variant, self.root / variant)

    def folder(self, variant: Variant) -> Path:
        """A checkpoint directory.

        Raises:
            CheckpointError: It is not there; names the missing directory.
        """
        folder = self._place(variant)
        if not folder.is_dir():
            there = ", ".join(self.variants()) or "none"
            raise CheckpointError(
                f"{folder} is missing (found: {there}). Download {variant} of the "
                "release beside the others, or choose another variant"
            )
        return folder

    def transformer(self, variant: Variant) -> StoredComponent[LanceTransformerConfig]:
        """The decoder of a variant."""
        return StoredComponent(TRANSFORMERS[variant], self._place(variant))

    def vision(
        self, variant: Variant, source: VisionSource = "checkpoint"
    ) -> StoredComponent[LanceVisionConfig]:
        """The vision tower that goes with a variant.

        Args:
            source: ``checkpoint`` prefers the tower that the variant bundles, as the
                official loader does; ``standalone`` takes ``vit.safetensors`` always.

        Raises:
            CheckpointError: The variant's weights cannot be read.
        """
        # By way of the root: behind a link, ".." would be another folder.
        row = replace(
            VISION_TOWERS[variant],
            read_config=lambda folder: VISION.at(self.root).config,
        )
        bundled = StoredComponent(row, self._place(variant))
        if source == "checkpoint" and has_bundled_vision(bundled):
            return bundled
        return VISION.at(self.root)


def find_files(path: Path) -> LanceFiles:
    """Find the root from a path to it or to one of its checkpoint directories."""
    if _is_variant(path):
        variant, parent = _variant_of(path), path.absolute().parent
        roots = [parent, path.resolve().parent]
        root = next(filter(_has_shared_part, roots), parent)
        return LanceFiles(root, variant, {variant: path})
    renamed: dict[Variant, Path] = {}
    for folder in sorted(path.iterdir()) if path.is_dir() else ():
        if folder.name not in VARIANTS and _is_variant(folder):
            variant = _variant_of(folder)
            if not (path / variant).is_dir():
                renamed.setdefault(variant, folder)
    return LanceFiles(path, None, renamed)


def _is_variant(folder: Path) -> bool:
    # Unlike Path.is_file, False for a folder that may not be entered (lost+found).
    return os.path.isfile(folder / _TRANSFORMER.config_file)


def _variant_of(folder: Path) -> Variant:
    """By the name that the release gave a directory, otherwise by its tensors."""
    for variant in VARIANTS:
        if variant in (folder.name, folder.resolve().name):
            return variant
    try:
        is_video = has_bundled_vision(StoredComponent(_TRANSFORMER, folder))
    except CheckpointError:
        is_video = False  # the check says what is wrong with it
    return "Lance_3B_Video" if is_video else "Lance_3B"


def _has_shared_part(root: Path) -> bool:
    """Whether a folder holds one of the parts that both variants need."""
    return VAE.at(root).file.is_file() or VISION.at(root).folder.is_dir()


def has_bundled_vision(part: StoredComponent[Any]) -> bool:
    """Whether the file of a component holds a vision tower among other things."""
    return any(name.startswith(BUNDLED_VISION) for name in part.stored)


def recognises(path: Path) -> bool:
    """Whether a local directory holds a Lance checkpoint, judged by its content."""
    files = find_files(path)
    folders = map(files.folder, files.variants())
    return _has_shared_part(files.root) and any(map(_is_variant, folders))


def check_checkpoint(path: Path) -> list[str]:
    """Everything that keeps a checkpoint from being served, one line each.

    Only JSON files and safetensors headers are read.

    Args:
        path: The root, or one checkpoint directory: then only that one is checked.
    """
    problems = VAE.at(find_files(path).root).check()
    return check_understanding(path) + [
        f"{line} (the VAE, needed to draw, not to understand)" for line in problems
    ]


def check_understanding(path: Path) -> list[str]:
    """What of it keeps the understanding tasks, which need no VAE, from being served.

    Args:
        path: The root, or one checkpoint directory: then only that one is checked.
    """
    files = find_files(path)
    variants = (files.named,) if files.named else files.variants()
    if not variants:
        return [f"{path}: neither {' nor '.join(VARIANTS)} is there"]
    problems: list[str] = []
    for variant in variants:
        problems += _check_tokenizer(files.folder(variant))
        problems += files.transformer(variant).check()
        problems += found_by(lambda name=variant: files.vision(name).check())
    problems += VISION.at(files.root).check()
    return list(dict.fromkeys(problems))


def _check_tokenizer(folder: Path) -> list[str]:
    is_there = (folder / "tokenizer_config.json").is_file() and any(
        all((folder / name).is_file() for name in form) for form in _TOKENIZER_FORMS
    )
    return [] if is_there else [f"{folder.name}/: its tokenizer is missing"]
