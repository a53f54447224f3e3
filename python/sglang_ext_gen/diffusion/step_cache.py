# SPDX-License-Identifier: Apache-2.0
"""TeaCache for the families' transformers.

What the blocks add changes little from step to step where the time embedding does, so
some steps can add what the step before added. Source: the TeaCache paper
(arXiv:2411.14324) with the time embedding for its signal, which is the same for all
rows and ranks.
"""

from collections.abc import Callable, Collection
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
    transformer sees one call a step. What is decided for a step is decided before the
    call: the call itself stays one graph for torch.compile.

    Args:
        may_reuse: Whether this step may add what the step before added; None where the
            request has no such cache.
        reused_steps: Steps of the last request that did.
        teacache_threshold: Change of the time embedding that a step may wait for, where
            the request names none.
    """

    prefix = ""
    teacache_threshold = DEFAULT_THRESHOLD
    may_reuse: bool | None = None
    reused_steps = 0
    _has_reused = False
    _params: TeaCacheParams | None = None
    _must_run: Collection[int] = ()

    def time_signal(self, time: Tensor) -> Tensor:
        """The time embedding that modulates the blocks, of any shape."""
        raise NotImplementedError

    def begin_loop(
        self, params: TeaCacheParams | None, must_run: Collection[int]
    ) -> None:
        """Forget the last request.

        Args:
            params: Of this one; None without a cache.
            must_run: Steps that run whatever the signal is, such as the first.
        """
        self.reset_teacache_state()
        self._params, self._must_run = params, must_run
        self.may_reuse, self.reused_steps = None, 0

    def begin_step(self, index: int, time: Tensor) -> None:
        """Decide whether the next call may leave its blocks out.

        Args:
            index: Of the step.
            time: What the call gets.
        """
        if self._params is None:
            return
        self.may_reuse = not self._compute_teacache_decision(
            modulated_inp=self.time_signal(time),
            is_boundary_step=index in self._must_run,
            coefficients=self._params.get_coefficients(),
            teacache_thresh=self._params.teacache_thresh,
        )

    def end_step(self) -> None:
        """Count the call."""
        self.reused_steps += self._has_reused

    def run_blocks(self, x: Tensor, blocks: Callable[[Tensor], Tensor]) -> Tensor:
        """``blocks(x)``, or x and what the blocks added last, where that will do.

        Args:
            x: [B, S, D] before the blocks.
            blocks: All of them.
        """
        if self.may_reuse is None:
            self._has_reused = False
            return blocks(x)
        residual = self.previous_residual
        # Where guidance ends there are fewer rows.
        is_usable = residual is not None and residual.shape == x.shape
        self._has_reused = self.may_reuse and is_usable
        if residual is not None and self._has_reused:
            return x + residual
        y = blocks(x)
        self.previous_residual = y - x
        return y


def read_teacache_params(
    value: dict[str, Any] | None, default: float = DEFAULT_THRESHOLD
) -> TeaCacheParams:
    """The request's parameters with the family's default.

    Args:
        value: With ``teacache_thresh``, or None.
        default: The threshold where none is given.

    Raises:
        RequestError: For field ``teacache_params``.
    """
    given = value or {}
    threshold = given.get("teacache_thresh", default)
    is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if set(given) - {"teacache_thresh"} or not is_number:
        raise RequestError(
            "teacache_params",
            f"{value!r} given, expected {{'teacache_thresh': {DEFAULT_THRESHOLD}}}",
        )
    return TeaCacheParams(
        teacache_thresh=float(threshold), coefficients=list(_COEFFICIENTS)
    )
