# SPDX-License-Identifier: Apache-2.0
"""Rotary embeddings against complex arithmetic in float64."""

import pytest
import torch

from sglang_ext_gen.layers.rotary import (
    apply_rotary,
    interleaved_axes,
    mrope_cos_sin,
    rope_cos_sin,
)

HEAD_DIM, THETA = 16, 10_000.0


def rotate_in_complex(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    first, second = x.double().chunk(2, dim=-1)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=-1)


@pytest.mark.parametrize("offset", [0, -7, 65536])
def test_plain_rope(offset: int) -> None:
    positions = torch.arange(5) + offset
    x = torch.randn(2, 5, 3, HEAD_DIM)
    cos, sin = rope_cos_sin(positions, HEAD_DIM, THETA, torch.float32)
    exponents = torch.arange(0, HEAD_DIM, 2).double() / HEAD_DIM
    angles = positions.double()[:, None] * THETA**-exponents
    expected = rotate_in_complex(x, angles[None, :, None])
    # float32 angles near 65536 are off by up to 65536 * 2**-24.
    tolerance = 1e-5 + abs(offset) * 2**-23
    torch.testing.assert_close(
        apply_rotary(x, cos, sin).double(), expected, rtol=0, atol=tolerance
    )


def test_sections_interleave_the_axes() -> None:
    axes = interleaved_axes(HEAD_DIM, (4, 2, 1), torch.device("cpu"))
    # h turns frequencies 1 and 4, w frequency 2; all others belong to t.
    assert axes.tolist() == [0, 1, 2, 0, 1, 0, 0, 0]


def test_mrope_with_equal_axes_is_plain_rope() -> None:
    positions = torch.arange(6)
    plain = rope_cos_sin(positions, HEAD_DIM, THETA, torch.float32)
    same = positions[:, None].expand(6, 3)
    multi = mrope_cos_sin(same, HEAD_DIM, THETA, (4, 2, 2), torch.float32)
    assert torch.equal(plain[0], multi[0])
    assert torch.equal(plain[1], multi[1])


def test_angles_stay_float32_when_the_result_is_bfloat16() -> None:
    positions = torch.tensor([65536, 65537])
    cos, _ = rope_cos_sin(positions, HEAD_DIM, THETA, torch.bfloat16)
    assert cos.dtype == torch.bfloat16
    # bfloat16 positions would make both rows equal.
    assert not torch.equal(cos[0], cos[1])
