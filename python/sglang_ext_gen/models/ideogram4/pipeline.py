# SPDX-License-Identifier: Apache-2.0
"""Components and stage order of Ideogram 4 on SGLang's diffusion runtime."""

from pathlib import Path
from typing import Any

from sglang.multimodal_gen.runtime.disaggregation.roles import RoleType
from sglang.multimodal_gen.runtime.distributed.parallel_state import (
    get_classifier_free_guidance_rank,
)
from sglang.multimodal_gen.runtime.pipelines_core.stages import InputValidationStage
from sglang.multimodal_gen.runtime.server_args import ServerArgs

from sglang_ext_gen.checkpoint.layout import read_json
from sglang_ext_gen.diffusion.pipeline import FamilyPipeline
from sglang_ext_gen.diffusion.sequence_parallel import fit_sequence_exchange
from sglang_ext_gen.models.ideogram4.checkpoint import (
    TEXT_ENCODER,
    TRANSFORMER,
    UNCONDITIONAL,
)
from sglang_ext_gen.models.ideogram4.config import VAE_CLASS
from sglang_ext_gen.models.ideogram4.pipeline_config import (
    Ideogram4FP8PipelineConfig,
)
from sglang_ext_gen.models.ideogram4.stages import (
    Ideogram4DecodingStage,
    Ideogram4DenoisingStage,
    Ideogram4TextEncodingStage,
)


class Ideogram4FP8Pipeline(FamilyPipeline):
    """Text to image; see the package docstring for the data flow."""

    pipeline_name = "Ideogram4FP8Pipeline"
    components = (TEXT_ENCODER, TRANSFORMER, UNCONDITIONAL)
    stock_components = {  # noqa: RUF012  (as the base declares it)
        "tokenizer": ("transformers", "Qwen2Tokenizer"),
        "vae": ("diffusers", VAE_CLASS),
    }

    def unneeded_components(self, folder: Path, server_args: ServerArgs) -> set[str]:
        """Transformers that this rank never runs."""
        if not Ideogram4FP8PipelineConfig.of(server_args).load_unconditional:
            return {UNCONDITIONAL.name}
        if not server_args.enable_cfg_parallel:
            return set()
        is_conditional_rank = get_classifier_free_guidance_rank() == 0
        return {(UNCONDITIONAL if is_conditional_rank else TRANSFORMER).name}

    def _load_config(self) -> dict[str, Any]:
        folder = Path(self.model_path)
        heads = TRANSFORMER.at(folder).config.num_attention_heads
        fit_sequence_exchange(heads, self.server_args)
        # Stock loads the two classes of tokenizer differently.
        stated = read_json(folder / "model_index.json")["tokenizer"]
        return {**super()._load_config(), "tokenizer": stated}

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
                self,
                self.get_module(TRANSFORMER.name),
                self.get_module(UNCONDITIONAL.name),
            ),
            "denoising_stage",
        )
        self.add_stage_factory(
            RoleType.DECODER,
            lambda: Ideogram4DecodingStage({"vae": self.get_module("vae")}),
            "decoding_stage",
        )
