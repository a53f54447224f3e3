# SPDX-License-Identifier: Apache-2.0
"""Stock's stages of Qwen-Image with their contracts widened where they fall short.

Source: the diffusers 0.37 pipelines. The denoising loops are stock's own; a group of
requests is joined into one batch in front of them and taken apart behind them.
"""

import time
from collections.abc import Hashable, Sequence
from copy import copy
from typing import Any

import torch
from sglang.multimodal_gen.runtime.distributed import get_local_torch_device
from sglang.multimodal_gen.runtime.pipelines_core.stages import (
    DenoisingStage,
    ImageVAEEncodingStage,
    TextEncodingStage,
    TimestepPreparationStage,
)
from sglang.multimodal_gen.runtime.pipelines_core.stages.base import PipelineStage
from sglang.multimodal_gen.runtime.pipelines_core.stages.denoising import (
    DenoisingContext,
)
from sglang.multimodal_gen.runtime.pipelines_core.stages.progressive_resolution.qwen_image import (  # noqa: E501
    QwenImageProgressiveDenoisingStage,
)
from sglang.multimodal_gen.runtime.server_args import ServerArgs
from torch import Tensor

from sglang_ext_gen.models.qwen_image.request import (
    DEFAULT_MAX_SEQUENCE_LENGTH,
    PIXELS_PER_TOKEN,
    grows,
)

# SGLang's Req. Its types call every field optional; earlier stages fill them.
Request = Any
_LATENT_CHANNELS = 16
_PATCH = 2


def draw_noise(seed: int, height: int, width: int) -> Tensor:
    """Initial latents of one picture, the same on every device.

    Returns:
        [1, I, 64] float32 on the CPU: drawn as [1, 1, 16, h, w], then packed.
    """
    rows, columns = height // PIXELS_PER_TOKEN, width // PIXELS_PER_TOKEN
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = torch.randn(
        (_LATENT_CHANNELS, rows, _PATCH, columns, _PATCH),
        generator=generator,
        dtype=torch.float32,
    )
    return noise.permute(1, 3, 0, 2, 4).reshape(1, rows * columns, -1)


class QwenImageTextEncodingStage(TextEncodingStage):
    """Stock's, with ``max_sequence_length`` as the reference means it."""

    def forward(self, batch: Request, server_args: ServerArgs) -> Request:
        """Encode, then keep the first ``max_sequence_length`` prompt tokens."""
        limit = batch.sampling_params.max_sequence_length or DEFAULT_MAX_SEQUENCE_LENGTH
        batch = super().forward(batch, server_args)
        for prefix in ("", "negative_"):
            embeds = getattr(batch, f"{prefix}prompt_embeds")
            if not embeds:
                continue
            setattr(batch, f"{prefix}prompt_embeds", [e[:, :limit] for e in embeds])
            _set_lengths(batch, prefix, [min(embeds[0].shape[1], limit)])
        return batch


class QwenImageReferenceStage(ImageVAEEncodingStage):
    """Stock's VAE encoding of references, a row for each output of the prompt."""

    def forward(self, batch: Request, server_args: ServerArgs) -> Request:
        """Set ``batch.image_latent`` to [n, I, 64]; encoded once."""
        batch = super().forward(batch, server_args)
        rows = batch.num_outputs_per_prompt
        batch.image_latent = batch.image_latent.expand(rows, -1, -1)
        return batch

    def preprocess(self, image: Any) -> Tensor:
        """References come from -1 to 1; stock would scale a bright one once more."""
        return image

    def build_dedup_fingerprint(
        self, batch: Request, server_args: ServerArgs
    ) -> Hashable:
        """Stock's, and the size of the references."""
        own = (batch.sampling_params.reference_pixels, batch.num_outputs_per_prompt)
        return (super().build_dedup_fingerprint(batch, server_args), own)


class QwenImageLatentStage(PipelineStage):
    """Noise of each picture, drawn or given."""

    def forward(self, batch: Request, server_args: ServerArgs) -> Request:
        """Set ``batch.latents`` to [n, I, 64] float32, n outputs of the prompt."""
        # Python sends a request for each output, HTTP one request for all of them.
        first, rows = batch.extra.get("output_index", 0), batch.num_outputs_per_prompt
        given = batch.sampling_params.latents
        if given is None:
            noise = [
                draw_noise(batch.seed + row, batch.height, batch.width)
                for row in range(rows)
            ]
            latents = torch.cat(noise)
        else:
            latents = given[first : first + rows].float()
        batch.latents = latents.to(get_local_torch_device())
        batch.raw_latent_shape = batch.latents.shape
        return batch


class QwenImageTimestepStage(TimestepPreparationStage):
    """Stock's, with the request's own noise levels."""

    def forward(self, batch: Request, server_args: ServerArgs) -> Request:
        """Set ``batch.timesteps``; the shift that depends on size comes on top."""
        # SGLang cuts the steps of a warm-up, so a schedule would not fit them.
        if not batch.is_warmup:
            batch.sigmas = batch.sampling_params.sigmas
        return super().forward(batch, server_args)

    def build_dedup_fingerprint(
        self, batch: Request, server_args: ServerArgs
    ) -> Hashable:
        """Stock's, and what the request says of the schedule."""
        sigmas = self.freeze_for_dedup(batch.sampling_params.sigmas)
        stocks = super().build_dedup_fingerprint(batch, server_args)
        return (stocks, sigmas, batch.flow_shift, batch.rollout)


class QwenImageDenoisingStage(QwenImageProgressiveDenoisingStage):
    """Stock's loops; requests of equal geometry and schedule run as one batch.

    Stock has a stage for pictures that are drawn small first beside the one for all
    others, each with its own account of what it mounted on the one transformer. One
    stage for both leaves no cache or kernel of the last request behind.
    """

    def forward(self, batch: Request, server_args: ServerArgs) -> Request:
        """Set ``batch.latents``, by the loop that ``progressive_mode`` names."""
        if grows(batch.progressive_mode):
            return super().forward(batch, server_args)
        return DenoisingStage.forward(self, batch, server_args)

    def _owns_compile_warmup_lifecycle(self) -> bool:
        # What is drawn for a warm-up does not grow: it goes through stock's forward.
        return True

    def _generate_initial_noise(
        self,
        batch: Request,
        server_args: ServerArgs,
        h_lat: int,
        w_lat: int,
        seed: int | Sequence[int],
    ) -> Tensor:
        """[n, I, 64] float32, drawn on the CPU as at full size."""
        side = PIXELS_PER_TOKEN // _PATCH
        noise = [
            draw_noise(seed, h_lat * side, w_lat * side)
            for seed in self._get_seeds(batch, seed)
        ]
        return torch.cat(noise).to(get_local_torch_device())

    def _on_resolution_change(
        self,
        ctx: DenoisingContext,
        batch: Request,
        server_args: ServerArgs,
        new_h_pixel: int,
        new_w_pixel: int,
    ) -> None:
        """Positions of the new size; stock gives both branches the prompt's."""
        config = server_args.pipeline_config
        shared = {
            "device": self.device,
            "rotary_emb": self._get_transformer_attr("rotary_emb"),
            "dtype": ctx.target_dtype,
        }
        assert ctx.cfg_policy is not None, "made before the first step"
        for branch in ctx.cfg_policy.branches:
            prepare = (
                config.prepare_pos_cond_kwargs
                if branch.is_conditional
                else config.prepare_neg_cond_kwargs
            )
            branch.kwargs.update(prepare(batch, **shared))
        # The guidance of a smaller picture cannot be used again.
        ctx.extra["cfg_gate_state"]["delta"] = None

    def run_grouped_requests(
        self, batches: list[Request], server_args: ServerArgs
    ) -> list[Request]:
        """Denoise a group of requests, each batch in one loop."""
        groups: dict[Hashable, list[Request]] = {}
        for batch in batches:
            groups.setdefault(self._batch_key(batch), []).append(batch)
        self.log_info("%d requests are denoised in %d loops", len(batches), len(groups))
        for group in groups.values():
            if len(group) == 1:
                self(group[0], server_args)
                continue
            started = time.perf_counter()
            joined = join_requests(group)
            self(joined, server_args)
            scatter_requests(joined, group)
            for batch in group[1:]:
                batch.metrics.record_stage(
                    self._active_profile_stage_name(), time.perf_counter() - started
                )
        return batches

    def _batch_key(self, batch: Request) -> Hashable:
        """Requests with the same key can share a batch."""
        return (
            batch.sampling_params.batch_key(),
            tuple(batch.vae_image_sizes or ()),
            batch.do_classifier_free_guidance,
            batch.return_trajectory_latents,
            batch.is_warmup,
            id(batch) if self._runs_alone(batch) else None,
        )

    def _runs_alone(self, batch: Request) -> bool:
        """What a cache decides must not depend on a neighbour, nor what is recorded."""
        is_cached = self._cache_dit_requested_for_batch(batch)
        return is_cached or batch.rollout or grows(batch.progressive_mode)


def join_requests(batches: list[Request]) -> Request:
    """One request with the rows of all ``batches``; texts padded, with lengths."""
    joined = copy(batches[0])
    joined.extra = dict(joined.extra)
    # Every row is a request of its own from here on.
    joined.sampling_params = copy(joined.sampling_params)
    joined.num_outputs_per_prompt = 1
    joined.latents = torch.cat([batch.latents for batch in batches])
    joined.raw_latent_shape = joined.latents.shape
    if joined.image_latent is not None:
        joined.image_latent = torch.cat([batch.image_latent for batch in batches])
    prefixes = ["", "negative_"] if joined.do_classifier_free_guidance else [""]
    for prefix in prefixes:
        rows = [
            getattr(batch, f"{prefix}prompt_embeds")[0]
            for batch in batches
            for _ in range(batch.latents.shape[0])
        ]
        lengths = [row.shape[1] for row in rows]
        padded = rows[0].new_zeros(len(rows), max(lengths), rows[0].shape[2])
        for target, row in zip(padded, rows, strict=True):
            target[: row.shape[1]] = row[0]
        setattr(joined, f"{prefix}prompt_embeds", [padded])
        _set_lengths(joined, prefix, lengths)
    return joined


def scatter_requests(joined: Request, batches: list[Request]) -> None:
    """Give the requests that ``joined`` was made of their rows of it."""
    start = 0
    for batch in batches:
        end = start + batch.latents.shape[0]
        batch.latents = joined.latents[start:end]
        if joined.trajectory_latents is not None:
            batch.trajectory_latents = joined.trajectory_latents[start:end]
            batch.trajectory_timesteps = joined.trajectory_timesteps
        start = end


def _set_lengths(batch: Request, prefix: str, lengths: list[int]) -> None:
    """Say how many tokens of each row are text; stock makes the mask from it."""
    setattr(batch, f"{prefix}prompt_seq_lens", [lengths])
    setattr(batch, f"{prefix}prompt_embeds_mask", None)
