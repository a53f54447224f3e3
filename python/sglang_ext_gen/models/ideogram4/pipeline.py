# SPDX-License-Identifier: Apache-2.0
"""Components and stage order of Ideogram 4 on SGLang's diffusion runtime."""

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

from sglang_ext_gen.checkpoint.layout import read_json
from sglang_ext_gen.checkpoint.source import checkpoint_folder
from sglang_ext_gen.diffusion.sequence_parallel import fit_sequence_exchange
from sglang_ext_gen.models.ideogram4.layout import COMPONENTS, refuse_damage
from sglang_ext_gen.models.ideogram4.loaders import (
    Ideogram4TextEncoderLoader,
    Ideogram4TransformerLoader,
    Ideogram4UnconditionalLoader,
)
from sglang_ext_gen.models.ideogram4.pipeline_config import (
    Ideogram4FP8PipelineConfig,
)
from sglang_ext_gen.models.ideogram4.stages import (
    Ideogram4DecodingStage,
    Ideogram4DenoisingStage,
    Ideogram4TextEncodingStage,
)


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
        "unconditional_transformer": Ideogram4UnconditionalLoader,
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
        # Instead of stock's: that one asks the hub for what a folder lacks, and insists
        # on folders that are named and not needed.
        assert self.server_args is not None
        folder = checkpoint_folder(self.model_path, self.server_args.revision)
        self.model_path = str(folder)
        options = Ideogram4FP8PipelineConfig.of(self.server_args)
        refuse_damage(folder, require_unconditional=options.load_unconditional)
        config = read_json(folder / "transformer" / "config.json")
        fit_sequence_exchange(config["num_attention_heads"], self.server_args)
        index = read_json(folder / "model_index.json")
        on_disk = [name for name in COMPONENTS if (folder / name).is_dir()]
        return {
            "_class_name": index["_class_name"],
            "_diffusers_version": index.get("_diffusers_version"),
            **{name: index[name] for name in on_disk},
        }

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
