# SPDX-License-Identifier: Apache-2.0
"""Components and stage order of Lance on SGLang's diffusion runtime.

One pipeline serves every generation task. Components: ``transformer`` and
``image_encoder`` of ``Lance_3B``, ``transformer_2`` and ``image_encoder_2`` of
``Lance_3B_Video``, the VAE and the tokenizer; only those that the served tasks need
are loaded.
"""

from pathlib import Path
from typing import Any

from sglang.multimodal_gen.runtime.disaggregation.roles import RoleType
from sglang.multimodal_gen.runtime.pipelines_core.composed_pipeline_base import (
    ComposedPipelineBase,
)
from sglang.multimodal_gen.runtime.server_args import ServerArgs
from sglang.multimodal_gen.runtime.utils.hf_diffusers_utils import maybe_download_model

from sglang_ext_gen.diffusion.component_loader import LIBRARY
from sglang_ext_gen.errors import CheckpointError
from sglang_ext_gen.models.lance.layout import check_checkpoint, find_files
from sglang_ext_gen.models.lance.loaders import (
    LanceTokenizerLoader,
    LanceTransformerLoader,
    LanceVAELoader,
    LanceVisionLoader,
)
from sglang_ext_gen.models.lance.options import LancePlacement
from sglang_ext_gen.models.lance.pipeline_config import LancePipelineConfig
from sglang_ext_gen.models.lance.stages import (
    TRANSFORMERS,
    VISION_TOWERS,
    LanceConditioningStage,
    LanceDecodingStage,
    LanceDenoisingStage,
)
from sglang_ext_gen.models.lance.tasks import Variant

_SHOWN_PROBLEMS = 5
_CLASSES = {
    "transformer": "LanceTransformer",
    "transformer_2": "LanceTransformer",
    "image_encoder": "LanceVisionTransformer",
    "image_encoder_2": "LanceVisionTransformer",
    "vae": "AutoencoderKLWan",
    "tokenizer": "Qwen2Tokenizer",
}


def needed_components(placement: LancePlacement) -> set[str]:
    """Names of the components that the served tasks use; no other is loaded."""
    return {
        *(TRANSFORMERS[name] for name in placement.loaded()),
        *(VISION_TOWERS[name] for name in placement.vision()),
        "vae",
        "tokenizer",
    }


class LancePipeline(ComposedPipelineBase):
    """Text, picture or video to picture or video; see the package docstring."""

    pipeline_name = "LancePipeline"
    is_video_pipeline = True
    _required_config_modules = list(_CLASSES)  # noqa: RUF012  (copied per instance)
    component_loaders = {  # noqa: RUF012  (SGLang declares it so)
        "transformer": LanceTransformerLoader,
        "transformer_2": LanceTransformerLoader,
        "image_encoder": LanceVisionLoader,
        "image_encoder_2": LanceVisionLoader,
        "vae": LanceVAELoader,
        "tokenizer": LanceTokenizerLoader,
    }

    placement: LancePlacement

    def load_modules(
        self, server_args: ServerArgs, loaded_modules: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Load what the served tasks need, after the checkpoint was checked."""
        self.model_path = maybe_download_model(
            self.model_path, revision=server_args.revision
        )
        config = server_args.pipeline_config
        assert isinstance(config, LancePipelineConfig)
        self.placement = config.placement(Path(self.model_path))
        needed = needed_components(self.placement)
        for name in _CLASSES:
            if name not in needed and name in self._required_config_modules:
                self._required_config_modules.remove(name)
        return super().load_modules(server_args, loaded_modules)

    def _load_config(self) -> dict[str, Any]:
        """What a ``model_index.json`` would say; the release has none."""
        problems = check_checkpoint(Path(self.model_path))
        if problems:
            shown = "; ".join(problems[:_SHOWN_PROBLEMS])
            raise CheckpointError(
                f"{self.model_path}: {len(problems)} problem(s): {shown}. Run "
                f"`sglang-ext-gen doctor --model {self.model_path}` for all of them"
            )
        return {
            "_class_name": self.pipeline_name,
            "_diffusers_version": "",
            **{name: [LIBRARY, cls] for name, cls in _CLASSES.items()},
        }

    def _resolve_component_path(
        self, server_args: ServerArgs, module_name: str, load_module_name: str
    ) -> str:
        files = find_files(Path(self.model_path))
        if module_name == "vae":
            return str(files.root)
        if module_name == "tokenizer":
            return str(files.folder(self.placement.loaded()[0]))
        folders: dict[str, Variant] = {
            component: variant
            for table in (TRANSFORMERS, VISION_TOWERS)
            for variant, component in table.items()
        }
        return str(files.folder(folders[module_name]))

    def create_pipeline_stages(self, server_args: ServerArgs) -> None:
        """Conditioning, denoising, decoding."""
        self.add_stage_factory(
            RoleType.ENCODER,
            lambda: LanceConditioningStage(
                self.get_module("tokenizer"),
                self._modules("vae", *VISION_TOWERS.values()),
                self.placement,
            ),
            "conditioning_stage",
        )
        self.add_stage_factory(
            RoleType.DENOISER,
            lambda: LanceDenoisingStage(
                self._modules(*TRANSFORMERS.values()), self.placement
            ),
            "denoising_stage",
        )
        self.add_stage_factory(
            RoleType.DECODER,
            lambda: LanceDecodingStage(self._modules("vae"), self.placement),
            "decoding_stage",
        )

    def _modules(self, *names: str) -> dict[str, Any]:
        loaded = {name: self.get_module(name) for name in names}
        return {name: module for name, module in loaded.items() if module is not None}
