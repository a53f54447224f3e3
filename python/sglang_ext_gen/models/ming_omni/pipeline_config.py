# SPDX-License-Identifier: Apache-2.0
"""Run-time options of the image generator.

The class is pickled to every worker, so it stays at module level. The architecture is
not here: each loader reads it from the checkpoint.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from sglang.multimodal_gen.configs.models import VAEConfig
from sglang.multimodal_gen.configs.models.vaes.flux import FluxVAEConfig
from sglang.multimodal_gen.configs.pipeline_configs.base import (
    ImagePipelineConfig,
    ModelTaskType,
)

from sglang_ext_gen.errors import ConfigError
from sglang_ext_gen.models.ming_omni.config import TOKEN_MULTIPLE
from sglang_ext_gen.models.ming_omni.layout import refuse_damage
from sglang_ext_gen.models.ming_omni.options import (
    LOAD_OPTIONS,
    listed_arguments,
    listed_urls,
)


@dataclass
class MingImagePipelineConfig(ImagePipelineConfig):
    """Options of ``DiffGenerator.from_pretrained`` and ``sglang serve``.

    Args:
        thinker_url: Address of a running thinker, or several. None starts one.
        thinker_args: Arguments of ``sglang.launch_server`` for the one that is started.
        thinker_devices: Devices of the one that is started.
        thinker_timeout_s: Longest time that a request waits for the thinker.
    """

    # A component that our loaders refuse must not be loaded by diffusers instead.
    native_only_components: tuple[str, ...] = (
        "transformer",
        "text_encoder",
        "glyph_encoder",
        "vae",
    )
    task_type: ModelTaskType = ModelTaskType.T2I
    supported_task_types: ClassVar[tuple[ModelTaskType, ...] | None] = (
        ModelTaskType.T2I,
        ModelTaskType.I2I,
    )
    should_use_guidance: bool = False
    dit_precision: str = "bf16"
    vae_precision: str = "bf16"
    # Condition encoder and glyph encoder, both.
    text_encoder_precisions: tuple[str, ...] = ("bf16",)
    # Noise is always drawn on the CPU: the same seed gives the same picture
    # on any device.
    generator_device: str | None = "cpu"
    vae_config: VAEConfig = field(default_factory=FluxVAEConfig)
    thinker_url: str | list[str] | None = None
    thinker_args: str | list[str] | None = None
    thinker_devices: str | None = None
    thinker_timeout_s: float = 300.0

    @staticmethod
    def add_pipeline_cli_args(parser: argparse.ArgumentParser) -> None:
        """Add this config's flags to ``sglang serve --model-path``; SGLang calls it."""
        for option in LOAD_OPTIONS:
            parser.add_argument(
                "--" + option.name.replace("_", "-"),
                type=float if option.kind == "float" else str,
                help=option.help,
            )

    @classmethod
    def of(cls, server_args: Any) -> "MingImagePipelineConfig":
        """The config of a server that runs this pipeline, with its own type."""
        config = server_args.pipeline_config
        assert isinstance(config, cls), f"{type(config).__name__} is not ours"
        return config

    def urls(self) -> list[str]:
        """Addresses of running thinkers."""
        return listed_urls(self.thinker_url)

    def arguments(self) -> list[str]:
        """Arguments of the thinker to start."""
        return listed_arguments(self.thinker_args)

    def supports_native_grouped_requests(self) -> bool:
        """True: the stages batch a list of requests themselves."""
        return True

    def supports_disaggregation(self) -> bool:
        """False: the conditioning stays where it was made; the thinker is apart."""
        return False

    def validate_server_args(self, server_args: Any) -> None:
        """Refuse options that this pipeline does not implement, and damage.

        A local checkpoint is checked here, in the user's own process: the workers
        would find the same a minute later.

        Raises:
            ConfigError: Names the option and what is allowed.
            CheckpointError: Names what is wrong with the checkpoint.
        """
        for option in LOAD_OPTIONS:
            value = getattr(self, option.name)
            if value is not None:
                option.check(value)
        for url in self.urls():
            if not url.startswith(("http://", "https://")):
                raise ConfigError(f"thinker_url: {url!r} is not an http(s) address")
        for name in ("thinker_args", "thinker_devices"):
            if self.urls() and getattr(self, name):
                raise ConfigError(
                    f"{name}: for a thinker that is started, but thinker_url names one "
                    "that runs already"
                )
        if TOKEN_MULTIPLE % server_args.sp_degree:
            raise ConfigError(
                f"sp_degree: {server_args.sp_degree} given, expected a divisor of "
                f"{TOKEN_MULTIPLE}"
            )
        if server_args.lora_path is not None:
            raise ConfigError("lora_path: LoRA is not supported by this pipeline")
        if server_args.enable_torch_compile:
            raise ConfigError("enable_torch_compile: not supported by this pipeline")
        folder = Path(server_args.model_path)
        if folder.is_dir():
            refuse_damage(folder)
