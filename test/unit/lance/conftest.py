# SPDX-License-Identifier: Apache-2.0
"""Golden data of Lance and what the tests build from it, once a session."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from conftest import Golden
from lance_loop import generation
from sglang_ext_gen.checkpoint.build import load_component
from sglang_ext_gen.checkpoint.component import StoredComponent
from sglang_ext_gen.models.lance import packing, visual_input
from sglang_ext_gen.models.lance.checkpoint import LanceFiles, find_files
from sglang_ext_gen.models.lance.packing import PackedRequest, PromptTokens
from sglang_ext_gen.models.lance.schedule import Guidance, make_times
from sglang_ext_gen.models.lance.tasks import TASKS, Task
from sglang_ext_gen.models.lance.vision import LanceVisionTransformer

if TYPE_CHECKING:
    from sglang_ext_gen.models.lance.generation import LanceConditioning
    from sglang_ext_gen.models.lance.mot import LanceTransformer

CPU = torch.device("cpu")
GENERATION_CASES = (
    "t2i",
    "t2i_channel_renorm",
    "image_edit",
    "t2v",
    "i2v",
    "video_edit",
)
ANSWER_CASES = ("x2t_image", "x2t_video")


@dataclass(frozen=True)
class Case:
    """One golden case."""

    golden: Golden
    name: str

    @property
    def json(self) -> dict[str, Any]:
        return self.golden.json["cases"][self.name]

    @property
    def task(self) -> Task:
        return TASKS[self.json["task"]]

    def tensor(self, name: str) -> Tensor:
        return self.golden.tensor(f"{self.name}.{name}")

    def has_tensor(self, name: str) -> bool:
        return f"{self.name}.{name}" in self.golden.json["tensors"]

    def frames(self) -> list[Image.Image]:
        """The source as the user gives it, after frame sampling."""
        if "image" in self.json:
            return [Image.open(self.golden.path / self.json["image"])]
        folder = self.golden.path / self.json["video"]
        indices = visual_input.sample_frame_indices(
            self.json["source_frames"], self.json["source_fps"]
        )
        return [Image.open(folder / f"frame_{index:03d}.png") for index in indices]

    def guidance(self) -> Guidance:
        sampling = self.json["sampling"]
        return Guidance(
            scale=sampling["cfg_text_scale"],
            interval=tuple(sampling["cfg_interval"]),
            renorm_type=sampling["cfg_renorm_type"],
            renorm_min=sampling["cfg_renorm_min"],
        )

    def times(self) -> Tensor:
        sampling = self.json["sampling"]
        return make_times(sampling["num_inference_steps"], sampling["timestep_shift"])


@dataclass(frozen=True)
class Lance:
    """The tiny checkpoint, its components loaded on demand in float32."""

    golden: Golden

    @property
    def path(self) -> Path:
        return self.golden.path / "checkpoint"

    @property
    def files(self) -> LanceFiles:
        return find_files(self.path)

    def load(
        self,
        part: StoredComponent[Any],
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> Any:
        """A module, on the CPU; options are those of the pipeline config."""
        from sglang_ext_gen.models.lance.pipeline_config import LancePipelineConfig

        return load_component(
            part, dtype=dtype, device=CPU, options=LancePipelineConfig(**options)
        )

    def tokenizer(self, variant: str = "Lance_3B") -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.path / variant)

    def case(self, name: str) -> Case:
        return Case(self.golden, name)

    def transformer(self, case: Case) -> "LanceTransformer":
        return _transformer(self, case.task.variant)

    def vision(self, case: Case) -> LanceVisionTransformer:
        return _vision(self, case.task.variant)

    def vision_features(self, case: Case) -> tuple[Tensor, packing.Grid]:
        """Features and merged grid of the case's source."""
        vision = self.vision(case)
        frames = [visual_input.flatten_to_rgb(frame) for frame in case.frames()]
        patches, grid = visual_input.vit_patches(
            frames, case.json["resolution"], vision.config
        )
        with torch.no_grad():
            features = vision(patches, grid)
        merge = vision.config.spatial_merge_size
        return features, (grid[0], grid[1] // merge, grid[2] // merge)

    def prompt_tokens(self, case: Case) -> PromptTokens:
        tokenizer = self.tokenizer(case.task.variant)
        return packing.tokenize_prompt(
            tokenizer, case.task.system_prompt, case.json["prompt"]
        )

    def pack(
        self, case: Case, numbering: packing.Numbering = "released"
    ) -> PackedRequest:
        target = tuple(case.json["latent_grid_thw"])
        vision = None
        if case.task.is_edit:
            frames, height, width = case.json["vit_grid_thw"][0]
            vision = (frames, height // 2, width // 2)
        return packing.pack_generation(
            self.prompt_tokens(case),
            target=target,
            vision=vision,
            source=target if case.task.is_edit else None,
            numbering=numbering,
        )

    def pack_question(self, case: Case, grid: packing.Grid) -> list[packing.Segment]:
        tokens = self.prompt_tokens(case)
        after = (*tokens.text, *tokens.suffix)
        return [*packing.pack_answer(tokens.prefix, grid, after, tokens.special)]

    def conditioning(self, case: Case) -> "LanceConditioning":
        """With the golden source latents, so that the VAE is tested apart."""
        is_edit, has_source = case.task.is_edit, case.task.source is not None
        return generation.LanceConditioning(
            packed=self.pack(case),
            vision_features=self.vision_features(case)[0] if is_edit else None,
            source_latents=case.tensor("vae_cond_latent") if has_source else None,
            pins_first_frame=case.task.pins_first_frame,
        )


@cache
def _transformer(lance: Lance, variant: Any) -> "LanceTransformer":
    return lance.load(lance.files.transformer(variant))


@cache
def _vision(lance: Lance, variant: Any) -> LanceVisionTransformer:
    return lance.load(lance.files.vision(variant))


@pytest.fixture(scope="session")
def lance(golden_dir: Callable[[str], Path]) -> Lance:
    """The tiny Lance checkpoint with its golden data."""
    return Lance(Golden(golden_dir("lance")))


@pytest.fixture(scope="module")
def runtime() -> Iterator[None]:
    """SGLang's runtime in this process."""
    from sglang.multimodal_gen.runtime.distributed.parallel_state import (
        cleanup_dist_env_and_memory,
    )

    from qwen_image_runtime import start_runtime

    start_runtime()
    yield
    cleanup_dist_env_and_memory()
