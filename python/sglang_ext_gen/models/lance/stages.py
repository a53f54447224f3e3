# SPDX-License-Identifier: Apache-2.0
"""Conditioning, denoising and decoding of Lance as SGLang stages.

What one stage hands to the next: under ``CONDITIONING`` in ``batch.extra`` one
``LanceConditioning`` for each of the n outputs of a request, then ``batch.latents``
([n, I, C] float32), then pictures or frames.

Requests that arrive as a group (several prompts, several outputs a prompt) are
denoised as one batch wherever their plans agree.
"""

# SGLang's Req forwards attributes to its sampling params, and components reach a
# stage as plain objects: their types say less than is true.
# pyright: reportArgumentType=false, reportIncompatibleMethodOverride=false

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from sglang.multimodal_gen.runtime.disaggregation.roles import RoleType
from sglang.multimodal_gen.runtime.distributed import get_local_torch_device
from sglang.multimodal_gen.runtime.managers.memory_managers.component_manager import (
    ComponentUse,
)
from sglang.multimodal_gen.runtime.pipelines_core.schedule_batch import (
    OutputBatch,
    Req,
)
from sglang.multimodal_gen.runtime.server_args import ServerArgs
from torch import Tensor, nn

from sglang_ext_gen.diffusion.denoising import BatchedDenoisingStage, output_seeds
from sglang_ext_gen.diffusion.postprocess import from_levels, to_levels
from sglang_ext_gen.diffusion.stage import FamilyStage, output_batch
from sglang_ext_gen.models.lance import generation, sources, vae, visual_input
from sglang_ext_gen.models.lance.checkpoint import TRANSFORMERS, VISION_TOWERS
from sglang_ext_gen.models.lance.generation import LanceConditioning, LanceLoop
from sglang_ext_gen.models.lance.mot import LanceTransformer
from sglang_ext_gen.models.lance.options import LancePlacement
from sglang_ext_gen.models.lance.packing import Grid, pack_generation, tokenize_prompt
from sglang_ext_gen.models.lance.pipeline_config import LancePipelineConfig
from sglang_ext_gen.models.lance.request import LancePlan
from sglang_ext_gen.models.lance.sampling_params import (
    LanceSamplingParams,
    single_path,
)
from sglang_ext_gen.models.lance.schedule import Guidance, make_times
from sglang_ext_gen.models.lance.tasks import Task, Variant
from sglang_ext_gen.models.lance.tiling import Tiling

CONDITIONING = "lance_conditioning"


class LanceConditioningStage(FamilyStage):
    """Prompt and source -> tokens, vision features, source latents."""

    def __init__(
        self,
        tokenizer: object,
        modules: Mapping[str, nn.Module | None],
        placement: LancePlacement,
    ) -> None:
        super().__init__(modules)
        self.tokenizer = tokenizer
        self.placement = placement

    @torch.no_grad()
    def forward(self, batch: Req, server_args: ServerArgs) -> Req:
        """Set ``batch.extra[CONDITIONING]``."""
        plan = plan_of(batch)
        config = LancePipelineConfig.of(server_args)
        task = plan.task
        tokens = tokenize_prompt(self.tokenizer, plan.system_prompt, batch.prompt)
        seeds = output_seeds(batch)
        features, vision_grid = None, None
        latents: list[Tensor | None] = [None] * len(seeds)
        if task.source is not None:
            frames = (
                [sources.read_image(single_path(batch.image_path))]
                if task.source == "image"
                else sources.read_video(single_path(batch.video_path))
            )
            latents = [*self._encode_source(frames, plan, seeds, config.tiling)]
            if task.is_edit:
                row = VISION_TOWERS[_variant(self.placement, batch, task)]
                features, vision_grid = self._see(frames, plan, row.name)
        packed = pack_generation(
            tokens,
            target=plan.latent_grid,
            vision=vision_grid,
            source=plan.latent_grid if task.is_edit else None,
            numbering=config.uncond_positions,
        )
        batch.extra[CONDITIONING] = [
            LanceConditioning(packed, features, source, task.pins_first_frame)
            for source in latents
        ]
        return batch

    def _encode_source(
        self,
        frames: Sequence[Image.Image],
        plan: LancePlan,
        seeds: Sequence[int],
        tiling: Tiling | None,
    ) -> Iterator[Tensor]:
        """Latents of the source, one sample an output."""
        pixels = visual_input.vae_pixels(frames, plan.resolution)
        height, width = pixels.shape[-2:]
        assert (height, width) == (plan.height, plan.width), "measured before queueing"
        grid = plan.latent_grid
        if plan.task.pins_first_frame:
            grid = (1, grid[1], grid[2])
        with self.use("vae") as module:
            pixels = pixels.to(get_local_torch_device())
            posterior = vae.encode(module, pixels, tiling)
        for seed in seeds:
            noise = None
            if plan.source_latents == "sample":
                noise = generation.draw_posterior_noise(seed, grid)
            yield posterior.latents(noise)

    def _see(
        self, frames: Sequence[Image.Image], plan: LancePlan, name: str
    ) -> tuple[Tensor, Grid]:
        with self.use(name) as vision:
            patches, grid = visual_input.vit_patches(
                frames, plan.resolution, vision.config
            )
            features = vision(patches.to(get_local_torch_device()), grid)
            merge = vision.config.spatial_merge_size
        return features, (grid[0], grid[1] // merge, grid[2] // merge)


class LanceDenoisingStage(BatchedDenoisingStage):
    """Noise -> latents, against the key/value prefix of each branch.

    Args:
        pipeline: Whose modules they are.
        transformers: By component name; each task has its own.
        placement: Which task has which.
    """

    def __init__(
        self,
        pipeline: Any,
        transformers: Mapping[str, LanceTransformer | None],
        placement: LancePlacement,
    ) -> None:
        self.transformers = {n: t for n, t in transformers.items() if t is not None}
        self.placement = placement
        super().__init__(pipeline, [next(iter(self.transformers.values()))])

    def component_uses(
        self, server_args: ServerArgs, stage_name: str | None = None
    ) -> list[ComponentUse]:
        """Of both, for SGLang's placement of components."""
        name = self._component_stage_name(stage_name)
        return [
            ComponentUse(name, component, phase=component, memory_intensive=True)
            for component in self.transformers
        ]

    def schedule(self, leader: Req, server_args: ServerArgs) -> Tensor:
        """[N + 1] float32 times, falling from 1 to 0; chooses the transformer."""
        plan = plan_of(leader)
        name = TRANSFORMERS[_variant(self.placement, leader, plan.task)].name
        self.choose(self.transformers[name])
        return make_times(plan.num_inference_steps, plan.timestep_shift)

    def prepare(
        self, group: list[Req], times: Tensor, server_args: ServerArgs
    ) -> tuple[Tensor, LanceLoop]:
        """Noise [B, I, C] float32, and the prefixes of all branches."""
        conditionings = [c for batch in group for c in batch.extra.pop(CONDITIONING)]
        seeds = [seed for batch in group for seed in output_seeds(batch)]
        latents = [
            generation.initial_latents(conditioning, seed)
            for conditioning, seed in zip(conditionings, seeds, strict=True)
        ]
        guidance = _guidance(plan_of(group[0]))
        device = get_local_torch_device()
        loop = generation.start(
            self.transformer, conditionings, times, guidance, device
        )
        return torch.cat(latents), loop

    def step(
        self,
        index: int,
        latents: Tensor,
        state: LanceLoop,
        batch: Req,
        args: ServerArgs,
    ) -> Tensor:
        """One Euler step; both guidance branches are rows of one call."""
        if index and state.guided[index] != state.guided[index - 1]:
            # There are fewer rows, or more: what a cache remembers does not fit.
            self.refresh_caches(len(state.guided) - index, batch)
        velocities = self.run_transformer(
            self.transformer, latents=latents, **state.inputs(index)
        )
        return state.advance(index, latents, velocities)


class LanceDecodingStage(FamilyStage):
    """Latents -> picture or frames through the VAE."""

    role = RoleType.DECODER

    @torch.no_grad()
    def forward(self, batch: Req, server_args: ServerArgs) -> OutputBatch:
        """Decode to [n, 3, H, W], or [n, 3, F, H, W] for videos, in [0, 1]."""
        plan = plan_of(batch)
        assert batch.latents is not None, "the denoising stage ran"
        latents = batch.latents.to(get_local_torch_device())
        tiling = LancePipelineConfig.of(server_args).tiling
        with self.use("vae") as module:
            # One by one: a video's frames fill the memory already.
            decoded = [
                vae.decode(module, o.view(*plan.latent_grid, -1), tiling)
                for o in latents
            ]
        pixels = from_levels(to_levels(torch.cat(decoded)))
        is_image = plan.task.output == "image"
        return output_batch(batch, pixels[:, :, 0] if is_image else pixels)


def plan_of(batch: Req) -> LancePlan:
    """The request with all defaults."""
    assert isinstance(batch.sampling_params, LanceSamplingParams)
    return batch.sampling_params.plan()


def _variant(placement: LancePlacement, batch: Req, task: Task) -> Variant:
    # SGLang's warm-up is always t2i; any weights do for it.
    if batch.is_warmup and task.name not in placement.variants:
        return placement.loaded()[0]
    return placement.variant_of(task)


def _guidance(plan: LancePlan) -> Guidance:
    return Guidance(
        scale=plan.guidance_scale,
        interval=tuple(plan.cfg_interval),
        renorm_type=plan.cfg_renorm_type,
        renorm_min=plan.cfg_renorm_min,
    )
