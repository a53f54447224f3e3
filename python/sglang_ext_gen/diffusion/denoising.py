# SPDX-License-Identifier: Apache-2.0
"""Requests of one kind through a denoising loop as one batch, and apart again.

SGLang hands a stage a group, such as several prompts or several outputs a prompt. A
family says which requests can share a loop.
"""

# SGLang's Req forwards attributes to its sampling params; its types say less than is
# true.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportOptionalOperand=false

import time
from abc import abstractmethod
from collections.abc import Hashable, Sequence

import torch
from sglang.multimodal_gen.runtime.disaggregation.roles import RoleType
from sglang.multimodal_gen.runtime.pipelines_core.schedule_batch import Req
from sglang.multimodal_gen.runtime.server_args import ServerArgs
from sglang.multimodal_gen.runtime.utils.logging_utils import init_logger
from sglang.multimodal_gen.runtime.utils.perf_logger import StageProfiler
from torch import Tensor

from sglang_ext_gen.diffusion.stage import FamilyStage

logger = init_logger(__name__)


class BatchedDenoisingStage(FamilyStage):
    """A stage that denoises requests of equal ``batch_key`` together."""

    role = RoleType.DENOISER

    def batch_key(self, batch: Req, server_args: ServerArgs) -> Hashable:
        """Equal for requests that can share a loop: the fields that separate them."""
        return batch.sampling_params.batch_key()

    @abstractmethod
    def denoise(self, batches: list[Req], server_args: ServerArgs) -> None:
        """Set ``latents`` of requests of one key, best by ``scatter``."""

    def forward(self, batch: Req, server_args: ServerArgs) -> Req:
        """Set ``batch.latents`` to [n, ...] float32, n outputs."""
        self.denoise([batch], server_args)
        return batch

    def run_grouped_requests(
        self, batches: list[Req], server_args: ServerArgs
    ) -> list[Req]:
        """Denoise a group, each kind of request as one batch."""
        groups: dict[Hashable, list[Req]] = {}
        for batch in batches:
            groups.setdefault(self.batch_key(batch, server_args), []).append(batch)
        for group in groups.values():
            start = time.perf_counter()
            self.denoise(group, server_args)
            for batch in group:
                batch.metrics.record_stage(
                    self._active_profile_stage_name(), time.perf_counter() - start
                )
        return batches


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
        times: [N + 1] times or noise levels of the steps.
    """
    end = 0
    for batch in batches:
        start, end = end, end + batch.num_outputs_per_prompt
        batch.latents = latents[start:end]
        batch.metrics.steps = list(batches[0].metrics.steps)
        if trajectory:
            steps = [step[start:end] for step in trajectory]
            batch.trajectory_latents = torch.stack(steps, dim=1)  # [n, N, ...]
            batch.trajectory_timesteps = times[:-1].cpu()


def step_timer(step: int, batch: Req) -> StageProfiler:
    """Measures one step, under the name that SGLang gives steps."""
    return StageProfiler(
        f"denoising_step_{step}",
        logger=logger,
        metrics=batch.metrics,
        perf_dump_path_provided=batch.perf_dump_path is not None,
        record_as_step=True,
    )
