# SPDX-License-Identifier: Apache-2.0
"""Decoding a client's media: what works, and that everything else is its error."""

import base64
import io
import struct
import zlib

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.models.ming_omni.thinker import media

RATE = 16_000


def png(width: int = 40, height: int = 30, mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (width, height), 7).save(stream, "PNG")
    return stream.getvalue()


def zero_size_png() -> bytes:
    """A valid file whose header says 0 x 0."""
    good = png(1, 1)
    header = b"IHDR" + struct.pack(">II", 0, 0) + good[24:29]
    return good[:12] + header + struct.pack(">I", zlib.crc32(header)) + good[33:]


def gif() -> bytes:
    stream = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    return stream.getvalue()


def wav(seconds: float, rate: int = RATE, channels: int = 1) -> bytes:
    samples = np.sin(np.arange(int(seconds * rate)) / rate * 440 * 2 * np.pi) * 0.5
    stream = io.BytesIO()
    soundfile.write(stream, np.stack([samples] * channels, 1), rate, format="WAV")
    return stream.getvalue()


def video(frames: int, fps: int = 10, size: tuple[int, int] = (64, 48)) -> bytes:
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        track = container.add_stream("mpeg4", rate=fps)
        track.width, track.height = size
        for index in range(frames):
            pixels = np.full((size[1], size[0], 3), index * 10 % 256, "uint8")
            container.mux(track.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(track.encode(None))
    return stream.getvalue()


def video_without_frames() -> bytes:
    stream = io.BytesIO()
    with av.open(stream, "w", format="avi") as container:
        track = container.add_stream("mpeg4", rate=10)
        track.width, track.height = 64, 48
        container.start_encoding()
    return stream.getvalue()


def data_url(data: bytes) -> str:
    return "data:application/octet-stream;base64," + base64.b64encode(data).decode()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "I;16"])
def test_pictures_of_every_mode_become_rgb(mode):
    for source in (png(mode=mode), data_url(png(mode=mode))):
        image = media.load_image(source)
        assert (image.mode, image.size) == ("RGB", (40, 30))


def test_objects_of_sglang_and_pil_are_taken():
    class ImageData:
        url = data_url(png())

    assert media.load_image(ImageData()).size == (40, 30)
    assert media.load_image(Image.new("L", (3, 4))).size == (3, 4)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "empty"),
        (b"not a picture", "cannot be decoded"),
        (png()[:60], "cannot be decoded"),
        (gif(), "animated"),
        (zero_size_png(), "empty|cannot be decoded"),
        (b"RIFF\x04\x00\x00\x00WEBP", "cannot be decoded"),
        (data_url(png(9000, 9000, "1")), "81000000|9000x9000"),
        ("file:///etc/passwd", "file names are only allowed"),
    ],
)
def test_bad_pictures_are_refused(source, message):
    with pytest.raises(RequestError, match=message):
        media.load_image(source)


def test_sound_is_read_exactly_at_its_own_rate(ming_golden):
    path = ming_golden.path / "audio0.wav"
    expected, _ = soundfile.read(path, dtype="float32")
    assert np.array_equal(media.load_waveform(path.read_bytes(), 300), expected)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000, 44101])
def test_sound_of_any_rate_is_resampled(rate):
    samples = media.load_waveform(wav(0.5, rate, channels=2), 300)
    assert abs(len(samples) - RATE // 2) <= 32
    middle = samples[2000:6000]
    expected = np.abs(np.fft.rfft(middle)).argmax() * RATE / len(middle)
    assert expected == pytest.approx(440, abs=5)


def test_compressed_sound_is_read():
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(RATE), RATE, format="FLAC")
    assert len(media.load_waveform(stream.getvalue(), 300)) == RATE


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "empty"),
        (b"noise", "cannot be decoded"),
        (wav(1.0)[:20], "cannot be decoded|empty"),
        (wav(0.0), "empty|cannot be decoded"),
        (wav(0.01), "shorter than 25 ms"),
        (wav(12.1), "at most 12 s"),
        (video(3), "no audio"),
        ((np.full(8000, np.nan, "float32"), RATE), "NaN"),
    ],
)
def test_bad_sound_is_refused(source, message):
    with pytest.raises(RequestError, match=message):
        media.load_waveform(source, 12)


def test_sound_of_the_released_length_fits_and_no_more():
    assert len(media.load_waveform(wav(300, rate=8000), 300)) == 300 * RATE
    with pytest.raises(RequestError, match=r"300\.[0-9] s given, at most 300 s"):
        media.load_waveform(wav(300.2, rate=8000), 300)


def test_videos_are_sampled_twice_a_second_at_the_towers_size():
    frames, size = media.load_video(video(40, fps=10))
    assert size is None
    assert frames.pixels.shape[0] == 8  # four seconds
    assert frames.fps == pytest.approx(2.0)
    assert frames.pixels.shape[1] % 32 == frames.pixels.shape[2] % 32 == 0
    levels = frames.pixels.mean((1, 2, 3))
    indices = np.linspace(0, 39, 8).astype(int)
    assert np.abs(levels - indices * 10 % 256).max() < 8


def test_one_frame_is_a_video():
    frames, _ = media.load_video(data_url(video(1)))
    assert frames.pixels.shape[0] == 1


def test_listed_frames_can_state_their_size():
    listed = {"frames": [png(), png()], "resized_height": 64, "resized_width": 96}
    frames, size = media.load_video(listed)
    assert (frames.pixels.shape, size) == ((2, 30, 40, 3), (64, 96))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "empty"),
        (b"noise", "cannot be decoded"),
        (wav(1.0), "no video"),
        (video(10)[:300], "cannot be decoded"),
        (video_without_frames(), "it has no frames"),
        ({"frames": []}, "1 to 170"),
        ({"frames": [png()] * 171}, "1 to 170"),
        ({"frames": [png(), png(10, 10)]}, "same size"),
        ({"frames": [png()], "resized_height": 33}, "multiples of 32"),
        ({"frames": [png()], "resized_height": 64, "resized_width": 1 << 20}, "of 32"),
    ],
)
def test_bad_videos_are_refused(source, message):
    with pytest.raises(RequestError, match=message):
        media.load_video(source)
