# SPDX-License-Identifier: Apache-2.0
"""TeaCache for the families' transformers.

What the blocks add changes little from step to step where the time embedding does, so
some steps can add what the step before added. Source: the TeaCache paper
(arXiv:2411.14324) with the time embedding for its signal, which is the same for all
rows and ranks.
"""

from collections.abc import Callable
from typing import Any

from sglang.multimodal_gen.configs.sample.teacache import TeaCacheParams
from sglang.multimodal_gen.runtime.cache.teacache import TeaCacheMixin
from torch import Tensor

from sglang_ext_gen.errors import RequestError

# The distance as it is: nobody has fitted a polynomial to these models.
_COEFFICIENTS = [1.0, 0.0]
DEFAULT_THRESHOLD = 0.25


class StepCachedTransformer(TeaCacheMixin):
    """Mixin of a transformer whose blocks can be left out in a step.

    Guidance branches are rows of one batch, or transformers of their own, so a
    transformer sees one call a step.
    """

    prefix = ""
    reused_steps = 0

    def reset_teacache_state(self) -> None:
        """Forget the last request; stock calls it before each."""
        super().reset_teacache_state()
        self.reused_steps = 0

    def run_blocks(
        self, x: Tensor, signal: Tensor, blocks: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """``blocks(x)``, or x and what the blocks added last, where that will do.

        Args:
            x: [B, S, D] before the blocks.
            signal: The time embedding.
            blocks: All of them.
        """
        context = self._get_teacache_context()
        if context is None:
            return blocks(x)
        last, residual = context.num_inference_steps - 1, self.previous_residual
        must_run = self._compute_teacache_decision(
            modulated_inp=signal,
            is_boundary_step=context.current_timestep in (0, last),
            coefficients=context.coefficients,
            teacache_thresh=context.teacache_thresh,
        )
        # Where guidance ends there are fewer rows.
        if must_run or residual is None or residual.shape != x.shape:
            y = blocks(x)
            self.previous_residual = y - x
            return y
        self.reused_steps += 1
        return x + residual


def read_teacache_params(value: Any) -> TeaCacheParams:
    """The request's parameters with the families' defaults.

    Args:
        value: ``TeaCacheParams``, a mapping with ``teacache_thresh``, or None.

    Raises:
        RequestError: For field ``teacache_params``.
    """
    if isinstance(value, TeaCacheParams):
        return value
    given = {} if value is None else value
    if not isinstance(given, dict) or set(given) - {"teacache_thresh"}:
        raise RequestError(
            "teacache_params", f"{value!r} given, expected {{'teacache_thresh': 0.25}}"
        )
    threshold = given.get("teacache_thresh", DEFAULT_THRESHOLD)
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise RequestError(
            "teacache_params", f"teacache_thresh {threshold!r} given, expected a number"
        )
    return TeaCacheParams(
        teacache_thresh=float(threshold), coefficients=list(_COEFFICIENTS)
    )
