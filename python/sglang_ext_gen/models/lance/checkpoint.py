# SPDX-License-Identifier: Apache-2.0
"""A Lance checkpoint on disk: its components, and checking them without loading.

Source: the folder layout of the release,

    <root>/Lance_3B, Lance_3B_Video    llm_config.json, weights, tokenizer
    <root>/Qwen2.5-VL-ViT              config.json, vit.safetensors
    <root>/Wan2.2_VAE.pth

A user may name the root or one of the two checkpoint directories. The pickle is only
looked for here; what is in it is checked when it is loaded. torch is not imported.
"""

from dataclasses import dataclass, replace
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

    def transformer(self, variant: Variant) -> StoredComponent[LanceTransformerConfig]:
        """The decoder of a variant."""
        return TRANSFORMERS[variant].at(self.root)

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
        bundled = VISION_TOWERS[variant].at(self.root)
        if source == "checkpoint" and has_bundled_vision(bundled):
            return bundled
        return VISION.at(self.root)


def find_files(path: Path) -> LanceFiles:
    """Find the root from a path to it or to one of its checkpoint directories."""
    for variant in VARIANTS:
        if path.name == variant and (path / _TRANSFORMER.config_file).is_file():
            return LanceFiles(path.parent, variant)
    return LanceFiles(path, None)


def has_bundled_vision(part: StoredComponent[Any]) -> bool:
    """Whether the file of a component holds a vision tower among other things."""
    return any(name.startswith(BUNDLED_VISION) for name in part.stored)


def recognises(path: Path) -> bool:
    """Whether a local directory holds a Lance checkpoint, judged by its content."""
    root = find_files(path).root
    return VAE.at(root).file.is_file() and any(
        (root / variant / _TRANSFORMER.config_file).is_file() for variant in VARIANTS
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
        problems += _check_tokenizer(files.folder(variant))
        problems += files.transformer(variant).check()
        problems += found_by(lambda name=variant: files.vision(name).check())
    for part in (VISION, VAE):
        problems += part.at(files.root).check()
    return list(dict.fromkeys(problems))


def _check_tokenizer(folder: Path) -> list[str]:
    is_there = (folder / "tokenizer_config.json").is_file() and any(
        all((folder / name).is_file() for name in form) for form in _TOKENIZER_FORMS
    )
    return [] if is_there else [f"{folder.name}/: its tokenizer is missing"]
