# SPDX-License-Identifier: Apache-2.0
"""Requests of one kind through stock's denoising loop as one batch, and apart again.

SGLang hands a stage a group, such as several prompts, several outputs a prompt, or
requests of several users. A family says which of them can share a loop, what the loop
starts from, and what one step does; the loop is stock's, with all that hangs on it:
torch.compile, CUDA graphs, caches over the steps, attention backends, residency and
offload, profiling and NVTX marks.
"""

# SGLang's Req forwards attributes to its sampling params; its types say less than is
# true.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportOptionalOperand=false

import time
from abc import abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from cache_dit import BlockAdapter, BlockAdapterRegister, ForwardPattern
from cache_dit.caching import FakeDiffusionPipeline
from sglang.multimodal_gen.runtime.distributed import get_local_torch_device
from sglang.multimodal_gen.runtime.managers.forward_context import (
    get_forward_context,
    set_forward_context,
)
from sglang.multimodal_gen.runtime.pipelines_core.schedule_batch import Req
from sglang.multimodal_gen.runtime.pipelines_core.stages import DenoisingStage
from sglang.multimodal_gen.runtime.pipelines_core.stages.denoising import (
    DenoisingContext,
    DenoisingStepState,
)
from sglang.multimodal_gen.runtime.pipelines_core.stages.validators import (
    VerificationResult,
)
from sglang.multimodal_gen.runtime.server_args import (
    ServerArgs,
    get_global_server_args,
)
from torch import Tensor, nn

from sglang_ext_gen.diffusion.step_cache import read_teacache_params
from sglang_ext_gen.errors import RequestError

_GROUP = "denoising_group"
# Words of stock's refusals -> the request field that they are about.
_LOOP_FIELDS = {
    "attention backend override": "attention_backend_override",
    "attention_backend_override": "attention_backend_override",
    "cache_dit_params": "cache_dit_params",
    "skip_softmax_params": "skip_softmax_params",
}


class StepScheduler:
    """What stock's loop asks a scheduler; the steps themselves are the family's."""

    order = 1

    def set_begin_index(self, begin_index: int) -> None:
        """The loop starts at the first step, always."""


class BatchedDenoisingStage(DenoisingStage):
    """Denoises requests of equal ``batch_key`` together, on stock's loop.

    Args:
        pipeline: Whose modules they are.
        transformers: Those that this process holds, one or two.
    """

    def __init__(self, pipeline: Any, transformers: Sequence[nn.Module]) -> None:
        first, second = (*transformers, None)[:2]
        arch = get_global_server_args().pipeline_config.dit_config.arch_config
        arch.hidden_size = first.hidden_size
        arch.num_attention_heads = first.num_attention_heads
        for transformer in transformers:
            _make_cacheable(type(transformer).__name__)
        super().__init__(first, StepScheduler(), pipeline, transformer_2=second)

    @abstractmethod
    def schedule(self, leader: Req, server_args: ServerArgs) -> Tensor:
        """[N + 1] float32 times or noise levels of the steps, on the CPU."""

    @abstractmethod
    def prepare(
        self, group: list[Req], times: Tensor, server_args: ServerArgs
    ) -> tuple[Tensor, Any]:
        """The noise [B, ...] float32 of B outputs, and what the steps need to know."""

    @abstractmethod
    def step(
        self, index: int, latents: Tensor, state: Any, batch: Req, args: ServerArgs
    ) -> Tensor:
        """The latents after step ``index``.

        Args:
            index: From 0 on.
            latents: [B, ...] float32.
            state: From ``prepare``.
            batch: The first request of the group.
            args: Of the server.
        """

    def batch_key(self, batch: Req, server_args: ServerArgs) -> Hashable:
        """Equal for requests that can share a loop: the fields that separate them."""
        return (
            batch.sampling_params.batch_key(),
            batch.return_trajectory_latents,
            # What a cache over the steps decides must not depend on a neighbour.
            batch.request_id if self._is_cached(batch) else None,
        )

    def _is_cached(self, batch: Req) -> bool:
        return batch.enable_teacache or self._cache_dit_requested_for_batch(batch)

    def run_grouped_requests(
        self, batches: list[Req], server_args: ServerArgs
    ) -> list[Req]:
        """Denoise a group, each kind of request as one batch."""
        groups: dict[Hashable, list[Req]] = {}
        for batch in batches:
            groups.setdefault(self.batch_key(batch, server_args), []).append(batch)
        self.log_info("%d requests in %d loops", len(batches), len(groups))
        for group in groups.values():
            start = time.perf_counter()
            group[0].extra[_GROUP] = group
            self(group[0], server_args)
            for batch in group[1:]:
                batch.metrics.record_stage(
                    self._active_profile_stage_name(), time.perf_counter() - start
                )
        return batches

    def run_transformer(
        self, transformer: nn.Module, *, time: Tensor, **inputs: Any
    ) -> Tensor:
        """Call a transformer, through its CUDA graph where there is one.

        Args:
            transformer: One of the stage's.
            time: What the call is told of the step.
            inputs: The rest of what it takes.
        """
        inputs["time"] = time
        transformer.begin_step(get_forward_context().current_timestep, time)
        runner = None
        if transformer.may_reuse is None:
            # A graph would replay what one step decided in every step.
            runner = self._maybe_get_bcg_runner(transformer)
        if runner is not None:
            return self._bcg_run(runner, inputs, transformer)
        output = transformer(**inputs)
        transformer.end_step()
        return output

    def use_transformer(self, transformer: nn.Module, batch: Req) -> None:
        """Have a transformer where it can compute, until another one is asked for."""
        name = "transformer" if transformer is self.transformer else "transformer_2"
        self._manage_dit_use_site(transformer, name, batch)

    def choose(self, transformer: nn.Module) -> None:
        """Run the next request on another transformer than the last one."""
        if transformer is self.transformer:
            return
        if self._cache_dit_enabled:
            self._unmount_cache_dit()
        self.transformer = transformer

    def refresh_caches(self, steps_left: int, batch: Req) -> None:
        """Forget what the caches over the steps hold, in the middle of a loop."""
        if self._cache_dit_enabled:
            self._reused_before += _steps_of_cache_dit(self.transformer)
            self._maybe_enable_cache_dit(steps_left, batch)

    # What follows is stock's loop, filled in.

    def _manage_dit_use_site(
        self, current_model: nn.Module, current_phase: str, batch: Req
    ) -> None:
        if self._component_residency_manager is not None:
            super()._manage_dit_use_site(current_model, current_phase, batch)

    def _prepare_denoising_loop(
        self, batch: Req, server_args: ServerArgs
    ) -> DenoisingContext:
        group = batch.extra.pop(_GROUP, [batch])
        times = self.schedule(batch, server_args)
        # A step of no length changes nothing and runs no transformer.
        moves = (times[:-1] != times[1:]).tolist()
        with _refusing():
            self._maybe_enable_cache_dit_and_torch_compile(sum(moves), batch)
        self._begin_step_caches(batch, moves)
        self.use_transformer(self.transformer, batch)
        with set_forward_context(0, attn_metadata=None, forward_batch=batch):
            latents, state = self.prepare(group, times, server_args)
        return DenoisingContext(
            scheduler=self.scheduler,
            extra_step_kwargs={},
            target_dtype=latents.dtype,
            # The families say themselves what is computed in which precision.
            autocast_enabled=False,
            timesteps=times[:-1],
            num_inference_steps=len(times) - 1,
            num_warmup_steps=0,
            image_kwargs={},
            pos_cond_kwargs={},
            neg_cond_kwargs={},
            latents=latents.to(get_local_torch_device()),
            boundary_timestep=None,
            z=None,
            reserved_frames_mask=None,
            seq_len=None,
            guidance=None,
            is_warmup=batch.is_warmup,
            extra={"group": group, "state": state, "moves": moves},
        )

    def _maybe_enable_cache_dit(
        self, num_inference_steps: int | tuple[int, int], batch: Req
    ) -> None:
        if batch.enable_cache_dit and self.server_args.enable_breakable_cuda_graph:
            raise RequestError(
                "enable_cache_dit", "the server replays CUDA graphs of whole steps"
            )
        super()._maybe_enable_cache_dit(num_inference_steps, batch)
        # cache-dit marks the class of what it mounts on, shared by all, and leaves the
        # mark when it unmounts: there would be no second time.
        FakeDiffusionPipeline._is_cached = False

    def _begin_step_caches(self, batch: Req, moves: list[bool]) -> None:
        params = None
        self._reused_before = 0
        if batch.enable_teacache:
            if self._cache_dit_requested_for_batch(batch):
                raise RequestError("enable_teacache", "not together with cache-dit")
            params = read_teacache_params(
                batch.teacache_params, self.transformer.teacache_threshold
            )
        moving = [index for index, is_moving in enumerate(moves) if is_moving]
        for transformer in self._transformers():
            transformer.begin_loop(params, must_run=(*moving[:1], *moving[-1:]))

    def _transformers(self) -> list[nn.Module]:
        return [t for t in (self.transformer, self.transformer_2) if t is not None]

    def _prepare_step_attn_metadata(self, *args: Any, **kwargs: Any) -> None:
        """None: what attention needs to know is in the family's state."""

    def _run_denoising_step(
        self,
        ctx: DenoisingContext,
        step: DenoisingStepState,
        batch: Req,
        server_args: ServerArgs,
    ) -> None:
        index = step.step_index
        if not ctx.extra["moves"][index]:
            return
        with set_forward_context(index, attn_metadata=None, forward_batch=batch):
            ctx.latents = self.step(
                index, ctx.latents, ctx.extra["state"], batch, server_args
            )

    def _finalize_denoising_loop(
        self, ctx: DenoisingContext, batch: Req, server_args: ServerArgs
    ) -> None:
        scatter(ctx.extra["group"], ctx.latents, ctx.trajectory_latents, ctx.timesteps)
        if self._is_cached(batch) and not batch.is_warmup:
            for transformer in self._transformers():
                self.log_info("%s", steps_reused(transformer, self._reused_before))

    def verify_input(self, batch: Req, server_args: ServerArgs) -> VerificationResult:
        """Nothing: stock's fields are not what these families hand on."""
        return VerificationResult()


@contextmanager
def _refusing() -> Iterator[None]:
    """Stock's refusals of what a request asks of the loop, as ours."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        for words, field in _LOOP_FIELDS.items():
            if words in message.lower():
                raise RequestError(field, message) from error
        raise


def output_seeds(batch: Req) -> list[int]:
    """Over HTTP one request may have several outputs, from seed on."""
    return [batch.seed + output for output in range(batch.num_outputs_per_prompt)]


def scatter(
    batches: Sequence[Req],
    latents: Tensor,
    trajectory: Sequence[Tensor],
    times: Tensor,
) -> None:
    """Give each request its rows of the batch, and what the requests shared.

    Args:
        batches: The requests, in the order of their rows.
        latents: [B, ...], B outputs of all requests.
        trajectory: Latents after each of N steps, where a request asks for them.
        times: [N] times or noise levels at which the steps begin.
    """
    end = 0
    for batch in batches:
        start, end = end, end + batch.num_outputs_per_prompt
        batch.latents = latents[start:end]
        batch.metrics.steps = list(batches[0].metrics.steps)
        if trajectory:
            steps = [step[start:end].cpu() for step in trajectory]
            batch.trajectory_latents = torch.stack(steps, dim=1)  # [n, N, ...]
            batch.trajectory_timesteps = times.cpu()


def steps_reused(transformer: nn.Module, before: int = 0) -> str:
    """What the caches over the steps spared, in words for the log.

    Args:
        transformer: That has the caches.
        before: Steps that cache-dit spared before it was refreshed.
    """
    name, spared = type(transformer).__name__, []
    if BlockAdapter.is_cached(transformer):
        count = before + _steps_of_cache_dit(transformer)
        spared += [f"cache-dit reused {count} steps"]
    if transformer.reused_steps:
        spared += [f"TeaCache reused {transformer.reused_steps} steps"]
    return f"{name}: {'; '.join(spared) or 'no step was reused'}"


def _steps_of_cache_dit(transformer: nn.Module) -> int:
    """How many it spared since it was mounted or refreshed."""
    # Its summary is written at the last step only.
    contexts = map(transformer._context_manager.get_context, transformer._context_names)
    return sum(len(context.get_cached_steps()) for context in contexts)


def _make_cacheable(class_name: str) -> None:
    """Tell cache-dit where the blocks of one of our transformers are."""

    @BlockAdapterRegister.register(class_name)
    def adapter(pipe: Any, **kwargs: Any) -> BlockAdapter:
        return BlockAdapter(
            pipe=pipe,
            transformer=pipe.transformer,
            blocks=pipe.transformer.layers,
            # One tensor in, the same out, and all else the same for all blocks.
            forward_pattern=ForwardPattern.Pattern_3,
            check_forward_pattern=False,
            check_num_outputs=False,
            **kwargs,
        )
