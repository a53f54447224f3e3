# SPDX-License-Identifier: Apache-2.0
"""Components and stage order of Ming's image generator on SGLang's diffusion runtime.

The thinker is a server: the first rank starts it before it loads its own weights, and
waits for it behind them.
"""

from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

from sglang.multimodal_gen.runtime.disaggregation.roles import RoleType
from sglang.multimodal_gen.runtime.distributed.parallel_state import get_replica_group
from sglang.multimodal_gen.runtime.server_args import ServerArgs

from sglang_ext_gen.diffusion.pipeline import FamilyPipeline
from sglang_ext_gen.diffusion.sequence_parallel import fit_sequence_exchange
from sglang_ext_gen.models.ming_omni.byt5 import load_glyph_tokenizer
from sglang_ext_gen.models.ming_omni.checkpoint import (
    COMPONENTS,
    GLYPH_ENCODER,
    SCHEDULER,
    TRANSFORMER,
    VAE,
    glyph_config,
    has_glyphs,
)
from sglang_ext_gen.models.ming_omni.pipeline_config import MingOmniPipelineConfig
from sglang_ext_gen.models.ming_omni.stages import (
    MingOmniConditioningStage,
    MingOmniDecodingStage,
    MingOmniDenoisingStage,
)
from sglang_ext_gen.models.ming_omni.thinker_client import (
    ExpectedStates,
    OwnThinker,
    RunningThinkers,
    ThinkerClient,
)


class MingOmniImagePipeline(FamilyPipeline):
    """Text and pictures to picture; see the package docstring."""

    pipeline_name = "MingOmniImagePipeline"
    components = COMPONENTS
    has_index = False

    thinkers: OwnThinker | RunningThinkers | None = None

    def unneeded_components(self, folder: Path, server_args: ServerArgs) -> set[str]:
        """The glyph encoder, where there is none."""
        return set() if has_glyphs(folder) else {GLYPH_ENCODER.name}

    def before_loading(self, folder: Path, server_args: ServerArgs) -> None:
        """Start the thinker, which loads meanwhile."""
        fit_sequence_exchange(TRANSFORMER.at(folder).config.n_heads, server_args)
        if get_replica_group().is_first_rank:
            self.thinkers = _find_thinkers(folder, server_args)

    def load_modules(
        self, server_args: ServerArgs, loaded_modules: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Load, then wait for the thinker."""
        modules = super().load_modules(server_args, loaded_modules)
        if self.thinkers is not None:
            self.thinkers.wait_until_ready()
        return modules

    def create_pipeline_stages(self, server_args: ServerArgs) -> None:
        """Conditioning, denoising, decoding."""
        folder = Path(self.model_path)
        vae_config = VAE.at(folder).config
        # Not SGLang's input validation: it would resize references its own way.
        self.add_stage_factory(
            RoleType.ENCODER,
            lambda: MingOmniConditioningStage(
                {
                    name: self.get_module(name)
                    for name in ("text_encoder", "glyph_encoder", "vae")
                },
                vae_config,
                self._glyph_tokenizer(folder),
                self._client(server_args),
            ),
            "conditioning_stage",
        )
        self.add_stage_factory(
            RoleType.DENOISER,
            lambda: MingOmniDenoisingStage(
                self, self.get_module("transformer"), SCHEDULER.at(folder).config
            ),
            "denoising_stage",
        )
        self.add_stage_factory(
            RoleType.DECODER,
            lambda: MingOmniDecodingStage({"vae": self.get_module("vae")}, vae_config),
            "decoding_stage",
        )

    def _glyph_tokenizer(self, folder: Path) -> Any:
        config = glyph_config(folder)
        if config is None:
            return None
        return load_glyph_tokenizer(GLYPH_ENCODER.at(folder).folder, config)

    def _client(self, server_args: ServerArgs) -> ThinkerClient | None:
        if self.thinkers is None:
            return None
        encoder: Any = self.get_module("text_encoder")
        expected = ExpectedStates(encoder.config.img_gen_scales, encoder.thinker_width)
        timeout_s = MingOmniPipelineConfig.of(server_args).thinker_timeout_s
        client = ThinkerClient(self.thinkers, expected, timeout_s)
        client.check()
        return client


def _find_thinkers(
    folder: Path, server_args: ServerArgs
) -> OwnThinker | RunningThinkers:
    config = MingOmniPipelineConfig.of(server_args)
    if urls := config.urls():
        return RunningThinkers(urls, config.thinker_timeout_s)
    thinker = OwnThinker(str(folder), config.arguments(), config.thinker_devices)
    # The kernel ends it with this process, however that ends; this is the good order.
    # (A worker of multiprocessing leaves atexit out.)
    Finalize(None, thinker.stop, exitpriority=0)
    return thinker
