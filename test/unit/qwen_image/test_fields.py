# SPDX-License-Identifier: Apache-2.0
"""What request fields do to a picture, and where a picture's parts end up."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qwen_image_runtime import (
    LoadedPipeline,
    decibels,
    reference_pipeline,
    write_picture,
)
from sglang_ext_gen.errors import RequestError

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    **{"prompt": "a cat on a hill", "width": 160, "height": 128},
    **{"num_inference_steps": 3, "seed": 7},
}


def test_own_sigmas_and_latents_equal_the_references(t2i, t2i_checkpoint) -> None:
    from sglang_ext_gen.models.qwen_image.stages import draw_noise

    sigmas, noise = [1.0, 0.8, 0.3], draw_noise(11, 128, 160)
    reference = reference_pipeline("QwenImagePipeline", t2i_checkpoint)
    common = {"prompt": SMALL["prompt"], "negative_prompt": "dull", "sigmas": sigmas}
    size = {"width": 160, "height": 128}
    expected = reference(
        latents=noise, output_type="pt", max_sequence_length=3, **common, **size
    ).images
    image = t2i.pictures(latents=noise, max_sequence_length=3, seed=0, **common, **size)
    assert decibels(image, expected) > 90


def test_latents_have_a_row_for_each_output(t2i: LoadedPipeline) -> None:
    noise = torch.randn(2, 80, 64, generator=torch.Generator().manual_seed(0))
    both = t2i.pictures(latents=noise, num_outputs_per_prompt=2, **SMALL)
    second = t2i.pictures(latents=noise[1:], **SMALL)
    assert (both[1:] - second).abs().max() < 2e-4
    for bad in (noise[:, :79], noise[0], noise * float("nan"), [0.0]):
        with pytest.raises(RequestError, match="latents"):
            t2i.requests(latents=bad, num_outputs_per_prompt=2, **SMALL)


def test_guidance_without_a_negative_prompt_is_none(t2i: LoadedPipeline) -> None:
    plain = t2i.pictures(true_cfg_scale=1.0, **SMALL)
    for fields in ({}, {"true_cfg_scale": 6.0}):
        assert torch.equal(t2i.pictures(**fields, **SMALL), plain)
    without = t2i.pictures(true_cfg_scale=1.0, negative_prompt="dull", **SMALL)
    assert torch.equal(without, plain)
    guided = t2i.pictures(negative_prompt="dull", **SMALL)
    assert not torch.equal(guided, plain)
    named = t2i.pictures(negative_prompt="dull", guidance_scale=4.0, **SMALL)
    assert torch.equal(named, guided)


def test_smaller_references_are_fewer_tokens(edit: LoadedPipeline, tmp_path) -> None:
    picture = write_picture(tmp_path / "a.png", 96, 64, seed=1)
    tokens = []
    for pixels in (None, 256 * 256):
        (request,) = edit.requests(
            image_path=[str(picture)], reference_pixels=pixels, **SMALL
        )
        with torch.inference_mode():
            edit.pipeline.forward_batch([request], edit.server_args)
        tokens.append(request.image_latent.shape[1])
    assert tokens == [78 * 52, 20 * 14]


def test_an_edits_prompt_beyond_its_limit(edit: LoadedPipeline, tmp_path) -> None:
    picture = str(write_picture(tmp_path / "a.png", 96, 64, seed=1))
    with pytest.raises(RequestError, match="max_sequence_length"):
        edit.requests(image_path=[picture], max_sequence_length=2, **SMALL)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("boundary_ratio", 0.5),
        ("diffusers_kwargs", {"output_type": "latent"}),
        ("enable_frame_interpolation", True),
        ("enable_spectrum", True),
        ("enable_teacache", True),
        ("guidance_scale_2", 3.0),
        ("image_path", "a.png"),
        ("return_trajectory_decoded", True),
    ],
)
def test_unsupported_fields_are_refused(t2i: LoadedPipeline, field, value) -> None:
    with pytest.raises(RequestError, match=field):
        t2i.requests(**{field: value}, **SMALL)


def test_a_shift_of_the_requests_own(t2i: LoadedPipeline, t2i_checkpoint) -> None:
    """The one that a size has, given as a number, changes nothing."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
        FlowMatchEulerDiscreteScheduler,
    )

    (plain,) = t2i.requests(**SMALL)
    with torch.inference_mode():
        t2i.pipeline.forward_batch([plain], t2i.server_args)
    shift = math.exp(plain.extra["mu"])
    same = t2i.pictures(flow_shift=shift, **SMALL)
    assert (same - t2i.pictures(**SMALL)).abs().max() < 1e-5

    (request,) = t2i.requests(flow_shift=7.5, **SMALL)
    with torch.inference_mode():
        t2i.pipeline.forward_batch([request], t2i.server_args)
    reference: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(
        t2i_checkpoint / "scheduler"
    )
    reference.set_timesteps(sigmas=[1.0, 2 / 3, 1 / 3], mu=math.log(7.5))
    assert request.timesteps.tolist() == pytest.approx(reference.timesteps.tolist())


def centroid(image: torch.Tensor) -> tuple[float, float]:
    """Centre of mass of a picture [1, 3, H, W], from 0 to 1 across each side."""
    mass = image.mean(dim=1)[0].double()
    rows = (torch.arange(mass.shape[0]) + 0.5) / mass.shape[0]
    columns = (torch.arange(mass.shape[1]) + 0.5) / mass.shape[1]
    total = mass.sum()
    return (
        float((mass.sum(1) * rows).sum() / total),
        float((mass.sum(0) * columns).sum() / total),
    )


def test_resizes_neither_shift_nor_zoom(edit: LoadedPipeline, tmp_path) -> None:
    """A spot keeps its place and its extent, relative to the picture."""
    canvas = Image.new("RGB", (200, 120))
    canvas.paste((255, 255, 255), (40, 30, 80, 54))
    canvas.save(tmp_path / "spot.png")
    (request,) = edit.requests(
        image_path=[str(tmp_path / "spot.png")], reference_pixels=512 * 512, **SMALL
    )
    edit.pipeline.stages[0](request, edit.server_args)
    expected = (42 / 120, 60 / 200)
    seen = torch.from_numpy(np.array(request.condition_image[0]))
    seen = seen.permute(2, 0, 1)[None]
    for image in ((request.vae_image[0] + 1) / 2, seen.float() / 255):
        row, column = centroid(image)
        assert row == pytest.approx(expected[0], abs=0.5 / image.shape[2])
        assert column == pytest.approx(expected[1], abs=0.5 / image.shape[3])
        area = float(image.mean())
        assert area == pytest.approx(40 * 24 / (200 * 120), rel=0.03)


def test_the_vae_moves_a_picture_with_its_grid(edit: LoadedPipeline) -> None:
    """Round trip of a shifted picture is the shifted round trip."""
    vae = edit.pipeline.get_module("vae")
    picture = torch.rand(1, 3, 1, 192, 192, generator=torch.Generator().manual_seed(0))
    shift = 16

    def round_trip(x: torch.Tensor) -> torch.Tensor:
        encoded = vae.encode(x * 2 - 1)
        latents = getattr(encoded, "latent_dist", encoded).mode()
        return vae.decode(latents)

    with torch.inference_mode():
        straight = round_trip(picture)
        shifted = round_trip(picture.roll((shift, shift), dims=(3, 4)))
    back = shifted.roll((-shift, -shift), dims=(3, 4))
    inner = (slice(None), slice(None), slice(None), slice(64, 112), slice(64, 112))
    # Attention in the middle of the VAE sees the whole picture: near, not equal
    # (measured 0.11).
    error = (back[inner] - straight[inner]).abs().mean()
    moved = (shifted[inner] - straight[inner]).abs().mean()
    assert error < 0.2 * moved


def test_a_bright_reference_is_scaled_once(edit: LoadedPipeline, tmp_path) -> None:
    Image.new("RGB", (64, 64), (250, 240, 230)).save(tmp_path / "bright.png")
    (request,) = edit.requests(
        image_path=[str(tmp_path / "bright.png")], reference_pixels=128 * 128, **SMALL
    )
    edit.pipeline.stages[0](request, edit.server_args)
    tensor = request.vae_image[0]
    stage = edit.pipeline.stages[2]
    assert stage.preprocess(tensor).max() == tensor.max() < 0.99
