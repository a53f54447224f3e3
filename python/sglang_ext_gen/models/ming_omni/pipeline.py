# SPDX-License-Identifier: Apache-2.0
"""Components and stage order of Ming's image generator on SGLang's diffusion runtime.

Components: ``text_encoder`` (connector and projections), ``glyph_encoder`` (the glyph
encoder, where there is one), ``transformer``, ``vae``. The thinker is a server: the
first rank starts it before it loads its own weights, and waits for it behind them.
"""

from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

from sglang.multimodal_gen.runtime.disaggregation.roles import RoleType
from sglang.multimodal_gen.runtime.distributed.parallel_state import get_world_group
from sglang.multimodal_gen.runtime.pipelines_core.composed_pipeline_base import (
    ComposedPipelineBase,
)
from sglang.multimodal_gen.runtime.server_args import ServerArgs
from sglang.multimodal_gen.runtime.utils.hf_diffusers_utils import maybe_download_model

from sglang_ext_gen.diffusion.component_loader import LIBRARY
from sglang_ext_gen.diffusion.sequence_parallel import fit_sequence_exchange
from sglang_ext_gen.errors import ConfigError
from sglang_ext_gen.models.ming_omni.byt5 import load_glyph_tokenizer
from sglang_ext_gen.models.ming_omni.layout import MingFiles, refuse_damage
from sglang_ext_gen.models.ming_omni.loaders import (
    MingAutoencoderLoader,
    MingConditionEncoderLoader,
    MingGlyphEncoderLoader,
    MingTransformerLoader,
)
from sglang_ext_gen.models.ming_omni.pipeline_config import MingImagePipelineConfig
from sglang_ext_gen.models.ming_omni.request import PIXELS_PER_TOKEN
from sglang_ext_gen.models.ming_omni.stages import (
    MingConditioningStage,
    MingDecodingStage,
    MingDenoisingStage,
)
from sglang_ext_gen.models.ming_omni.thinker_client import (
    ExpectedStates,
    OwnThinker,
    RunningThinkers,
    ThinkerClient,
)

_CLASSES = {
    "text_encoder": "ConditionEncoder",
    "glyph_encoder": "GlyphEncoder",
    "transformer": "ZImageTransformer",
    "vae": "AutoencoderKL",
}


class MingOmniImagePipeline(ComposedPipelineBase):
    """Text and pictures to picture; see the package docstring."""

    pipeline_name = "MingOmniImagePipeline"
    _required_config_modules = list(_CLASSES)  # noqa: RUF012  (copied per instance)
    component_loaders = {  # noqa: RUF012  (SGLang declares it so)
        "text_encoder": MingConditionEncoderLoader,
        "glyph_encoder": MingGlyphEncoderLoader,
        "transformer": MingTransformerLoader,
        "vae": MingAutoencoderLoader,
    }

    files: MingFiles
    thinkers: OwnThinker | RunningThinkers | None = None

    def load_modules(
        self, server_args: ServerArgs, loaded_modules: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Load after the checkpoint was checked; the thinker loads meanwhile."""
        self.model_path = maybe_download_model(
            self.model_path, revision=server_args.revision
        )
        refuse_damage(Path(self.model_path))
        self.files = MingFiles(Path(self.model_path))
        if self.files.vae.pixels_per_latent * 2 != PIXELS_PER_TOKEN:
            raise ConfigError(
                "vae/config.json: block_out_channels has "
                f"{len(self.files.vae.block_out_channels)} stages, expected 4"
            )
        fit_sequence_exchange(self.files.transformer.n_heads, server_args)
        name = "glyph_encoder"
        if not self.files.has_glyphs and name in self._required_config_modules:
            self._required_config_modules.remove(name)
        if get_world_group().is_first_rank:
            self.thinkers = _find_thinkers(self.model_path, server_args)
        modules = super().load_modules(server_args, loaded_modules)
        if self.thinkers is not None:
            self.thinkers.wait_until_ready()
        return modules

    def _load_config(self) -> dict[str, Any]:
        """What a ``model_index.json`` would say; the release has none."""
        return {
            "_class_name": self.pipeline_name,
            "_diffusers_version": "",
            **{
                name: [LIBRARY, _CLASSES[name]]
                for name in self._required_config_modules
            },
        }

    def _resolve_component_path(
        self, server_args: ServerArgs, module_name: str, load_module_name: str
    ) -> str:
        # A part may be in two folders: each loader knows its own.
        return self.model_path

    def create_pipeline_stages(self, server_args: ServerArgs) -> None:
        """Conditioning, denoising, decoding."""
        files = self.files
        # Not SGLang's input validation: it would resize references its own way.
        self.add_stage_factory(
            RoleType.ENCODER,
            lambda: MingConditioningStage(
                self.get_module("text_encoder"),
                self._glyphs(),
                self.get_module("vae"),
                files.vae,
                self._client(server_args),
            ),
            "conditioning_stage",
        )
        self.add_stage_factory(
            RoleType.DENOISER,
            lambda: MingDenoisingStage(self.get_module("transformer"), files.scheduler),
            "denoising_stage",
        )
        self.add_stage_factory(
            RoleType.DECODER,
            lambda: MingDecodingStage(self.get_module("vae"), files.vae),
            "decoding_stage",
        )

    def _glyphs(self) -> tuple[Any, Any] | None:
        if not self.files.has_glyphs:
            return None
        tokenizer = load_glyph_tokenizer(self.files.byt5, self.files.glyphs)
        return self.get_module("glyph_encoder"), tokenizer

    def _client(self, server_args: ServerArgs) -> ThinkerClient | None:
        if self.thinkers is None:
            return None
        expected = ExpectedStates(
            self.files.bridge.img_gen_scales, self.files.thinker_width
        )
        timeout_s = MingImagePipelineConfig.of(server_args).thinker_timeout_s
        client = ThinkerClient(self.thinkers, expected, timeout_s)
        client.check()
        return client


def _find_thinkers(
    model_path: str, server_args: ServerArgs
) -> OwnThinker | RunningThinkers:
    config = MingImagePipelineConfig.of(server_args)
    if urls := config.urls():
        return RunningThinkers(urls, config.thinker_timeout_s)
    thinker = OwnThinker(model_path, config.arguments(), config.thinker_devices)
    # The kernel ends it with this process, however that ends; this is the good order.
    # (A worker of multiprocessing leaves atexit out.)
    Finalize(None, thinker.stop, exitpriority=0)
    return thinker
