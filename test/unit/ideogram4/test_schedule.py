# SPDX-License-Identifier: Apache-2.0
"""Times, guidance and Euler steps against stored and closed-form values."""

import math

import pytest
import torch

from conftest import Golden
from sglang_ext_gen.models.ideogram4.schedule import (
    T_MAX,
    T_MIN,
    blend_guidance,
    euler_step,
    make_times,
)


def test_times_equal_the_references(ideogram4_golden: Golden) -> None:
    golden = ideogram4_golden.json
    times = make_times(20, 256, 256, mu=0.0, std=1.75)
    expected = torch.tensor(golden["model_times"])
    # The reference passes times through 1000-scaled float32 timesteps.
    torch.testing.assert_close(times[:-1], expected, rtol=0, atol=2e-7)


@pytest.mark.parametrize("steps", [1, 2, 48])
def test_times_rise_between_the_vendors_limits(steps: int) -> None:
    times = make_times(steps, 1024, 768, mu=0.5, std=1.5)
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float32
    assert bool((times.diff() > 0).all())
    assert times[0] == pytest.approx(T_MIN)
    assert times[-1] == pytest.approx(T_MAX)


def test_larger_pictures_get_noisier_times() -> None:
    middle = [make_times(2, size, size, mu=0.0, std=1.0)[1] for size in (512, 1024)]
    # At the middle the normal quantile is 0, so the time is 1 - sigmoid(mu shifted).
    assert middle[0] == pytest.approx(0.5)
    assert middle[1] == pytest.approx(1 - 1 / (1 + math.exp(-math.log(2))))


def test_guidance_blends_linearly() -> None:
    conditional, unconditional = torch.randn(2, 1, 4, 8)
    for scale in (0.0, 1.0, 4.5):
        expected = unconditional + scale * (conditional - unconditional)
        blended = blend_guidance(conditional, unconditional, scale)
        torch.testing.assert_close(blended, expected)


def test_an_euler_step_of_a_constant_field_is_exact() -> None:
    latents, velocity = torch.zeros(1, 4, 8), torch.ones(1, 4, 8)
    start, end = torch.tensor(0.25), torch.tensor(0.75)
    assert bool((euler_step(latents, velocity, start, end) == 0.5).all())
