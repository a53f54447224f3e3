# SPDX-License-Identifier: Apache-2.0
"""Run-time options of the image generator."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from sglang.multimodal_gen.configs.models import VAEConfig
from sglang.multimodal_gen.configs.models.vaes.flux import FluxVAEConfig
from sglang.multimodal_gen.configs.pipeline_configs.base import (
    ImagePipelineConfig,
    ModelTaskType,
)

from sglang_ext_gen.checkpoint.component import refuse
from sglang_ext_gen.diffusion.pipeline_config import FamilyPipelineConfig
from sglang_ext_gen.errors import ConfigError
from sglang_ext_gen.models.ming_omni.checkpoint import COMPONENTS, check_checkpoint
from sglang_ext_gen.models.ming_omni.config import TOKEN_MULTIPLE, VAE_STAGES
from sglang_ext_gen.models.ming_omni.options import (
    LOAD_OPTIONS,
    STOCK_OPTIONS,
    listed_arguments,
    listed_urls,
)
from sglang_ext_gen.request.fields import carries


@dataclass
@carries(LOAD_OPTIONS)
class MingOmniPipelineConfig(FamilyPipelineConfig, ImagePipelineConfig):
    """Options of ``DiffGenerator.from_pretrained`` and ``sglang serve``."""

    load_options = LOAD_OPTIONS
    stock_options = STOCK_OPTIONS

    # A component that our loaders refuse must not be loaded by diffusers instead.
    native_only_components: tuple[str, ...] = tuple(row.name for row in COMPONENTS)
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

    def urls(self) -> list[str]:
        """Addresses of running thinkers."""
        return listed_urls(self.thinker_url)

    def arguments(self) -> list[str]:
        """Arguments of the thinker to start."""
        return listed_arguments(self.thinker_args)

    def supports_disaggregation(self) -> bool:
        """False: the conditioning stays where it was made; the thinker is apart."""
        return False

    def estimate_request_cost(self, batch: Any) -> float:
        """Latents of all outputs, for ``--batching-config``.

        SGLang's own asks its VAE config, which our loader does not fill.
        """
        latents = batch.width * batch.height / 4 ** (VAE_STAGES - 1)
        return latents * batch.num_outputs_per_prompt

    def check_options(self, server_args: Any) -> None:
        """Refuse options that do not fit together.

        Raises:
            ConfigError: Names the option and what is allowed.
        """
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

    def check_folder(self, folder: Path) -> None:
        """Refuse a local checkpoint that is damaged, in the user's own process.

        Raises:
            CheckpointError: Names what is wrong with it.
        """
        refuse(folder, check_checkpoint(folder))
