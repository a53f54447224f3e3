# SPDX-License-Identifier: Apache-2.0
"""Run-time options of the Ideogram 4 pipeline.

The class is pickled to every worker, so it stays at module level. The
architecture is not here: each loader reads it from the checkpoint.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglang.multimodal_gen.configs.models import VAEConfig
from sglang.multimodal_gen.configs.models.vaes.flux import Flux2VAEConfig
from sglang.multimodal_gen.configs.pipeline_configs.base import (
    ImagePipelineConfig,
    ModelTaskType,
)
from sglang.multimodal_gen.runtime.utils.argparse import StoreBoolean

from sglang_ext_gen.errors import ConfigError
from sglang_ext_gen.layers.fp8_linear import FP8_MODES
from sglang_ext_gen.models.ideogram4.layout import refuse_damage


@dataclass
class Ideogram4FP8PipelineConfig(ImagePipelineConfig):
    """Options of ``DiffGenerator.from_pretrained`` and ``sglang serve``.

    Args:
        fp8_mode: What FP8 weights become at load: ``resident`` stays FP8,
            ``expanded`` becomes the compute dtype once, ``w8a8`` also quantises
            activations (other numbers, CUDA only).
        load_unconditional: False leaves the unconditional transformer on disk:
            half the memory, guidance 1 only.
    """

    # A component that our loaders refuse must not be loaded by diffusers instead.
    native_only_components: tuple[str, ...] = (
        "transformer",
        "unconditional_transformer",
        "text_encoder",
        "vae",
    )
    task_type: ModelTaskType = ModelTaskType.T2I
    dit_precision: str = "bf16"
    vae_precision: str = "bf16"
    text_encoder_precisions: tuple[str, ...] = ("bf16",)
    # Noise is always drawn on the CPU: the same seed gives the same picture
    # on any device.
    generator_device: str | None = "cpu"
    vae_config: VAEConfig = field(default_factory=Flux2VAEConfig)
    fp8_mode: str = "resident"
    load_unconditional: bool = True

    @staticmethod
    def add_pipeline_cli_args(parser: argparse.ArgumentParser) -> None:
        """Add this config's flags to ``sglang serve --model-path``; SGLang calls it."""
        parser.add_argument(
            "--fp8-mode", choices=FP8_MODES, help="what FP8 weights become at load"
        )
        parser.add_argument(
            "--load-unconditional",
            action=StoreBoolean,
            default=None,
            help="false leaves the unconditional transformer on disk: guidance 1 only",
        )

    @classmethod
    def of(cls, server_args: Any) -> "Ideogram4FP8PipelineConfig":
        """The config of a server that runs this pipeline, with its own type."""
        config = server_args.pipeline_config
        assert isinstance(config, cls), f"{type(config).__name__} is not ours"
        return config

    def supports_native_grouped_requests(self) -> bool:
        """True: the stages batch a list of requests themselves."""
        return True

    def validate_server_args(self, server_args: Any) -> None:
        """Refuse options that this pipeline does not implement, and damage.

        A local checkpoint is checked here, in the user's own process: the workers
        would find the same a minute later.

        Raises:
            ConfigError: Names the option and what is allowed.
            CheckpointError: Names what is wrong with the checkpoint.
        """
        if self.fp8_mode not in FP8_MODES:
            raise ConfigError(
                f"fp8_mode: {self.fp8_mode!r} given, "
                f"expected one of {', '.join(FP8_MODES)}"
            )
        if server_args.lora_path is not None:
            raise ConfigError("lora_path: LoRA is not supported by this pipeline")
        if server_args.enable_torch_compile:
            raise ConfigError(
                "enable_torch_compile: not supported by this pipeline; its FP8 "
                "kernel is already fused"
            )
        if server_args.enable_cfg_parallel and not self.load_unconditional:
            raise ConfigError(
                "enable_cfg_parallel: needs the unconditional transformer, which "
                "load_unconditional=False leaves out"
            )
        folder = Path(server_args.model_path)
        if folder.is_dir():
            refuse_damage(folder, require_unconditional=self.load_unconditional)
