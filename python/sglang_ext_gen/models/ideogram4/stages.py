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
from sglang.multimodal_gen.runtime.pipelines_core.stages.base import PipelineStage
from sglang.multimodal_gen.runtime.server_args import ServerArgs
from sglang.multimodal_gen.runtime.utils.precision import precision_to_dtype
from torch import Tensor, nn

from sglang_ext_gen.diffusion.denoising import (
    BatchedDenoisingStage,
    output_seeds,
    scatter,
    step_timer,
)
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
from sglang_ext_gen.models.ideogram4.request import DenoisingPlan
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


class Ideogram4TextEncodingStage(PipelineStage):
    """Prompt -> features. Equal prompts of a group are encoded once."""

    deduplicated_output_fields = ("prompt_embeds",)

    def __init__(self, text_encoder: Ideogram4TextEncoder, tokenizer: object) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer

    def component_uses(
        self, server_args: ServerArgs, stage_name: str | None = None
    ) -> list[ComponentUse]:
        """The text encoder, for SGLang's placement of components."""
        return [ComponentUse(self._component_stage_name(stage_name), "text_encoder")]

    def build_dedup_fingerprint(self, batch: Req, server_args: ServerArgs) -> Hashable:
        """The prompt is all that the features depend on."""
        return batch.prompt

    @torch.no_grad()
    def forward(self, batch: Req, server_args: ServerArgs) -> Req:
        """Set ``batch.prompt_embeds`` to one [T, F] float32 tensor."""
        check_prompt_length(self.tokenizer, batch.prompt)
        token_ids = tokenize_prompt(self.tokenizer, batch.prompt)
        with self.use_declared_component(
            component_name="text_encoder", module=self.text_encoder
        ) as text_encoder:
            device = get_local_torch_device()
            features = text_encoder(torch.tensor(token_ids, device=device))
        batch.prompt_embeds = [features]
        return batch


class Ideogram4DenoisingStage(BatchedDenoisingStage):
    """Noise -> latents by Euler steps with asymmetric guidance.

    Args:
        transformer: Velocity of [text][image]; None on a CFG-parallel rank that
            runs the other branch.
        unconditional_transformer: Velocity of [image]; None where it is not
            loaded.
    """

    def __init__(
        self,
        transformer: Ideogram4Transformer | None,
        unconditional_transformer: Ideogram4Transformer | None,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.unconditional_transformer = unconditional_transformer

    def component_uses(
        self, server_args: ServerArgs, stage_name: str | None = None
    ) -> list[ComponentUse]:
        """The transformers that this rank holds."""
        name = self._component_stage_name(stage_name)
        return [
            ComponentUse(name, component, phase=component, memory_intensive=True)
            for component, module in self._branches().items()
            if module is not None
        ]

    def _branches(self) -> dict[str, Ideogram4Transformer | None]:
        return {
            "transformer": self.transformer,
            "unconditional_transformer": self.unconditional_transformer,
        }

    def batch_key(self, batch: Req, server_args: ServerArgs) -> Hashable:
        """Size and plan."""
        return batch.height, batch.width, _plan_of(batch, server_args)

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
        any_branch = self.transformer or self.unconditional_transformer
        assert any_branch is not None, "a denoising rank holds a transformer"
        channels = any_branch.config.in_channels
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
        if self.transformer is not None:
            text = pack_text(features)
            mask = None
            if text.has_padding:
                image_mask = text.mask.new_ones(image.shape[:2])
                mask = torch.cat([text.mask, image_mask], dim=1)
            position_ids = torch.cat([text.position_ids, image], dim=1)
            with self._use_branch("transformer") as transformer:
                sequence = transformer.pack(position_ids, mask)
                packed["transformer"] = (sequence, transformer.project_text(text))
        if self.unconditional_transformer is not None and plan.needs_unconditional:
            sequence = self.unconditional_transformer.pack(image, None)
            packed["unconditional_transformer"] = (sequence, None)
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
            with self._use_branch(name) as transformer:
                return transformer(latents, time_, sequence, text_rows)

        if server_args.enable_cfg_parallel:
            return self._predict_on_two_ranks(run, latents, guidance)
        conditional = run("transformer")
        if guidance == 1.0:
            return conditional
        return blend_guidance(conditional, run("unconditional_transformer"), guidance)

    def _predict_on_two_ranks(self, run, latents: Tensor, guidance: float) -> Tensor:
        """One branch a CFG-parallel rank; both ranks get the same velocity."""
        is_conditional_rank = get_classifier_free_guidance_rank() == 0
        if guidance == 1.0:
            own = run("transformer") if is_conditional_rank else latents.clone()
            return get_cfg_group().broadcast(own, src=0)
        own = run("transformer" if is_conditional_rank else "unconditional_transformer")
        conditional, unconditional = cfg_model_parallel_all_gather(
            own, dim=0, separate_tensors=True
        )
        return blend_guidance(conditional, unconditional, guidance)

    def _use_branch(self, name: str):
        return self.use_declared_component(
            component_name=name, phase=name, module=self._branches()[name]
        )


class Ideogram4DecodingStage(PipelineStage):
    """Latents -> picture through the VAE."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    @property
    def role_affinity(self) -> RoleType:
        """Which disaggregated role runs this stage."""
        return RoleType.DECODER

    def component_uses(
        self, server_args: ServerArgs, stage_name: str | None = None
    ) -> list[ComponentUse]:
        """The VAE, in its own precision."""
        return [
            ComponentUse(
                self._component_stage_name(stage_name),
                "vae",
                target_dtype=precision_to_dtype(
                    server_args.pipeline_config.vae_precision
                ),
                keep_ready_after_warmup=True,
            )
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
        with self.use_declared_component(component_name="vae", module=self.vae) as vae:
            decoded = vae.decode(latent_image.to(dtype))
        return OutputBatch(
            output=(decoded.float() / 2 + 0.5).clamp(0, 1),
            metrics=batch.metrics,
            trajectory_latents=batch.trajectory_latents,
            trajectory_timesteps=batch.trajectory_timesteps,
        )


def _plan_of(batch: Req, server_args: ServerArgs) -> DenoisingPlan:
    params = batch.sampling_params
    if batch.is_warmup:
        # SGLang cuts the steps of a warm-up, so a schedule would not fit them.
        params = replace(params, guidance_schedule=None)
    return params.denoising_plan(
        load_unconditional=Ideogram4FP8PipelineConfig.of(server_args).load_unconditional
    )
