# SPDX-License-Identifier: Apache-2.0
"""What the stages of all families share: their components, their role, their output."""

# SGLang's Req forwards attributes to its sampling params; its types say less than is
# true.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from sglang.multimodal_gen.runtime.disaggregation.roles import RoleType
from sglang.multimodal_gen.runtime.managers.memory_managers.component_manager import (
    ComponentUse,
)
from sglang.multimodal_gen.runtime.pipelines_core.schedule_batch import (
    OutputBatch,
    Req,
)
from sglang.multimodal_gen.runtime.pipelines_core.stages.base import PipelineStage
from sglang.multimodal_gen.runtime.server_args import ServerArgs
from torch import Tensor, nn


class FamilyStage(PipelineStage):
    """A stage that knows its modules by component name.

    Args:
        modules: Component name -> module, of those that this process holds.
    """

    role: ClassVar[RoleType] = RoleType.ENCODER

    def __init__(self, modules: Mapping[str, nn.Module | None]) -> None:
        super().__init__()
        self.modules = {name: m for name, m in modules.items() if m is not None}

    @property
    def role_affinity(self) -> RoleType:
        """Which disaggregated role runs this stage."""
        return self.role

    def component_uses(
        self, server_args: ServerArgs, stage_name: str | None = None
    ) -> list[ComponentUse]:
        """All modules of the stage, for SGLang's placement of components."""
        name = self._component_stage_name(stage_name)
        return [
            ComponentUse(name, component, phase=component, memory_intensive=True)
            for component in self.modules
        ]

    def use(self, name: str) -> AbstractContextManager[Any]:
        """A module of the stage, where it can compute, for a ``with`` block."""
        return self.use_declared_component(
            component_name=name, phase=name, module=self.modules[name]
        )


def output_batch(batch: Req, output: Tensor) -> OutputBatch:
    """What a pipeline returns for a request.

    Args:
        batch: The request, denoised.
        output: [n, 3, H, W] pictures or [n, 3, F, H, W] videos, float32 in [0, 1].
    """
    return OutputBatch(
        output=output,
        metrics=batch.metrics,
        trajectory_latents=batch.trajectory_latents,
        trajectory_timesteps=batch.trajectory_timesteps,
    )
