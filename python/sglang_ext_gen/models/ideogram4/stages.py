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
# pyright: reportReturnType=false

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
from sglang.multimodal_gen.runtime.breakable_cuda_graph.prompt_padding import (
    register_prompt_padder,
)
from sglang.multimodal_gen.runtime.disaggregation.roles import RoleType
from sglang.multimodal_gen.runtime.distributed import get_local_torch_device
from sglang.multimodal_gen.runtime.distributed.communication_op import (
    cfg_model_parallel_all_gather,
)
from sglang.multimodal_gen.runtime.distributed.parallel_state import (
    get_cfg_group,
    get_classifier_free_guidance_rank,
)
from sglang.multimodal_gen.runtime.managers.memory_managers.component_manager import (
    ComponentUse,
)
from sglang.multimodal_gen.runtime.pipelines_core.schedule_batch import (
    OutputBatch,
    Req,
)
from sglang.multimodal_gen.runtime.pipelines_core.stages.denoising import (
    DualTransformerExecutionMode,
)
from sglang.multimodal_gen.runtime.server_args import ServerArgs
from sglang.multimodal_gen.runtime.utils.precision import precision_to_dtype
from torch import Tensor

from sglang_ext_gen.diffusion.denoising import BatchedDenoisingStage, output_seeds
from sglang_ext_gen.diffusion.stage import FamilyStage, output_batch
from sglang_ext_gen.models.ideogram4.cuda_graphs import pad_prompt
from sglang_ext_gen.models.ideogram4.dit import Ideogram4Transformer, PackedSequence
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

# CUDA graphs of the transformer take prompts of many lengths.
register_prompt_padder(
    lambda model, _: isinstance(model, Ideogram4Transformer), pad_prompt
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


@dataclass(frozen=True)
class Ideogram4Loop:
    """What the steps of a group share.

    Args:
        plan: Steps and their guidance.
        times: [N + 1] float32 in [0, 1] on the device.
        conditional: Text and image of each row; None where this rank lacks it.
        text_rows: [B, T, D] of the conditional branch.
        unconditional: The image alone; None where no step needs it here.
    """

    plan: DenoisingPlan
    times: Tensor
    conditional: PackedSequence | None = None
    text_rows: Tensor | None = None
    unconditional: PackedSequence | None = None


class Ideogram4DenoisingStage(BatchedDenoisingStage):
    """Noise -> latents by Euler steps with asymmetric guidance.

    Of the two transformers one sees [text][image], the unconditional one [image]. A
    CFG-parallel rank has one of them; the second one may be left unloaded.

    Args:
        pipeline: Whose modules they are.
        conditional: The transformer that sees the text, or None.
        unconditional: The one that does not, or None.
    """

    def __init__(
        self,
        pipeline: Any,
        conditional: Ideogram4Transformer | None,
        unconditional: Ideogram4Transformer | None,
    ) -> None:
        self.has_conditional = conditional is not None
        super().__init__(pipeline, [t for t in (conditional, unconditional) if t])

    @property
    def conditional(self) -> Ideogram4Transformer:
        """The transformer that sees the text."""
        assert self.has_conditional, "this rank has the other branch"
        return self.transformer

    @property
    def unconditional(self) -> Ideogram4Transformer:
        """The transformer that sees the image alone."""
        return self.transformer_2 if self.has_conditional else self.transformer

    def schedule(self, leader: Req, server_args: ServerArgs) -> Tensor:
        """[N + 1] float32 times, rising from noise to picture."""
        plan = _plan_of(leader, server_args)
        return make_times(
            plan.num_inference_steps, leader.height, leader.width, plan.mu, plan.std
        )

    def prepare(
        self, group: list[Req], times: Tensor, server_args: ServerArgs
    ) -> tuple[Tensor, Ideogram4Loop]:
        """Noise of every picture, [B, I, C] float32, and what each branch sees."""
        leader, device = group[0], get_local_torch_device()
        plan = _plan_of(leader, server_args)
        loop = Ideogram4Loop(plan, times.to(device))
        features = [
            batch.prompt_embeds[0].to(device)
            for batch in group
            for _ in range(batch.num_outputs_per_prompt)
        ]
        image = image_position_ids(leader.height, leader.width, device)
        image = image.expand(len(features), -1, -1)
        if self.has_conditional:
            text = pack_text(features)
            mask = None
            if text.has_padding:
                image_mask = text.mask.new_ones(image.shape[:2])
                mask = torch.cat([text.mask, image_mask], dim=1)
            position_ids = torch.cat([text.position_ids, image], dim=1)
            loop = replace(
                loop,
                conditional=self.conditional.pack(position_ids, mask),
                text_rows=self.conditional.project_text(text),
            )
        if self.unconditional is not None and plan.needs_unconditional:
            loop = replace(loop, unconditional=self.unconditional.pack(image, None))
        channels = self.transformer.config.in_channels
        latents = [
            draw_noise(seed, leader.height, leader.width, channels)
            for batch in group
            for seed in output_seeds(batch)
        ]
        return torch.cat(latents), loop

    def step(
        self,
        index: int,
        latents: Tensor,
        state: Ideogram4Loop,
        batch: Req,
        args: ServerArgs,
    ) -> Tensor:
        """One Euler step; guidance 1 runs one branch only."""
        guidance = state.plan.guidance[index]
        time, end = state.times[index], state.times[index + 1]

        def conditional() -> Tensor:
            self.use_transformer(self.conditional, batch)
            return self.run_transformer(
                self.conditional,
                latents=latents,
                time=time,
                sequence=state.conditional,
                text_rows=state.text_rows,
            )

        def unconditional() -> Tensor:
            self.use_transformer(self.unconditional, batch)
            return self.run_transformer(
                self.unconditional,
                latents=latents,
                time=time,
                sequence=state.unconditional,
            )

        if args.enable_cfg_parallel:
            velocity = _on_two_ranks(conditional, unconditional, latents, guidance)
        elif guidance == 1.0:
            velocity = conditional()
        else:
            velocity = blend_guidance(conditional(), unconditional(), guidance)
        return euler_step(latents, velocity, time, end)

    # Stock's names for two transformers that both run in a step, and their cache.

    def _cache_dit_dual_model_name(self) -> str:
        return "ideogram4"

    def _dual_transformer_execution_mode(self) -> DualTransformerExecutionMode | None:
        if self.transformer_2 is None:
            return None
        return DualTransformerExecutionMode.PAIRED_PER_STEP

    def _cache_dit_secondary_uses_primary_config(self) -> bool:
        return True


def _on_two_ranks(
    conditional: Callable[[], Tensor],
    unconditional: Callable[[], Tensor],
    latents: Tensor,
    guidance: float,
) -> Tensor:
    """One branch a CFG-parallel rank; both ranks get the same velocity."""
    is_conditional_rank = get_classifier_free_guidance_rank() == 0
    if guidance == 1.0:
        own = conditional() if is_conditional_rank else latents.clone()
        return get_cfg_group().broadcast(own, src=0)
    own = conditional() if is_conditional_rank else unconditional()
    branches = cfg_model_parallel_all_gather(own, dim=0, separate_tensors=True)
    return blend_guidance(*branches, guidance)


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
            # One by one: a large picture fills the memory already.
            pictures = latent_image.to(dtype).split(1)
            decoded = torch.cat([vae.decode(picture) for picture in pictures])
        return output_batch(batch, (decoded.float() / 2 + 0.5).clamp(0, 1))


def _plan_of(batch: Req, server_args: ServerArgs) -> DenoisingPlan:
    values = batch.sampling_params.values()
    if batch.is_warmup:
        # SGLang cuts the steps of a warm-up, so a schedule would not fit them.
        values["guidance_schedule"] = None
    config = Ideogram4FP8PipelineConfig.of(server_args)
    return plan_denoising(values, has_unconditional=config.load_unconditional)
