# SPDX-License-Identifier: Apache-2.0
"""The stages of Ming's image generator in this process, on stored query states."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from conftest import Golden
from images import decibels
from lazy import LazyModule
from ming_drawing import golden_png, golden_request
from sglang_ext_gen.errors import ThinkerError
from sglang_ext_gen.layers.fp8_linear import tensor_parallel
from sglang_ext_gen.models.ming_omni.checkpoint import (
    COMPONENTS,
    SCHEDULER,
    VAE,
    glyph_config,
)
from sglang_ext_gen.models.ming_omni.thinker_protocol import QueryStates

build = LazyModule("sglang_ext_gen.checkpoint.build")
byt5, stages = (
    LazyModule(f"sglang_ext_gen.models.ming_omni.{name}") for name in ("byt5", "stages")
)

FLOAT32: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu")}


class StoredThinker:
    """Answers with golden query states, by prompt; counts what it is asked."""

    def __init__(self, answers: dict[str, Tensor]) -> None:
        self.answers = answers
        self.asked: list[Any] = []

    def fetch(self, requests: Any) -> list[QueryStates]:
        self.asked += requests
        return [self._answer(request.prompt) for request in requests]

    def _answer(self, prompt: str) -> QueryStates:
        if prompt not in self.answers:
            raise ThinkerError(f"no stored answer for {prompt!r}")
        rows = self.answers[prompt]
        side = int(len(rows) ** 0.5)
        data = rows.contiguous().numpy().tobytes()
        return QueryStates((side,), rows.shape[1], "float32", data)


class Studio:
    """All stages of one checkpoint."""

    def __init__(
        self, golden: Golden, thinker: StoredThinker | None, server_args: Any
    ) -> None:
        root = golden.checkpoint
        glyphs = glyph_config(root)
        assert glyphs is not None
        tp_rank, tp_size = tensor_parallel()
        modules = {
            row.name: build.load_component(
                row.at(root), **FLOAT32, tp_rank=tp_rank, tp_size=tp_size
            )
            for row in COMPONENTS
        }
        transformer = modules.pop("transformer")
        vae_config = VAE.at(root).config
        self.server_args = server_args
        self.thinker = thinker
        self.condition = stages.MingOmniConditioningStage(
            modules,
            vae_config,
            byt5.load_glyph_tokenizer(root / "byt5", glyphs),
            thinker,  # type: ignore[arg-type]
        )
        self.denoise = stages.MingOmniDenoisingStage(
            None, transformer, SCHEDULER.at(root).config
        )
        self.decode = stages.MingOmniDecodingStage({"vae": modules["vae"]}, vae_config)

    def request(self, **fields: Any) -> Any:
        from sglang.multimodal_gen.configs.sample.sampling_params import SamplingParams
        from sglang.multimodal_gen.runtime.pipelines_core.schedule_batch import Req

        return Req(
            sampling_params=SamplingParams.from_user_sampling_params_args(
                self.server_args.model_path, server_args=self.server_args, **fields
            )
        )

    def draw(self, requests: list[Any]) -> list[Tensor]:
        """Pictures of a group, each [n, 3, H, W] levels."""
        self.latents(requests)
        outputs: list[Any] = [self.decode(r, self.server_args) for r in requests]
        return [(output.output * 255).floor() for output in outputs]

    def latents(self, requests: list[Any]) -> list[Tensor]:
        self.condition.run_grouped_requests(requests, self.server_args)
        self.denoise.run_grouped_requests(requests, self.server_args)
        return [request.latents for request in requests]


def golden_answers(golden: Golden) -> dict[str, Tensor]:
    """Prompt -> query states of the integrated golden checkpoint's thinker."""
    return {
        golden_request(golden, name)["prompt"]: golden.tensor(f"{name}.query_hidden")
        for name in ("t2i", "t2i_text", "edit")
    }


def stored_levels(golden: Golden, name: str) -> Tensor:
    pixels = np.asarray(Image.open(golden_png(golden, name)).convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float()


def psnr(got: Tensor, want: Tensor) -> float:
    return decibels(got / 255, want / 255)
