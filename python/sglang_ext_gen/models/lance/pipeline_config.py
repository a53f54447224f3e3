# SPDX-License-Identifier: Apache-2.0
"""Run-time options of the Lance pipeline.

The class is pickled to every worker, so it stays at module level. The
architecture is not here: each loader reads it from the checkpoint.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from sglang.multimodal_gen.configs.models import DiTConfig, VAEConfig
from sglang.multimodal_gen.configs.models.vaes import WanVAEConfig
from sglang.multimodal_gen.configs.pipeline_configs.base import (
    ModelTaskType,
    PipelineConfig,
)
from sglang.multimodal_gen.configs.sample.sampling_params import DataType

from sglang_ext_gen.errors import ConfigError
from sglang_ext_gen.models.lance.layout import (
    VisionSource,
    WeightFormat,
    find_files,
)
from sglang_ext_gen.models.lance.options import (
    LOAD_OPTIONS,
    LancePlacement,
    place_tasks,
)
from sglang_ext_gen.models.lance.packing import Numbering
from sglang_ext_gen.models.lance.request import TASK_TYPES
from sglang_ext_gen.models.lance.tiling import Tiling
from sglang_ext_gen.request import load_options

_SGLANG_NAMES = {official: name for name, official in TASK_TYPES.items()}


@dataclass
class LancePipelineConfig(PipelineConfig):
    """Options of ``DiffGenerator.from_pretrained`` and ``sglang serve``.

    Args:
        variant: Run every task on this checkpoint directory.
        tasks: Tasks to serve, separated by commas; None is all that can be.
        vision_source: Vision tower of edits.
        uncond_positions: Positions of the branch without the user's text.
        weight_format: Of the decoder's linears in memory.
        vae_tiles: Whether large frames go through the VAE in tiles.
    """

    # A component that our loaders refuse must not be loaded by diffusers instead.
    native_only_components: tuple[str, ...] = (
        "transformer",
        "transformer_2",
        "image_encoder",
        "image_encoder_2",
        "vae",
    )
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
    variant: str | None = None
    tasks: str | None = None
    vision_source: VisionSource = "checkpoint"
    uncond_positions: Numbering = "released"
    weight_format: WeightFormat = "released"
    vae_tiles: Literal["off", "on"] = "off"

    @staticmethod
    def add_pipeline_cli_args(parser: argparse.ArgumentParser) -> None:
        """Add this config's flags to ``sglang serve --model-path``; SGLang calls it."""
        load_options.add_flags(parser, LOAD_OPTIONS)

    @property
    def tiling(self) -> Tiling | None:
        """How the VAE cuts large frames; None for not at all."""
        return Tiling() if self.vae_tiles == "on" else None

    def placement(self, path: Path) -> LancePlacement:
        """Which tasks run, and on which checkpoint directory.

        Args:
            path: The local checkpoint that the user named.

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

    def supports_native_grouped_requests(self) -> bool:
        """True: the stages batch a list of requests themselves."""
        return True

    def supports_disaggregation(self) -> bool:
        """False: the prefix cache stays where it was made."""
        return False

    def validate_server_args(self, server_args: Any) -> None:
        """Refuse options that this pipeline does not implement.

        Raises:
            ConfigError: Names the option and what is allowed.
        """
        for option in LOAD_OPTIONS:
            value = getattr(self, option.name)
            if value is not None:
                option.check(value)
        if server_args.num_gpus > 1:
            raise ConfigError(
                f"num_gpus: {server_args.num_gpus} given; this pipeline runs on one "
                "device, start one server a device"
            )
        if server_args.lora_path is not None:
            raise ConfigError("lora_path: LoRA is not supported by this pipeline")
        if server_args.enable_torch_compile:
            raise ConfigError("enable_torch_compile: not supported by this pipeline")
