# SPDX-License-Identifier: Apache-2.0
"""Run-time options of the Ideogram 4 pipeline."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from sglang.multimodal_gen.configs.models import VAEConfig
from sglang.multimodal_gen.configs.models.vaes.flux import Flux2VAEConfig
from sglang.multimodal_gen.configs.pipeline_configs.base import (
    ImagePipelineConfig,
    ModelTaskType,
)

from sglang_ext_gen.checkpoint.component import refuse
from sglang_ext_gen.diffusion.pipeline_config import FamilyPipelineConfig
from sglang_ext_gen.errors import ConfigError
from sglang_ext_gen.models.ideogram4.checkpoint import COMPONENTS, check_checkpoint
from sglang_ext_gen.models.ideogram4.options import LOAD_OPTIONS, STOCK_OPTIONS
from sglang_ext_gen.request.fields import carries


@dataclass
@carries(LOAD_OPTIONS)
class Ideogram4FP8PipelineConfig(FamilyPipelineConfig, ImagePipelineConfig):
    """Options of ``DiffGenerator.from_pretrained`` and ``sglang serve``."""

    load_options = LOAD_OPTIONS
    stock_options = STOCK_OPTIONS
    other_components: ClassVar[tuple[str, ...]] = ("tokenizer", "vae")
    # A component that our loaders refuse must not be loaded by diffusers instead.
    native_only_components: tuple[str, ...] = tuple(part.name for part in COMPONENTS)
    task_type: ModelTaskType = ModelTaskType.T2I
    dit_precision: str = "bf16"
    vae_precision: str = "bf16"
    text_encoder_precisions: tuple[str, ...] = ("bf16",)
    # Noise is always drawn on the CPU: the same seed gives the same picture
    # on any device.
    generator_device: str | None = "cpu"
    vae_config: VAEConfig = field(default_factory=Flux2VAEConfig)

    def check_options(self, server_args: Any) -> None:
        """Refuse to spread guidance branches where only one is loaded.

        Raises:
            ConfigError: Names the option.
        """
        if server_args.enable_cfg_parallel and not self.load_unconditional:
            raise ConfigError(
                "enable_cfg_parallel: needs the unconditional transformer, which "
                "load_unconditional=False leaves out"
            )

    def check_folder(self, folder: Path) -> None:
        """Refuse a damaged checkpoint.

        Raises:
            CheckpointError: Names the problems.
        """
        problems = check_checkpoint(
            folder, require_unconditional=self.load_unconditional
        )
        refuse(folder, problems)
