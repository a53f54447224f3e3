# SPDX-License-Identifier: Apache-2.0
"""Pictures, frames, sound -> patches and log-mel frames, against the official code."""

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.models.ming_omni.thinker.audio_input import log_mel
from sglang_ext_gen.models.ming_omni.thinker.visual_input import (
    Frames,
    fit_size,
    image_input,
    resized_video_inputs,
    sampled_frames,
    video_inputs,
    video_size,
)


@pytest.mark.parametrize(
    ("file", "case"), [("image0.png", "b_image"), ("image1.png", "b_image_first")]
)
def test_pictures_equal_the_official_patches(ming_golden, file, case):
    visual = image_input(Image.open(ming_golden.path / file))
    grid = ming_golden.tensor(f"{case}.image_grid_thw")
    assert grid.tolist() == [[1, *visual.grid]]
    assert torch.equal(visual.patches, ming_golden.tensor(f"{case}.pixel_values"))
    assert visual.tokens == len(ming_golden.tensor(f"{case}.image_embeds"))


def test_frames_equal_the_official_patches(ming_golden):
    pixels = [Image.open(ming_golden.path / f"frame{i}.png") for i in range(4)]
    frames = Frames(np.stack([np.asarray(p.convert("RGB")) for p in pixels]), 2.0)
    inputs, stamps = resized_video_inputs(frames, 64, 64)
    assert [f"{stamp:.1f}" for stamp in stamps] == ["0.2", "1.2"]
    got = torch.cat([visual.patches for visual in inputs])
    assert torch.equal(got, ming_golden.tensor("d_video.pixel_values_videos"))


@pytest.mark.parametrize(
    ("case", "files"),
    [("c_audio", ["audio0.wav"]), ("c_two_audio", ["audio0.wav", "audio1.wav"])],
)
def test_sound_equals_the_official_features(ming_golden, case, files):
    clips = [
        log_mel(soundfile.read(ming_golden.path / file, dtype="float32")[0], 128)
        for file in files
    ]
    lengths = ming_golden.tensor(f"{case}.audio_feats_lengths")[0].tolist()
    assert [len(clip) for clip in clips] == lengths
    expected = ming_golden.tensor(f"{case}.audio_feats")[0]
    # The stored features are 2.0e-5 from float64, ours 1.5e-5: MKL's float32 transform
    # rounds by processor (3e-5 between an Intel with AVX-512 and the reference's).
    torch.testing.assert_close(torch.cat(clips), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((80, 48), (64, 64)),  # 2.5 and 1.5 multiples of 32 round to the even one
        ((10, 10), (64, 64)),  # below the least area
        ((9000, 3000), (7072, 2336)),  # above the largest area
        ((1, 200), (32, 192)),  # a strip at the largest ratio
    ],
)
def test_sizes_follow_the_official_rule(given, expected):
    height, width = given
    assert fit_size(height, width, 4096, 16_777_216) == expected


def test_a_fitted_size_stays():
    for count in (1, 2, 17, 170):
        size = video_size(count, 1080, 1920)
        assert video_size(count, *size) == size


def test_extreme_shapes_are_refused():
    with pytest.raises(RequestError, match="at most 200 times"):
        fit_size(10, 2001, 4096, 16_777_216)


@pytest.mark.parametrize(
    ("total", "fps", "indices", "sampled_fps"),
    [
        (100, 25.0, [0, 14, 28, 42, 56, 70, 84, 99], 2.0),
        (3, 1.0, [0, 1, 2], 1.0),  # slower than two per second: all frames
        (5, 30.0, [0], 6.0),  # shorter than a frame's time: one frame
    ],
)
def test_frames_are_sampled_twice_a_second(total, fps, indices, sampled_fps):
    assert sampled_frames(total, fps) == (indices, pytest.approx(sampled_fps))


def test_long_videos_are_capped():
    indices, _ = sampled_frames(30_000, 30.0)
    assert len(indices) == 170
    assert indices[-1] == 29_999


def test_an_odd_frame_is_paired_with_itself():
    frames = Frames(
        np.random.default_rng(0).integers(0, 255, (3, 40, 50, 3), "uint8"), 2.0
    )
    inputs, stamps = video_inputs(frames)
    assert stamps == [0.25, 1.0]
    first, second = inputs[1].patches.view(-1, 3, 2, 256).unbind(2)
    assert torch.equal(first, second)
