# SPDX-License-Identifier: Apache-2.0
"""Stock's transformer, able to run a batch where references have their own time."""

import functools
from typing import Any

from sglang.multimodal_gen.runtime.models.dits.qwen_image import (
    QwenImageTransformer2DModel,
)
from torch import Tensor


class QwenImageExtTransformer(QwenImageTransformer2DModel):
    """Stock's class; see ``forward``."""

    # Adapters saved by diffusers carry the component's name; stock drops such keys.
    lora_param_names_mapping = {r"^transformer\.(.*)$": r"\1"}  # noqa: RUF012

    # Stock's denoising stage reads the parameters' names to know what to pass.
    @functools.wraps(QwenImageTransformer2DModel.forward)
    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As stock's, also for a batch of a 2511 checkpoint (``zero_cond_t``).

        Stock appends one time 0 for the references whatever the batch; each row
        needs its own.
        """
        self.timestep_zero = self.timestep_zero.new_zeros(hidden_states.shape[0])
        return super().forward(hidden_states, *args, **kwargs)
