# SPDX-License-Identifier: Apache-2.0
"""Requests of several users that ran as one group: one that fails fails alone."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from sglang.multimodal_gen.runtime.distributed import get_replica_group
from sglang.multimodal_gen.runtime.managers.scheduler import Scheduler
from sglang.multimodal_gen.runtime.pipelines_core.schedule_batch import Req
from sglang.multimodal_gen.runtime.utils.logging_utils import init_logger

from sglang_ext_gen.diffusion.pipeline_config import FamilyPipelineConfig

logger = init_logger(__name__)


def execute_generation_grouped(
    original: Callable[..., Any], scheduler: Scheduler, reqs: list[Req]
) -> Any:
    """Around ``Scheduler._execute_generation_grouped``: ours run again one by one.

    Stock gives every member the error of the group.
    """
    if not isinstance(scheduler.server_args.pipeline_config, FamilyPipelineConfig):
        return original(scheduler, reqs)
    # A pipeline writes into its requests.
    untouched = deepcopy(reqs)
    outputs = original(scheduler, reqs)
    if not _on_any_rank(any(output.error for output in outputs)):
        return outputs
    logger.warning("A group of %d requests failed; each runs alone", len(reqs))
    return scheduler._execute_generation_sequential(untouched)


def _on_any_rank(failed: bool) -> bool:
    """Whether it failed anywhere: all ranks have to run the same again."""
    group = get_replica_group()
    if group.world_size == 1:
        return failed
    flag = torch.tensor(int(failed))
    torch.distributed.all_reduce(
        flag, torch.distributed.ReduceOp.MAX, group=group.cpu_group
    )
    return bool(flag)
