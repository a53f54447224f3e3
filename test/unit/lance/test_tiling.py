# SPDX-License-Identifier: Apache-2.0
"""Tiles cover a frame, blend without a seam, and come close to the whole frame."""

import pytest
import torch

from lazy import LazyModule
from sglang_ext_gen.models.lance.checkpoint import VAE
from sglang_ext_gen.models.lance.tiling import Tiling, run_tiled

vae = LazyModule("sglang_ext_gen.models.lance.vae")


@pytest.mark.parametrize("size", [(4, 4), (5, 9), (8, 12), (13, 21)])
@pytest.mark.parametrize("tiling", [Tiling(4, 1), Tiling(6, 2), Tiling(8, 4)])
def test_a_local_function_gives_the_same_with_and_without_tiles(size, tiling):
    x = torch.randn(1, 2, 3, *size)
    sizes = []

    def enlarge(part):
        sizes.append(part.shape[-2:])
        return part.repeat_interleave(2, -1).repeat_interleave(2, -2)

    got = run_tiled(enlarge, x, tiling, scale_in=1, scale_out=2)
    assert max(max(pair) for pair in sizes) <= tiling.side
    torch.testing.assert_close(got, enlarge(x))

    def shrink(part):
        return part[..., ::2, ::2]

    got = run_tiled(shrink, enlarge(x), tiling, scale_in=2, scale_out=1)
    torch.testing.assert_close(got, x)


def test_tiles_that_disagree_are_faded_into_each_other():
    values = iter((0.0, 1.0))
    got = run_tiled(
        lambda part: torch.full_like(part, next(values)),
        torch.zeros(1, 4, 12),
        Tiling(side=8, overlap=4),
        scale_in=1,
        scale_out=1,
    )[0, 0]
    assert torch.equal(got[:4], torch.zeros(4))
    assert torch.equal(got[8:], torch.ones(4))
    assert (got[4:8].diff() > 0).all()


@pytest.fixture(scope="module")
def wan(lance):
    return lance.load(VAE.at(lance.path))


@torch.no_grad()
def test_a_frame_of_one_tile_is_the_same(wan):
    latents = torch.randn(2, 4, 6, 48)
    assert torch.equal(vae.decode(wan, latents, Tiling()), vae.decode(wan, latents))
    pixels = torch.rand(1, 3, 5, 64, 96) * 2 - 1
    got, want = vae.encode(wan, pixels, Tiling()), vae.encode(wan, pixels)
    assert torch.equal(got.mean, want.mean)


@torch.no_grad()
def test_tiled_frames_are_close_to_whole_ones(wan, lance):
    case = lance.case("i2v")
    latents = case.tensor("step2.latents").view(*case.json["latent_grid_thw"], -1)
    whole = vae.decode(wan, latents)
    tiled = vae.decode(wan, latents, Tiling(side=12, overlap=6))
    assert tiled.shape == whole.shape
    error = (tiled - whole).div(2).square().mean()
    # Random filters reach far beyond an overlap, and attention across the frame.
    assert -10 * error.log10() > 25  # 27.0 measured
    whole, tiled = (
        vae.encode(wan, tiled, tiling) for tiling in (None, Tiling(side=12, overlap=6))
    )
    error = (tiled.mean - whole.mean).square().mean() / whole.mean.square().mean()
    assert -10 * error.log10() > 17  # 18.8 measured
    assert tiled.deviation.shape == whole.deviation.shape
