# SPDX-License-Identifier: Apache-2.0
"""Components and stage order of Qwen-Image on SGLang's diffusion runtime."""

from math import log
from pathlib import Path
from typing import Any

from sglang.multimodal_gen.runtime.cache import cache_dit_integration
from sglang.multimodal_gen.runtime.disaggregation.roles import RoleType
from sglang.multimodal_gen.runtime.models.registry import ModelRegistry
from sglang.multimodal_gen.runtime.pipelines.qwen_image import (
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
)
from sglang.multimodal_gen.runtime.pipelines_core.diffusion_scheduler_utils import (
    calculate_linear_shift,
)
from sglang.multimodal_gen.runtime.pipelines_core.schedule_batch import Req
from sglang.multimodal_gen.runtime.pipelines_core.stages import (
    ImageEncodingStage,
    InputValidationStage,
)
from sglang.multimodal_gen.runtime.server_args import ServerArgs

from sglang_ext_gen.checkpoint.component import refuse
from sglang_ext_gen.models.qwen_image.build import QwenImageTransformerLoader
from sglang_ext_gen.models.qwen_image.checkpoint import (
    check_checkpoint,
    components_from_elsewhere,
    takes_one_reference,
)
from sglang_ext_gen.models.qwen_image.lora import AccountedLoRAPipeline
from sglang_ext_gen.models.qwen_image.request import PIXELS_PER_TOKEN
from sglang_ext_gen.models.qwen_image.stages import (
    QwenImageDenoisingStage,
    QwenImageLatentStage,
    QwenImageReferenceStage,
    QwenImageTextEncodingStage,
    QwenImageTimestepStage,
)

ModelRegistry.register_model(
    "QwenImageExtTransformer",
    "sglang_ext_gen.models.qwen_image.dit:QwenImageExtTransformer",
)
# cache-dit knows the blocks of stock's class by its name, takes every request for a
# guided one, and cannot be switched on again once it was off. By a row of its own stock
# tells it whether a request is guided, and switches it off completely.
cache_dit_integration._CUSTOM_BLOCK_ADAPTER_SPECS["QwenImageExtTransformer"] = (
    cache_dit_integration.CustomBlockAdapterSpec(
        "transformer_blocks", cache_dit_integration.ForwardPattern.Pattern_1
    )
)


class _CheckedPipeline(AccountedLoRAPipeline):
    """The stages that generation and edits share; a checkpoint is checked first."""

    component_loaders = {  # noqa: RUF012  (SGLang declares it so)
        "transformer": QwenImageTransformerLoader
    }

    def _load_config(self) -> dict[str, Any]:
        config = super()._load_config()
        path = Path(self.model_path)
        without = components_from_elsewhere(self.server_args)
        refuse(path, check_checkpoint(path, without))
        return config

    def _add_denoising_stages(self) -> None:
        """Noise, schedule, loop, VAE."""
        self.add_stage(QwenImageLatentStage())
        self.add_stage(
            QwenImageTimestepStage(
                scheduler=self.get_module("scheduler"),
                prepare_extra_set_timesteps_kwargs=[self._shift_for_size],
            )
        )
        self.add_stage_factory(
            RoleType.DENOISER,
            lambda: QwenImageDenoisingStage(
                transformer=self.get_module("transformer"),
                scheduler=self.get_module("scheduler"),
                pipeline=self,
            ),
            "denoising_stage",
        )
        self.add_standard_decoding_stage()

    def _shift_for_size(self, batch: Req, server_args: ServerArgs) -> tuple[str, float]:
        """``mu`` from the checkpoint's scheduler config; stock has it fixed."""
        config = self.get_module("scheduler").config
        tokens = batch.height * batch.width // PIXELS_PER_TOKEN**2
        if batch.flow_shift is not None:
            # The scheduler's shift is exp(mu), or mu itself.
            is_linear = config.time_shift_type == "linear"
            return "mu", batch.flow_shift if is_linear else log(batch.flow_shift)
        mu = calculate_linear_shift(
            tokens,
            base_seq_len=config.base_image_seq_len,
            max_seq_len=config.max_image_seq_len,
            base_shift=config.base_shift,
            max_shift=config.max_shift,
        )
        return "mu", mu


class QwenImageExtPipeline(_CheckedPipeline, QwenImagePipeline):
    """Text to image; see the package docstring for the data flow."""

    pipeline_name = "QwenImageExtPipeline"

    def create_pipeline_stages(self, server_args: ServerArgs) -> None:
        """Text encoding, noise, schedule, loop, VAE."""
        self.add_stage(InputValidationStage())
        self.add_stage(
            QwenImageTextEncodingStage(
                text_encoders=[self.get_module("text_encoder")],
                tokenizers=[self.get_module("tokenizer")],
            )
        )
        self._add_denoising_stages()


class QwenImageEditExtPipeline(_CheckedPipeline, QwenImageEditPlusPipeline):
    """Edits of one or several pictures."""

    pipeline_name = "QwenImageEditExtPipeline"

    def _get_extra_allowed_modules_for_role(
        self, role: RoleType, task_name: str
    ) -> set[str]:
        # The encoder role encodes references; stock knows its own pipelines by name.
        names = super()._get_extra_allowed_modules_for_role(role, task_name)
        return names | {"vae"} if role == RoleType.ENCODER else names

    def create_pipeline_stages(self, server_args: ServerArgs) -> None:
        """Text and pictures, references, noise, schedule, loop, VAE."""
        config: Any = server_args.pipeline_config
        config.is_first_release = takes_one_reference(Path(self.model_path))
        self.add_stage(InputValidationStage())
        self.add_stage(
            ImageEncodingStage(
                image_processor=self.get_module("processor"),
                text_encoder=self.get_module("text_encoder"),
            )
        )
        self.add_stage(QwenImageReferenceStage(vae=self.get_module("vae")))
        self._add_denoising_stages()
