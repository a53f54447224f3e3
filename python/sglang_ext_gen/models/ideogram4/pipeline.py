# SPDX-License-Identifier: Apache-2.0
"""Components and stage order of Ideogram 4 on SGLang's diffusion runtime."""

from pathlib import Path
from typing import Any

from sglang.multimodal_gen.runtime.disaggregation.roles import RoleType
from sglang.multimodal_gen.runtime.distributed.parallel_state import (
    get_classifier_free_guidance_rank,
)
from sglang.multimodal_gen.runtime.pipelines_core.composed_pipeline_base import (
    ComposedPipelineBase,
)
from sglang.multimodal_gen.runtime.pipelines_core.stages import InputValidationStage
from sglang.multimodal_gen.runtime.server_args import ServerArgs
from sglang.multimodal_gen.runtime.utils.hf_diffusers_utils import (
    maybe_download_model,
)

from sglang_ext_gen.layers.sequence_parallel import fit_sequence_exchange
from sglang_ext_gen.models.ideogram4.layout import refuse_damage
from sglang_ext_gen.models.ideogram4.loaders import (
    Ideogram4TextEncoderLoader,
    Ideogram4TransformerLoader,
)
from sglang_ext_gen.models.ideogram4.pipeline_config import (
    Ideogram4FP8PipelineConfig,
)
from sglang_ext_gen.models.ideogram4.stages import (
    Ideogram4DecodingStage,
    Ideogram4DenoisingStage,
    Ideogram4TextEncodingStage,
)
from sglang_ext_gen.weights.layout import read_json


class Ideogram4FP8Pipeline(ComposedPipelineBase):
    """Text to image; see the package docstring for the data flow."""

    pipeline_name = "Ideogram4FP8Pipeline"
    _required_config_modules = [  # noqa: RUF012  (SGLang copies it per instance)
        "text_encoder",
        "tokenizer",
        "vae",
        "transformer",
        "unconditional_transformer",
    ]
    component_loaders = {  # noqa: RUF012  (SGLang declares it so)
        "text_encoder": Ideogram4TextEncoderLoader,
        "transformer": Ideogram4TransformerLoader,
        "unconditional_transformer": Ideogram4TransformerLoader,
    }

    def load_modules(
        self, server_args: ServerArgs, loaded_modules: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Load what this rank needs, after the whole checkpoint was checked."""
        for name in _unneeded_components(server_args):
            if name in self._required_config_modules:
                self._required_config_modules.remove(name)
        return super().load_modules(server_args, loaded_modules)

    def _load_config(self) -> dict[str, Any]:
        # Before stock looks: it would ask the hub for what a folder lacks.
        if not Path(self.model_path).is_dir():
            self.model_path = maybe_download_model(
                self.model_path, force_diffusers_model=True
            )
        assert self.server_args is not None
        refuse_damage(
            Path(self.model_path),
            require_unconditional=Ideogram4FP8PipelineConfig.of(
                self.server_args
            ).load_unconditional,
        )
        config = read_json(Path(self.model_path) / "transformer" / "config.json")
        fit_sequence_exchange(config["num_attention_heads"], self.server_args)
        return super()._load_config()

    def create_pipeline_stages(self, server_args: ServerArgs) -> None:
        """Text encoding, denoising, decoding; each states its disaggregated role."""
        self.add_stage(InputValidationStage())
        self.add_stage_factory(
            RoleType.ENCODER,
            lambda: Ideogram4TextEncodingStage(
                self.get_module("text_encoder"), self.get_module("tokenizer")
            ),
            "text_encoding_stage",
        )
        self.add_stage_factory(
            RoleType.DENOISER,
            lambda: Ideogram4DenoisingStage(
                self.get_module("transformer"),
                self.get_module("unconditional_transformer"),
            ),
            "denoising_stage",
        )
        self.add_stage_factory(
            RoleType.DECODER,
            lambda: Ideogram4DecodingStage(self.get_module("vae")),
            "decoding_stage",
        )


def _unneeded_components(server_args: ServerArgs) -> tuple[str, ...]:
    """Transformers that this rank never runs, and so does not load."""
    if not Ideogram4FP8PipelineConfig.of(server_args).load_unconditional:
        return ("unconditional_transformer",)
    if not server_args.enable_cfg_parallel:
        return ()
    if get_classifier_free_guidance_rank() == 0:
        return ("unconditional_transformer",)
    return ("transformer",)
