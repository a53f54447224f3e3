# SPDX-License-Identifier: Apache-2.0
"""Conditioning, denoising and decoding of the image generator as SGLang stages.

Source: the official generation method and pipeline. What one stage hands to the next:
under ``CONDITIONING`` in ``batch.extra`` one ``MingOmniConditioning``, then
``batch.latents`` ([n, C, h, w] float32, n pictures of the request), then the pictures.

Requests that arrive as a group (several prompts, several outputs a prompt) ask the
thinker together and are denoised as one batch wherever their shapes agree.
"""

# SGLang's Req forwards attributes to its sampling params, and components reach a
# stage as plain objects: their types say less than is true.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportOptionalCall=false

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from sglang.multimodal_gen.runtime.disaggregation.roles import RoleType
from sglang.multimodal_gen.runtime.distributed import get_local_torch_device
from sglang.multimodal_gen.runtime.distributed.communication_op import (
    cfg_model_parallel_all_gather,
)
from sglang.multimodal_gen.runtime.distributed.parallel_state import (
    get_classifier_free_guidance_rank,
    get_replica_group,
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
from sglang_ext_gen.errors import ExtGenError, RequestError
from sglang_ext_gen.media.images import read_reference
from sglang_ext_gen.models.ming_omni import byt5, schedule
from sglang_ext_gen.models.ming_omni.config import (
    PATCH,
    VAE_STAGES,
    AutoencoderConfig,
    SchedulerConfig,
)
from sglang_ext_gen.models.ming_omni.connector import scale_caption
from sglang_ext_gen.models.ming_omni.dit import Canvas, Caption, ZImageTransformer
from sglang_ext_gen.models.ming_omni.quoted_text import as_glyph_text, quoted_text
from sglang_ext_gen.models.ming_omni.sizes import stretched
from sglang_ext_gen.models.ming_omni.thinker_client import (
    ThinkerClient,
    ThinkerRequest,
    read_images,
)
from sglang_ext_gen.models.ming_omni.thinker_protocol import QueryStates

CONDITIONING = "ming_conditioning"
_PIXELS_PER_LATENT = 2 ** (VAE_STAGES - 1)


@dataclass(frozen=True)
class MingOmniConditioning:
    """What the transformer is told, one request.

    Args:
        caption: [T, C] float32 rows of the prompt: condition, then glyphs.
        negative: [T, C] float32 rows to lead away from; None without guidance.
        reference: [1, C, h, w] float32 latents of the picture to edit, or None.
    """

    caption: Tensor
    negative: Tensor | None
    reference: Tensor | None


class MingOmniConditioningStage(FamilyStage):
    """Prompt and pictures -> caption rows and reference latents.

    Args:
        modules: ``text_encoder``, ``vae``, and ``glyph_encoder`` where there is one.
        vae_config: The scale of its latents.
        tokenizer: Of the glyph encoder.
        thinker: Where query states come from; None on all ranks but the first, which
            hands them to the others.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module | None],
        vae_config: AutoencoderConfig,
        tokenizer: Any,
        thinker: ThinkerClient | None,
    ) -> None:
        super().__init__(modules)
        self.vae_config = vae_config
        self.tokenizer = tokenizer
        self.thinker = thinker

    def forward(self, batch: Req, server_args: ServerArgs) -> Req:
        """Set ``batch.extra[CONDITIONING]``."""
        self._condition([batch])
        return batch

    def run_grouped_requests(
        self, batches: list[Req], server_args: ServerArgs
    ) -> list[Req]:
        """Condition all requests; equal ones once."""
        start = time.perf_counter()
        self._condition(batches)
        for batch in batches:
            batch.metrics.record_stage(
                self._active_profile_stage_name(), time.perf_counter() - start
            )
        return batches

    @torch.no_grad()
    def _condition(self, batches: Sequence[Req]) -> None:
        images = {key: read_images(key) for key in {_references(b) for b in batches}}
        wanted = [
            ThinkerRequest(prompt, images[_references(batch)])
            for batch in batches
            for prompt in _prompts(batch)
        ]
        start = time.perf_counter()
        answers = self._fetch(wanted)
        for batch in batches:
            # Apart from the stage that it is in: it is another server's time.
            batch.metrics.record_stage("thinker", time.perf_counter() - start)
        states = {r.key: answer for r, answer in zip(wanted, answers, strict=True)}
        made: dict[Hashable, MingOmniConditioning] = {}
        for batch in batches:
            key = (_references(batch), *_prompts(batch), batch.byt5_text, *_size(batch))
            if key not in made:
                files = images[_references(batch)]
                rows = [
                    self._encode(states[ThinkerRequest(prompt, files).key])
                    for prompt in _prompts(batch)
                ]
                made[key] = self._finish(batch, rows)
            batch.extra[CONDITIONING] = made[key]

    def _fetch(self, requests: Sequence[ThinkerRequest]) -> list[QueryStates]:
        """States from the first rank's thinker, on every rank; its errors, too."""
        group = get_replica_group()
        answer: list[QueryStates] | ExtGenError | None = None
        if self.thinker is not None:
            try:
                answer = self.thinker.fetch(requests)
            except ExtGenError as error:
                answer = error
        answer = group.broadcast_object(answer, src=0)
        if isinstance(answer, ExtGenError):
            raise answer
        assert answer is not None, "the first rank has a thinker"
        return answer

    def _encode(self, states: QueryStates) -> Tensor:
        """Condition rows [T, C] of unit length."""
        dtype = getattr(torch, states.dtype)
        rows = torch.frombuffer(bytearray(states.last_scale), dtype=dtype)
        rows = rows.view(1, -1, states.width).to(get_local_torch_device())
        with self.use("text_encoder") as encoder:
            return encoder(rows)[0]

    def _finish(self, batch: Req, rows: list[Tensor]) -> MingOmniConditioning:
        """Add glyph rows and the reference; scale all rows."""
        condition, *negative = rows
        glyphs = self._glyph_rows(batch)
        if glyphs is not None:
            condition = torch.cat([condition, glyphs])
        # Zeros stand for no negative prompt, and for the glyphs of any.
        against = torch.zeros_like(condition)
        if negative:
            against[: len(negative[0])] = negative[0]
        reference = None
        if batch.references:
            image = read_reference(batch.references[0])
            reference = self._to_latents(stretched(image, batch.height, batch.width))
        config = self.modules["text_encoder"].config
        has_guidance = schedule.uses_guidance(batch.guidance_scale)
        return MingOmniConditioning(
            caption=scale_caption(condition, config),
            negative=scale_caption(against, config) if has_guidance else None,
            reference=reference,
        )

    def _glyph_rows(self, batch: Req) -> Tensor | None:
        """Rows [L, C] of the words to letter, or None where there are none."""
        if batch.byt5_text is None:
            text = quoted_text(batch.prompt)
        else:
            text = as_glyph_text(batch.byt5_text)
        if not text:
            return None
        if "glyph_encoder" not in self.modules:
            if batch.byt5_text is None:
                return None
            raise RequestError("byt5_text", "this checkpoint letters no words")
        device = get_local_torch_device()
        length = self.modules["glyph_encoder"].config.max_length
        ids, mask = byt5.tokenize(self.tokenizer, text, length)
        with self.use("glyph_encoder") as encoder:
            return encoder(ids.to(device), mask.to(device))[0]

    def _to_latents(self, image: Image.Image) -> Tensor:
        """[1, C, h, w] float32: the mean of the encoder, normalised."""
        device = get_local_torch_device()
        pixels = torch.from_numpy(np.asarray(image).copy()).to(device)
        pixels = (pixels.permute(2, 0, 1)[None].float() / 255 - 0.5) * 2
        with self.use("vae") as vae:
            dtype = next(vae.parameters()).dtype
            mean = vae.encode(pixels.to(dtype)).latent_dist.mode()
        config = self.vae_config
        return ((mean - config.shift_factor) * config.scaling_factor).float()


@dataclass(frozen=True)
class MingOmniLoop:
    """What the steps of a group share.

    Args:
        sigmas: [N + 1] float32 noise levels on the device.
        caption: Of all branches that this rank runs.
        canvas: The image side.
    """

    sigmas: Tensor
    caption: Caption
    canvas: Canvas


class MingOmniDenoisingStage(BatchedDenoisingStage):
    """Noise -> latents by Euler steps with guidance.

    Args:
        pipeline: Whose modules they are.
        transformer: Of this process.
        config: Of the scheduler.
    """

    def __init__(
        self, pipeline: Any, transformer: ZImageTransformer, config: SchedulerConfig
    ) -> None:
        super().__init__(pipeline, [transformer])
        self.config = config

    def batch_key(self, batch: Req, server_args: ServerArgs) -> Hashable:
        """Size, steps and guidance by their fields, and the shapes of conditions."""
        conditioning = batch.extra[CONDITIONING]
        return (
            super().batch_key(batch, server_args),
            *(len(conditioning.caption), conditioning.reference is None),
        )

    def schedule(self, leader: Req, server_args: ServerArgs) -> Tensor:
        """[N + 1] float32 noise levels from 1 to 0."""
        height, width = _latent_size(leader)
        tokens = height * width // PATCH**2
        return schedule.make_sigmas(self.config, leader.num_inference_steps, tokens)

    def prepare(
        self, group: list[Req], times: Tensor, server_args: ServerArgs
    ) -> tuple[Tensor, MingOmniLoop]:
        """Noise of every picture, [B, C, h, w] float32; captions and canvas."""
        leader = group[0]
        conditions = [
            condition
            for batch in group
            for condition in [batch.extra.pop(CONDITIONING)]
            * batch.num_outputs_per_prompt
        ]
        branches = [[c.caption for c in conditions]]
        if schedule.uses_guidance(leader.guidance_scale):
            branches.append([c.negative for c in conditions])
            if server_args.enable_cfg_parallel:
                branches = [branches[get_classifier_free_guidance_rank()]]
        rows = torch.stack([row for branch in branches for row in branch])
        caption = self.transformer.refine_caption(rows)
        reference = None
        if conditions[0].reference is not None:
            reference = torch.cat([c.reference for c in conditions])
        canvas = self.transformer.prepare_canvas(
            *_latent_size(leader), caption.rows.shape[1], reference
        )
        channels = self.transformer.config.in_channels
        latents = [
            schedule.draw_noise(seed, channels, *_latent_size(batch))
            for batch in group
            for seed in output_seeds(batch)
        ]
        sigmas = times.to(get_local_torch_device())
        return torch.cat(latents), MingOmniLoop(sigmas, caption, canvas)

    def step(
        self,
        index: int,
        latents: Tensor,
        state: MingOmniLoop,
        batch: Req,
        args: ServerArgs,
    ) -> Tensor:
        """One Euler step; all branches of a rank are rows of one call."""
        sigma, after = state.sigmas[index], state.sigmas[index + 1]
        output = self.run_transformer(
            self.transformer,
            latents=latents,
            time=schedule.model_time(sigma, self.config),
            caption=state.caption,
            canvas=state.canvas,
        )
        output = _guided(output, batch, args)
        return schedule.euler_step(latents, output, sigma, after)


class MingOmniDecodingStage(FamilyStage):
    """Latents -> picture through the VAE, resized where an edit asks for it.

    Args:
        modules: ``vae``.
        config: The scale of its latents.
    """

    role = RoleType.DECODER

    def __init__(
        self, modules: Mapping[str, nn.Module | None], config: AutoencoderConfig
    ) -> None:
        super().__init__(modules)
        self.config = config

    @torch.no_grad()
    def forward(self, batch: Req, server_args: ServerArgs) -> OutputBatch:
        """Decode ``batch.latents`` to [n, 3, height, width] float32 in [0, 1]."""
        latents = batch.latents.to(get_local_torch_device())
        with self.use("vae") as vae:
            # Cast first, then scale: the official order in bfloat16.
            raw = latents.to(next(vae.parameters()).dtype)
            raw = raw / self.config.scaling_factor + self.config.shift_factor
            # One by one: a large picture fills the memory already.
            decoded = torch.cat([vae.decode(picture[None]) for picture in raw])
        levels = to_levels(decoded.float())
        if batch.result_size is not None:
            levels = torch.stack([_resized(p, batch.result_size) for p in levels])
        return output_batch(batch, from_levels(levels))


def _guided(output: Tensor, batch: Req, server_args: ServerArgs) -> Tensor:
    """One output a picture: branches combined, over ranks where they are apart."""
    scale = batch.guidance_scale
    if not schedule.uses_guidance(scale):
        return output
    if server_args.enable_cfg_parallel:
        conditional, negative = cfg_model_parallel_all_gather(
            output, dim=0, separate_tensors=True
        )
    else:
        conditional, negative = output.chunk(2)
    return schedule.combine(conditional, negative, scale)


def _resized(levels: Tensor, size: tuple[int, int]) -> Tensor:
    """[3, H, W] levels at another height and width, by the official filter."""
    height, width = size
    pixels = levels.permute(1, 2, 0).to(torch.uint8).cpu().numpy()
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1).float()


def _prompts(batch: Req) -> tuple[str, ...]:
    """Texts that the thinker gets: the prompt, and a real negative one if it counts."""
    if batch.negative_prompt and schedule.uses_guidance(batch.guidance_scale):
        return batch.prompt, batch.negative_prompt
    return (batch.prompt,)


def _references(batch: Req) -> tuple[str, ...]:
    return tuple(batch.references)


def _size(batch: Req) -> tuple[int, int, bool]:
    has_guidance = schedule.uses_guidance(batch.guidance_scale)
    return batch.height, batch.width, has_guidance


def _latent_size(batch: Req) -> tuple[int, int]:
    return batch.height // _PIXELS_PER_LATENT, batch.width // _PIXELS_PER_LATENT
