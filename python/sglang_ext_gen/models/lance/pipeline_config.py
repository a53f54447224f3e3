# SPDX-License-Identifier: Apache-2.0
"""The load options of Lance as SGLang's ``PipelineConfig``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from sglang.multimodal_gen.configs.models import DiTConfig, VAEConfig
from sglang.multimodal_gen.configs.models.vaes import WanVAEConfig
from sglang.multimodal_gen.configs.pipeline_configs.base import (
    ModelTaskType,
    PipelineConfig,
)
from sglang.multimodal_gen.configs.sample.sampling_params import DataType

from sglang_ext_gen.checkpoint.component import refuse
from sglang_ext_gen.diffusion.pipeline_config import FamilyPipelineConfig
from sglang_ext_gen.models.lance.checkpoint import (
    COMPONENTS,
    check_checkpoint,
    find_files,
)
from sglang_ext_gen.models.lance.options import (
    LOAD_OPTIONS,
    STOCK_OPTIONS,
    LancePlacement,
    place_tasks,
)
from sglang_ext_gen.models.lance.request import TASK_TYPES
from sglang_ext_gen.models.lance.tiling import Tiling
from sglang_ext_gen.request.fields import carries

_SGLANG_NAMES = {official: name for name, official in TASK_TYPES.items()}


@dataclass
@carries(LOAD_OPTIONS)
class LancePipelineConfig(FamilyPipelineConfig, PipelineConfig):
    """Options of ``DiffGenerator.from_pretrained`` and ``sglang serve``."""

    load_options = LOAD_OPTIONS
    stock_options = STOCK_OPTIONS
    other_components: ClassVar[tuple[str, ...]] = ("tokenizer",)
    # A component that our loaders refuse must not be loaded by diffusers instead.
    native_only_components: tuple[str, ...] = tuple(part.name for part in COMPONENTS)
    task_type: ModelTaskType = ModelTaskType.T2I
    supported_task_types: ClassVar[tuple[ModelTaskType, ...] | None] = tuple(
        ModelTaskType.parse(name) for name in TASK_TYPES
    )
    should_use_guidance: bool = False
    dit_precision: str = "bf16"
    image_encoder_precision: str = "bf16"
    vae_precision: str = "bf16"
    # Noise is always drawn on the CPU: the same seed gives the same result
    # on any device.
    generator_device: str | None = "cpu"
    dit_config: DiTConfig = field(default_factory=DiTConfig)
    vae_config: VAEConfig = field(default_factory=WanVAEConfig)

    @property
    def tiling(self) -> Tiling | None:
        """How the VAE cuts large frames; None for not at all."""
        return Tiling() if self.vae_tiles == "on" else None

    def placement(self, path: Path) -> LancePlacement:
        """Which tasks run, and on which directory of the checkpoint in ``path``.

        Raises:
            ConfigError: An option cannot be used.
            CheckpointError: A directory that is needed is missing.
        """
        return place_tasks(find_files(path), self.variant, self.tasks)

    def resolve_task_type(
        self,
        requested: ModelTaskType | str | None = None,
        *,
        data_type: DataType | None = None,
        has_image: bool = False,
        has_video: bool = False,
    ) -> ModelTaskType:
        """Stock's choice, with the official task names understood too."""
        if isinstance(requested, str):
            requested = _SGLANG_NAMES.get(requested.strip().lower(), requested)
        return super().resolve_task_type(
            requested, data_type=data_type, has_image=has_image, has_video=has_video
        )

    def supports_disaggregation(self) -> bool:
        """False: the prefix cache stays where it was made."""
        return False

    def check_folder(self, folder: Path) -> None:
        """Refuse a damaged checkpoint, and one without what the tasks need."""
        refuse(folder, check_checkpoint(folder))
        self.placement(folder)
