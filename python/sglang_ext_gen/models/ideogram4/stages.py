# SPDX-License-Identifier: Apache-2.0
"""Text encoding, denoising and decoding of Ideogram 4 as SGLang stages.

Source: the reference pipeline of diffusers. What one stage hands to the next:
``prompt_embeds`` (one [T, F] float32 tensor), then ``latents`` ([n, I, C]
float32, n pictures of the request), then the pictures.

Requests that arrive as a group (several prompts, several outputs a prompt) are
denoised as one batch wherever size and plan agree.
"""

# SGLang's Req forwards attributes to its sampling params, and components reach a
# stage as plain objects: their types say less than is true.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportOptionalCall=false

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import torch
from sglang.multimodal_gen.runtime.disaggregation.roles import RoleType
from sglang.multimodal_gen.runtime.distributed import get_local_torch_device
from sglang.multimodal_gen.runtime.distributed.communication_op import (
    cfg_model_parallel_all_gather,
)
from sglang.multimodal_gen.runtime.distributed.parallel_state import (
    get_cfg_group,
    get_classifier_free_guidance_rank,
)
from sglang.multimodal_gen.runtime.managers.forward_context import set_forward_context
from sglang.multimodal_gen.runtime.managers.memory_managers.component_manager import (
    ComponentUse,
)
from sglang.multimodal_gen.runtime.pipelines_core.schedule_batch import (
    OutputBatch,
    Req,
)
from sglang.multimodal_gen.runtime.server_args import ServerArgs
from sglang.multimodal_gen.runtime.utils.precision import precision_to_dtype
from torch import Tensor

from sglang_ext_gen.diffusion.denoising import (
    BatchedDenoisingStage,
    output_seeds,
    scatter,
    step_timer,
)
from sglang_ext_gen.diffusion.stage import FamilyStage, output_batch
from sglang_ext_gen.models.ideogram4.checkpoint import TRANSFORMER, UNCONDITIONAL
from sglang_ext_gen.models.ideogram4.dit import PackedSequence
from sglang_ext_gen.models.ideogram4.latent_statistics import (
    LATENT_SCALE,
    LATENT_SHIFT,
)
from sglang_ext_gen.models.ideogram4.packing import (
    PIXELS_PER_TOKEN,
    image_position_ids,
    pack_text,
    tokens_to_latent_image,
)
from sglang_ext_gen.models.ideogram4.pipeline_config import (
    Ideogram4FP8PipelineConfig,
)
from sglang_ext_gen.models.ideogram4.request import DenoisingPlan, plan_denoising
from sglang_ext_gen.models.ideogram4.schedule import (
    blend_guidance,
    euler_step,
    make_times,
)
from sglang_ext_gen.models.ideogram4.text_encoder import (
    Ideogram4TextEncoder,
    check_prompt_length,
    tokenize_prompt,
)


def draw_noise(seed: int, height: int, width: int, channels: int) -> Tensor:
    """Initial latents of one picture, the same on every device.

    Returns:
        [1, I, channels] float32 on the CPU, in packed token layout.
    """
    num_tokens = (height // PIXELS_PER_TOKEN) * (width // PIXELS_PER_TOKEN)
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(
        1, num_tokens, channels, generator=generator, dtype=torch.float32
    )


class Ideogram4TextEncodingStage(FamilyStage):
    """Prompt -> features. Equal prompts of a group are encoded once."""

    deduplicated_output_fields = ("prompt_embeds",)

    def __init__(self, text_encoder: Ideogram4TextEncoder, tokenizer: Any) -> None:
        super().__init__({"text_encoder": text_encoder})
        self.tokenizer = tokenizer

    def build_dedup_fingerprint(self, batch: Req, server_args: ServerArgs) -> Hashable:
        """The prompt is all that the features depend on."""
        return batch.prompt

    @torch.no_grad()
    def forward(self, batch: Req, server_args: ServerArgs) -> Req:
        """Set ``batch.prompt_embeds`` to one [T, F] float32 tensor."""
        check_prompt_length(self.tokenizer, batch.prompt)
        token_ids = tokenize_prompt(self.tokenizer, batch.prompt)
        with self.use("text_encoder") as text_encoder:
            device = get_local_torch_device()
            features = text_encoder(torch.tensor(token_ids, device=device))
        batch.prompt_embeds = [features]
        return batch


class Ideogram4DenoisingStage(BatchedDenoisingStage):
    """Noise -> latents by Euler steps with asymmetric guidance.

    Of the two transformers one sees [text][image], the unconditional one [image]. A
    CFG-parallel rank has one of them; the second one may be left unloaded.
    """

    @torch.no_grad()
    def denoise(self, batches: list[Req], server_args: ServerArgs) -> None:
        """Set ``latents`` to [n, I, C] float32, n pictures of each request."""
        leader = batches[0]
        device = get_local_torch_device()
        plan = _plan_of(leader, server_args)
        times = make_times(
            plan.num_inference_steps, leader.height, leader.width, plan.mu, plan.std
        ).to(device)
        latents = self._draw_latents(batches).to(device)
        branches = self._pack_branches(batches, plan, device)
        trajectory = []
        with self.progress_bar(total=plan.num_inference_steps, batch=leader) as bar:
            for step, guidance in enumerate(plan.guidance):
                with (
                    step_timer(step, leader),
                    set_forward_context(step, attn_metadata=None, forward_batch=leader),
                ):
                    velocity = self._predict(
                        branches, latents, times[step], guidance, server_args
                    )
                    latents = euler_step(
                        latents, velocity, times[step], times[step + 1]
                    )
                if leader.return_trajectory_latents:
                    trajectory.append(latents.cpu())
                bar.update()
        scatter(batches, latents, trajectory, times)

    def _draw_latents(self, batches: list[Req]) -> Tensor:
        """Noise of every picture, one row each: [B, I, C] float32 on the CPU."""
        channels = next(iter(self.modules.values())).config.in_channels
        return torch.cat(
            [
                draw_noise(seed, batch.height, batch.width, channels)
                for batch in batches
                for seed in output_seeds(batch)
            ]
        )

    def _pack_branches(
        self, batches: list[Req], plan: DenoisingPlan, device: torch.device
    ) -> dict[str, tuple[PackedSequence, Tensor | None]]:
        """What each branch attends to: text and image, or the image alone."""
        features = [
            batch.prompt_embeds[0].to(device)
            for batch in batches
            for _ in range(batch.num_outputs_per_prompt)
        ]
        image = image_position_ids(batches[0].height, batches[0].width, device)
        image = image.expand(len(features), -1, -1)
        packed: dict[str, tuple[PackedSequence, Tensor | None]] = {}
        if TRANSFORMER.name in self.modules:
            text = pack_text(features)
            mask = None
            if text.has_padding:
                image_mask = text.mask.new_ones(image.shape[:2])
                mask = torch.cat([text.mask, image_mask], dim=1)
            position_ids = torch.cat([text.position_ids, image], dim=1)
            with self.use(TRANSFORMER.name) as transformer:
                sequence = transformer.pack(position_ids, mask)
                packed[TRANSFORMER.name] = (sequence, transformer.project_text(text))
        if UNCONDITIONAL.name in self.modules and plan.needs_unconditional:
            sequence = self.modules[UNCONDITIONAL.name].pack(image, None)
            packed[UNCONDITIONAL.name] = (sequence, None)
        return packed

    def _predict(
        self,
        branches: dict[str, tuple[PackedSequence, Tensor | None]],
        latents: Tensor,
        time_: Tensor,
        guidance: float,
        server_args: ServerArgs,
    ) -> Tensor:
        """Guided velocity [B, I, C] float32; guidance 1 runs one branch only."""

        def run(name: str) -> Tensor:
            sequence, text_rows = branches[name]
            with self.use(name) as transformer:
                return transformer(latents, time_, sequence, text_rows)

        if server_args.enable_cfg_parallel:
            return self._predict_on_two_ranks(run, latents, guidance)
        conditional = run(TRANSFORMER.name)
        if guidance == 1.0:
            return conditional
        return blend_guidance(conditional, run(UNCONDITIONAL.name), guidance)

    def _predict_on_two_ranks(self, run, latents: Tensor, guidance: float) -> Tensor:
        """One branch a CFG-parallel rank; both ranks get the same velocity."""
        is_conditional_rank = get_classifier_free_guidance_rank() == 0
        if guidance == 1.0:
            own = run(TRANSFORMER.name) if is_conditional_rank else latents.clone()
            return get_cfg_group().broadcast(own, src=0)
        own = run((TRANSFORMER if is_conditional_rank else UNCONDITIONAL).name)
        conditional, unconditional = cfg_model_parallel_all_gather(
            own, dim=0, separate_tensors=True
        )
        return blend_guidance(conditional, unconditional, guidance)


class Ideogram4DecodingStage(FamilyStage):
    """Latents -> picture through the VAE."""

    role = RoleType.DECODER

    def component_uses(
        self, server_args: ServerArgs, stage_name: str | None = None
    ) -> list[ComponentUse]:
        """The VAE, in its own precision; small enough to stay after a warm-up."""
        dtype = precision_to_dtype(server_args.pipeline_config.vae_precision)
        return [
            replace(
                use,
                target_dtype=dtype,
                memory_intensive=False,
                keep_ready_after_warmup=True,
            )
            for use in super().component_uses(server_args, stage_name)
        ]

    @torch.no_grad()
    def forward(self, batch: Req, server_args: ServerArgs) -> OutputBatch:
        """Decode ``batch.latents`` to [n, 3, height, width] float32 in [0, 1]."""
        latents = batch.latents.to(get_local_torch_device())
        scale = latents.new_tensor(LATENT_SCALE)
        shift = latents.new_tensor(LATENT_SHIFT)
        latent_image = tokens_to_latent_image(
            latents * scale + shift, batch.height, batch.width
        )
        dtype = precision_to_dtype(server_args.pipeline_config.vae_precision)
        with self.use("vae") as vae:
            decoded = vae.decode(latent_image.to(dtype))
        return output_batch(batch, (decoded.float() / 2 + 0.5).clamp(0, 1))


def _plan_of(batch: Req, server_args: ServerArgs) -> DenoisingPlan:
    values = batch.sampling_params.values()
    if batch.is_warmup:
        # SGLang cuts the steps of a warm-up, so a schedule would not fit them.
        values["guidance_schedule"] = None
    config = Ideogram4FP8PipelineConfig.of(server_args)
    return plan_denoising(values, has_unconditional=config.load_unconditional)
