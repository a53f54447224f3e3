# SPDX-License-Identifier: Apache-2.0
"""What ``bench_lance.py`` measures: cases, their sources, and the modules they need."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from sglang.multimodal_gen.runtime.managers.forward_context import set_forward_context
from torch import Tensor
from transformers import AutoTokenizer

from sglang_ext_gen.checkpoint.build import load_component
from sglang_ext_gen.checkpoint.component import StoredComponent
from sglang_ext_gen.models.lance import generation, sources, vae, visual_input
from sglang_ext_gen.models.lance.checkpoint import (
    VAE,
    VAE_DECODER,
    LanceFiles,
    find_files,
)
from sglang_ext_gen.models.lance.generation import LanceConditioning, LanceLoop
from sglang_ext_gen.models.lance.mot import LanceTransformer
from sglang_ext_gen.models.lance.options import takes_sources
from sglang_ext_gen.models.lance.packing import Grid, pack_generation, tokenize_prompt
from sglang_ext_gen.models.lance.pipeline_config import LancePipelineConfig
from sglang_ext_gen.models.lance.request import make_plan
from sglang_ext_gen.models.lance.schedule import Guidance
from sglang_ext_gen.models.lance.tasks import TASKS, Variant
from sglang_ext_gen.models.lance.vision import LanceVisionTransformer

SEED = 0
PROMPT = "A red fox sleeping on a wooden bench in the snow, soft morning light."


@dataclass(frozen=True)
class Case:
    """One task at one size; what a request would say."""

    task: str
    fields: dict[str, Any]
    source_frames: int = 0

    @property
    def variant(self) -> Variant:
        return TASKS[self.task].variant


SMALL = (
    Case("t2i", {"width": 256, "height": 192}),
    Case("image_edit", {"resolution": "image_256res"}, 1),
    Case("t2v", {"width": 192, "height": 128, "num_frames": 9}),
    Case("i2v", {"resolution": "video_192p", "num_frames": 5}, 1),
    Case("video_edit", {"resolution": "video_192p"}, 9),
)
OFFICIAL = (
    Case("t2i", {}),
    Case("image_edit", {}, 1),
    Case("t2v", {"num_frames": 49}),
    Case("i2v", {}, 1),
    Case("video_edit", {}, 72),
)


@dataclass(frozen=True)
class Setting:
    """What is measured, on what."""

    path: Path
    cases: Sequence[Case]
    steps: int
    repeats: int
    sources: Path
    device: torch.device

    @property
    def files(self) -> LanceFiles:
        return find_files(self.path)


def write_sources(folder: Path) -> Path:
    """Write a picture and the videos of the cases, all noise; returns the folder."""
    generator = np.random.default_rng(SEED)
    noise = generator.integers(0, 255, (72, 240, 320, 3), "uint8")
    Image.fromarray(noise[0]).save(folder / "image.png")
    for case in (*SMALL, *OFFICIAL):
        if case.source_frames > 1:
            with av.open(str(folder / f"{case.source_frames}.mp4"), "w") as container:
                track = container.add_stream("mpeg4", rate=12)
                track.width, track.height = 320, 240
                for pixels in noise[: case.source_frames]:
                    frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
                    container.mux(track.encode(frame))
                container.mux(track.encode(None))
    return folder


def source_file(setting: Setting, case: Case) -> str:
    """The source of a case that has one."""
    name = "image.png" if case.source_frames == 1 else f"{case.source_frames}.mp4"
    return str(setting.sources / name)


class Parts:
    """The modules that some tasks need, each loaded at its first use.

    Args:
        setting: Whose checkpoint.
        tasks: Decide whether the VAE has an encoder.
    """

    def __init__(self, setting: Setting, tasks: Sequence[str]) -> None:
        self.files = setting.files
        self._vae = VAE if takes_sources(",".join(tasks)) else VAE_DECODER
        self._device = setting.device
        self._modules: dict[tuple[str, Path], Any] = {}

    def vae(self) -> Any:
        return self._load(self._vae.at(self.files.root))

    def transformer(self, variant: Variant) -> LanceTransformer:
        return self._load(self.files.transformer(variant))

    def vision(self, variant: Variant) -> LanceVisionTransformer:
        return self._load(self.files.vision(variant))

    def nbytes(self) -> int:
        modules = self._modules.values()
        return sum(p.nbytes for module in modules for p in module.parameters())

    def _load(self, part: StoredComponent[Any]) -> Any:
        key = (part.component.name, part.folder)
        if key not in self._modules:
            self._modules[key] = load_component(
                part,
                dtype=torch.float32,
                device=self._device,
                options=LancePipelineConfig(),
            )
        return self._modules[key]


@torch.no_grad()
def condition(setting: Setting, parts: Parts, case: Case) -> LanceConditioning:
    """What the conditioning stage makes of a case."""
    task, device = TASKS[case.task], setting.device
    plan = make_plan(task, case.fields)
    features = vision_grid = latents = None
    if task.source is not None:
        frames = read_source(setting, case)
        pixels = visual_input.vae_pixels(frames, plan.resolution)
        height, width = pixels.shape[-2:]
        num_frames = pixels.shape[2] if task.is_edit else plan.num_frames
        plan = replace(plan, num_frames=num_frames, height=height, width=width)
        latents = vae.encode(parts.vae(), pixels.to(device)).mean
        if task.is_edit:
            features, vision_grid = see(
                parts.vision(case.variant), frames, plan.resolution, device
            )
    tokenizer = AutoTokenizer.from_pretrained(setting.files.folder(case.variant))
    packed = pack_generation(
        tokenize_prompt(tokenizer, plan.system_prompt, PROMPT),
        target=plan.latent_grid,
        vision=vision_grid,
        source=plan.latent_grid if task.is_edit else None,
    )
    return LanceConditioning(packed, features, latents, task.pins_first_frame)


def read_source(setting: Setting, case: Case) -> list[Image.Image]:
    file = source_file(setting, case)
    if TASKS[case.task].source == "image":
        return [sources.read_image(file)]
    return sources.read_video(file)


def see(
    vision: LanceVisionTransformer,
    frames: Sequence[Image.Image],
    resolution: str,
    device: torch.device,
) -> tuple[Tensor, Grid]:
    """Features of a picture or video and their grid."""
    patches, grid = visual_input.vit_patches(frames, resolution, vision.config)
    merge = vision.config.spatial_merge_size
    features = vision(patches.to(device), grid)
    return features, (grid[0], grid[1] // merge, grid[2] // merge)


@torch.no_grad()
def run_step(
    transformer: LanceTransformer, loop: LanceLoop, index: int, latents: Tensor
) -> Tensor:
    """[B, I, C] latents -> the same after a step, outside of any request."""
    with set_forward_context(index, attn_metadata=None, forward_batch=None):
        velocities = transformer(latents, **loop.inputs(index))
    return loop.advance(index, latents, velocities)


def denoise(
    transformer: LanceTransformer,
    conditioning: LanceConditioning,
    latents: Tensor,
    times: Tensor,
    guidance: Guidance,
) -> Tensor:
    """[1, I, C] noise -> [1, I, C] latents, all steps."""
    device = latents.device
    loop = generation.start(transformer, [conditioning], times, guidance, device)
    for index in range(len(loop.guided)):
        latents = run_step(transformer, loop, index, latents)
    return latents
