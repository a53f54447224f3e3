# SPDX-License-Identifier: Apache-2.0
"""Source pictures and videos: bytes equal to the official preprocessing."""

import numpy as np
import pytest
import torch
from PIL import Image

from sglang_ext_gen.models.lance import visual_input
from sglang_ext_gen.models.lance.tasks import RESOLUTIONS


@pytest.mark.parametrize("name", ["image_edit", "x2t_image"])
def test_vision_input_bytes(name, lance):
    case = lance.case(name)
    want = Image.open(lance.golden.path / case.json["vit_input_file"])
    got = visual_input.resize_to_bucket(
        visual_input.flatten_to_rgb(case.frames()[0]),
        RESOLUTIONS[case.json["resolution"]].vit,
        28,
    )
    assert np.array_equal(np.asarray(got), np.asarray(want))


@pytest.mark.parametrize("name", ["image_edit", "i2v"])
def test_vae_input_bytes(name, lance):
    case = lance.case(name)
    want = np.asarray(Image.open(lance.golden.path / case.json["vae_input_file"]))
    frames = [visual_input.flatten_to_rgb(case.frames()[0])]
    pixels = visual_input.vae_pixels(frames, case.json["resolution"])
    got = ((pixels[0, :, 0] + 1) * 127.5).round().permute(1, 2, 0).byte()
    assert np.array_equal(got.numpy(), want)
    assert tuple(pixels.shape[-2:]) == visual_input.vae_size(
        *frames[0].size, case.json["resolution"]
    )


@pytest.mark.parametrize("name", ["image_edit", "video_edit", "x2t_video"])
def test_patches(name, lance):
    case = lance.case(name)
    config = lance.files.vision("Lance_3B").config
    patches, grid = visual_input.vit_patches(
        [visual_input.flatten_to_rgb(f) for f in case.frames()],
        case.json["resolution"],
        config,
    )
    assert [list(grid)] == case.json["vit_grid_thw"]
    assert list(patches.shape) == case.json["vit_patches_shape"]
    mean, std, first = case.json["vit_patches_mean_std_first8"]
    torch.testing.assert_close(patches[0, :8], torch.tensor(first))
    assert patches.mean().item() == pytest.approx(mean, abs=1e-5)
    assert patches.std().item() == pytest.approx(std, abs=1e-5)


@pytest.mark.parametrize(
    ("frames", "fps", "count", "last"),
    [
        (7, 12.0, 5, 6),
        (1, 24.0, 1, 0),
        (2, 30.0, 1, 0),
        (48, 24.0, 21, 47),
        (1440, 24.0, 69, 1439),  # a minute is squeezed into six seconds, not cut
        (100, 0.0, 49, 99),  # an unknown rate counts as 24
    ],
)
def test_sampled_frames(frames, fps, count, last):
    indices = visual_input.sample_frame_indices(frames, fps)
    assert len(indices) == count
    assert len(indices) % 4 == 1
    assert (indices[0], indices[-1]) == (0, last)


def test_transparency_becomes_white():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert visual_input.flatten_to_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    grey = Image.new("L", (4, 4), 7)
    assert visual_input.flatten_to_rgb(grey).getpixel((0, 0)) == (7, 7, 7)


@pytest.mark.parametrize("preset", list(RESOLUTIONS))
def test_buckets_are_whole_tokens(preset):
    for height, width in RESOLUTIONS[preset].vae:
        assert height % 16 == width % 16 == 0
    for height, width in RESOLUTIONS[preset].vit:
        cut = visual_input.resize_to_bucket(
            Image.new("RGB", (width, height)), RESOLUTIONS[preset].vit, 28
        )
        assert cut.width % 28 == cut.height % 28 == 0
        assert width - cut.width < 28


# Height x width of the official preprocessing, 21:9 to 9:16: the VAE's, then the vision
# tower's after its crop.
OFFICIAL = {
    "image_256res": (
        "160x368 192x336 224x304 256x256 304x224 336x192",
        "140x336 140x280 168x252 224x224 252x168 280x140",
    ),
    "image_512res": (
        "336x784 384x688 448x592 512x512 592x448 688x384",
        "280x672 336x588 364x504 448x448 504x364 588x336",
    ),
    "image_768res": (
        "496x1152 576x1024 672x896 768x768 896x672 1024x576",
        "420x1008 504x896 560x756 672x672 756x560 896x504",
    ),
    "video_360p": (
        "320x752 352x624 416x560 480x480 560x416 624x352",
        "280x700 336x616 392x560 476x476 560x392 616x336",
    ),
    "video_480p": (
        "416x976 480x848 560x752 640x640 752x560 848x480",
        "392x924 448x812 504x700 588x588 700x504 812x448",
    ),
}
OFFICIAL["video_192p"] = OFFICIAL["image_256res"]


@pytest.mark.parametrize("preset", list(RESOLUTIONS))
def test_presets_are_the_official_ones(preset):
    vae, vit = RESOLUTIONS[preset].vae, RESOLUTIONS[preset].vit
    cut = [(h // 28 * 28, w // 28 * 28) for h, w in vit]
    listed = [" ".join(f"{h}x{w}" for h, w in sizes) for sizes in (vae, cut)]
    assert tuple(listed) == OFFICIAL[preset]
