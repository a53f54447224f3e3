# SPDX-License-Identifier: Apache-2.0
"""Components and stage order of Lance on SGLang's diffusion runtime.

One pipeline serves every generation task. Components: ``transformer`` and
``image_encoder`` of ``Lance_3B``, ``transformer_2`` and ``image_encoder_2`` of
``Lance_3B_Video``, the VAE and the tokenizer; only those that the served tasks need
are loaded.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

from sglang.multimodal_gen.runtime.disaggregation.roles import RoleType
from sglang.multimodal_gen.runtime.server_args import ServerArgs

from sglang_ext_gen.checkpoint.component import StoredComponent
from sglang_ext_gen.diffusion.component_loader import StrictLoader
from sglang_ext_gen.diffusion.pipeline import FamilyPipeline
from sglang_ext_gen.models.lance.checkpoint import (
    COMPONENTS,
    TRANSFORMERS,
    VAE,
    VAE_DECODER,
    VARIANTS,
    VISION,
    VISION_TOWERS,
    LanceFiles,
    find_files,
)
from sglang_ext_gen.models.lance.options import LancePlacement, takes_sources
from sglang_ext_gen.models.lance.pipeline_config import LancePipelineConfig
from sglang_ext_gen.models.lance.stages import (
    LanceConditioningStage,
    LanceDecodingStage,
    LanceDenoisingStage,
)


class LanceVisionLoader(StrictLoader):
    """Loads the vision tower that goes with one checkpoint directory."""

    component = VISION

    def stored(self, folder: Path, config: LancePipelineConfig) -> StoredComponent[Any]:
        """Which file it comes from is an option."""
        files = find_files(folder)
        assert files.named is not None, f"{folder} is no checkpoint directory"
        return files.vision(files.named, config.vision_source)


class LanceVAELoader(StrictLoader):
    """Loads the VAE; half of it where no served task has a source."""

    component = VAE

    def stored(self, folder: Path, config: LancePipelineConfig) -> StoredComponent[Any]:
        """The tasks decide."""
        row = VAE if takes_sources(config.tasks) else VAE_DECODER
        return StoredComponent(row, folder)


def needed_components(placement: LancePlacement) -> set[str]:
    """Names of the components that the served tasks use; no other is loaded."""
    return {
        *(TRANSFORMERS[name].name for name in placement.loaded()),
        *(VISION_TOWERS[name].name for name in placement.vision()),
        "vae",
        "tokenizer",
    }


class LancePipeline(FamilyPipeline):
    """Text, picture or video to picture or video; see the package docstring."""

    pipeline_name = "LancePipeline"
    is_video_pipeline = True
    has_index = False
    components = COMPONENTS
    stock_components = {"tokenizer": ("transformers", "Qwen2TokenizerFast")}  # noqa: RUF012
    component_loaders = {  # noqa: RUF012  (SGLang declares it so)
        **dict.fromkeys((p.name for p in VISION_TOWERS.values()), LanceVisionLoader),
        VAE.name: LanceVAELoader,
    }

    @property
    def files(self) -> LanceFiles:
        """The checkpoint."""
        return find_files(Path(self.model_path))

    @cached_property
    def placement(self) -> LancePlacement:
        """What is served, asked once the checkpoint is on this machine."""
        return LancePipelineConfig.of(self.server_args).placement(Path(self.model_path))

    def unneeded_components(self, folder: Path, server_args: ServerArgs) -> set[str]:
        """Weights of tasks that are not served."""
        return set(self._required_config_modules) - needed_components(self.placement)

    def component_folder(self, name: str) -> Path:
        """The user may have named one directory; either one has the tokenizer."""
        if name == "tokenizer":
            return self.files.folder(self.placement.loaded()[0])
        for variant in VARIANTS:
            rows = (TRANSFORMERS[variant], VISION_TOWERS[variant])
            if name in [row.name for row in rows]:
                return self.files.folder(variant)
        return self.files.root

    def create_pipeline_stages(self, server_args: ServerArgs) -> None:
        """Conditioning, denoising, decoding."""
        self.add_stage_factory(
            RoleType.ENCODER,
            lambda: LanceConditioningStage(
                self.get_module("tokenizer"),
                self._modules(VAE, *VISION_TOWERS.values()),
                self.placement,
            ),
            "conditioning_stage",
        )
        self.add_stage_factory(
            RoleType.DENOISER,
            lambda: LanceDenoisingStage(
                self, self._modules(*TRANSFORMERS.values()), self.placement
            ),
            "denoising_stage",
        )
        self.add_stage_factory(
            RoleType.DECODER,
            lambda: LanceDecodingStage(self._modules(VAE)),
            "decoding_stage",
        )

    def _modules(self, *rows: Any) -> dict[str, Any]:
        return {row.name: self.get_module(row.name) for row in rows}
