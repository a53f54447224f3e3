# SPDX-License-Identifier: Apache-2.0
"""Source files: what is readable is read exactly, the rest is refused by name."""

import numpy as np
import pytest
from PIL import Image

from server.lance_requests import write_source_video, write_video
from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.models.lance import sources


def test_video_frames_are_the_sampled_ones(lance, tmp_path):
    file = write_source_video(lance.golden, tmp_path / "source.mp4")
    assert sources.probe_video(str(file)).num_frames == 7
    frames = sources.read_video(str(file))
    for got, want in zip(frames, lance.case("video_edit").frames(), strict=True):
        assert np.array_equal(np.asarray(got), np.asarray(want.convert("RGB")))


def test_picture_becomes_rgb(tmp_path):
    Image.new("RGBA", (32, 16), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    image = sources.read_image(str(tmp_path / "clear.png"))
    assert (image.mode, image.size) == ("RGB", (32, 16))


def test_unreadable_pictures_are_refused(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("RGB", (640, 480), "red").save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    Image.new("RGB", (640, 16)).save(tmp_path / "thin.png")
    Image.new("1", (9000, 9000)).save(tmp_path / "huge.png")
    for name, message in (
        ("text.png", "is not a readable picture"),
        ("empty.png", "is not a readable picture"),
        ("cut.png", "is not a readable picture"),
        ("thin.png", "aspect ratio"),
        ("huge.png", "is 9000x9000"),
        ("absent.png", "there is no file"),
        (".", "there is no file"),
    ):
        with pytest.raises(RequestError, match=message):
            sources.probe_image(str(tmp_path / name))
    with pytest.raises(RequestError, match="a URL given"):
        sources.probe_image("http://127.0.0.1/a.png")


def test_unreadable_videos_are_refused(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    frames = [Image.effect_noise((64, 48), 90).convert("RGB") for _ in range(8)]
    cut = write_video(frames, tmp_path / "cut.mp4")
    cut.write_bytes(cut.read_bytes()[:2000])
    for name, message in (
        ("text.mp4", "is not a readable video"),
        ("empty.mp4", "is not a readable video"),
        ("cut.mp4", "is not a readable video"),
        ("absent.mp4", "there is no file"),
    ):
        with pytest.raises(RequestError, match=message):
            sources.probe_video(str(tmp_path / name))


def test_long_video_is_refused(tmp_path, monkeypatch):
    frames = [Image.new("RGB", (32, 32), (i, 0, 0)) for i in range(12)]
    file = write_video(frames, tmp_path / "long.mp4")
    monkeypatch.setattr(sources, "MAX_VIDEO_FRAMES", 10)
    with pytest.raises(RequestError, match="has 12 frames, at most 10"):
        sources.probe_video(str(file))
