# SPDX-License-Identifier: Apache-2.0
"""Media of a request -> pictures, frames and waveforms, within limits.

A medium is what ``media/checks.py`` reads or, in process, a PIL image, frames,
or a waveform with its rate. Every failure is the client's: a ``RequestError`` with the
reason.
"""

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import av
import cv2
import numpy as np
import torch
import torchaudio.functional
from av.error import FFmpegError
from PIL import Image

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.media import limits
from sglang_ext_gen.media.checks import read_media
from sglang_ext_gen.models.ming_omni.thinker.audio_input import SAMPLE_RATE
from sglang_ext_gen.models.ming_omni.thinker.visual_input import (
    FRAMES_PER_SECOND,
    Frames,
    sampled_frames,
    video_size,
)

MAX_FRAMES_LISTED = 170
MIN_SAMPLES = 400  # one window of the spectrum, 25 ms
# Beyond this many taps the exact resampling filter of the official code would take
# gigabytes (44101 Hz); such rates go through FFmpeg's resampler.
_MAX_FILTER_TAPS = 4_000_000
_MAX_VIDEO_FRAMES = 100_000


def load_image(source: Any) -> Image.Image:
    """One still picture in RGB.

    Raises:
        RequestError: It is not a readable still picture of an allowed size.
    """
    if isinstance(source, Image.Image):
        return _checked_image(source).convert("RGB")
    data = read_media(source, "image")
    with _undecodable("image"), warnings.catch_warnings():
        # The size is checked below, before anything is decoded.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return _checked_image(Image.open(io.BytesIO(data))).convert("RGB")


def load_waveform(source: Any, max_seconds: float) -> np.ndarray:
    """The first channel of one clip at 16 kHz.

    Args:
        source: See the module; in process also (samples [N] float32, rate).
        max_seconds: Longest clip that the audio tower takes.

    Returns:
        [samples] float32 in [-1, 1].

    Raises:
        RequestError: It is not readable, empty or too long.
    """
    if isinstance(source, tuple):
        samples, rate = source
        samples = np.asarray(samples, dtype=np.float32)
        if samples.ndim != 1 or rate <= 0:
            raise RequestError("audio", "a waveform must be ([samples], rate)")
    else:
        samples, rate = _decode_audio(read_media(source, "audio"), max_seconds)
    if not np.isfinite(samples).all():
        raise RequestError("audio", "the clip contains NaN or infinite samples")
    _check_duration(len(samples) / rate, max_seconds)
    samples = _resample(samples, rate)
    if len(samples) < MIN_SAMPLES:
        raise RequestError("audio", "the clip is empty or shorter than 25 ms")
    return samples


def load_video(source: Any) -> tuple[Frames, tuple[int, int] | None]:
    """Sampled frames of one video, and their size where the request gives one.

    Args:
        source: See the module; or a dict with ``frames`` (a list of pictures at two
            per second) and, if wanted, ``resized_height`` and ``resized_width``.

    Raises:
        RequestError: It is not readable, has no frames, or is too large.
    """
    if isinstance(source, dict) and "frames" in source:
        return _listed_frames(source)
    return _decode_video(read_media(source, "video")), None


def _checked_image(image: Image.Image) -> Image.Image:
    if getattr(image, "n_frames", 1) > 1:  # only some formats of PIL have frames
        raise RequestError("image", "it is animated; send a still picture or a video")
    _check_pixels(image.width, image.height, "image")
    return image


def _check_pixels(width: int, height: int, field: str) -> None:
    if width < 1 or height < 1:
        raise RequestError(field, f"{width}x{height} pixels given, it is empty")
    if width * height > limits.MAX_MEDIA_PIXELS:
        raise RequestError(
            field,
            f"{width}x{height} pixels given, at most {limits.MAX_MEDIA_PIXELS} allowed",
        )


def _check_duration(seconds: float, max_seconds: float) -> None:
    if seconds > max_seconds:
        raise RequestError(
            "audio", f"{seconds:.1f} s given, at most {max_seconds:g} s allowed"
        )


@contextmanager
def _undecodable(field: str) -> Iterator[None]:
    """Turns what decoders raise over client data into the client's error."""
    try:
        yield
    except RequestError:
        raise
    # Pillow raises OSError, ValueError, SyntaxError and struct errors over damaged
    # files, PyAV its own FFmpegError (an OSError or ValueError).
    except (
        OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, MemoryError,
        OverflowError, FFmpegError, Image.DecompressionBombError, cv2.error,
    ) as error:  # fmt: skip
        raise RequestError(field, f"cannot be decoded: {error}") from error


def _decode_audio(data: bytes, max_seconds: float) -> tuple[np.ndarray, int]:
    parts = []
    with _undecodable("audio"), av.open(io.BytesIO(data), "r") as container:
        if not container.streams.audio:
            raise RequestError("audio", "the file has no audio")
        rate = container.streams.audio[0].rate
        to_float = av.AudioResampler(format="fltp")
        samples = 0
        for frame in container.decode(audio=0):
            for planar in to_float.resample(frame):
                parts.append(planar.to_ndarray()[0])
                samples += planar.samples
            _check_duration(samples / rate, max_seconds)
    if not parts:
        raise RequestError("audio", "the clip is empty or shorter than 25 ms")
    return np.concatenate(parts), rate


def _resample(samples: np.ndarray, rate: int) -> np.ndarray:
    if rate == SAMPLE_RATE or not len(samples):
        return samples
    step = math.gcd(rate, SAMPLE_RATE)
    if (rate // step) * (SAMPLE_RATE // step) <= _MAX_FILTER_TAPS:
        waveform = torch.from_numpy(samples)
        return torchaudio.functional.resample(waveform, rate, SAMPLE_RATE).numpy()
    frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
    parts = resampler.resample(frame) + resampler.resample(None)
    return np.concatenate([part.to_ndarray()[0] for part in parts])


def _decode_video(data: bytes) -> Frames:
    with _undecodable("video"):
        total, fps = _count_frames(data)
        indices, sampled_fps = sampled_frames(total, fps)
        kept = dict.fromkeys(indices)
        pixels: dict[int, np.ndarray] = {}
        last: np.ndarray | None = None
        with av.open(io.BytesIO(data), "r") as container:
            container.streams.video[0].thread_type = "AUTO"
            for index, frame in enumerate(container.decode(video=0)):
                if index > indices[-1]:
                    break
                if index in kept:
                    last = _fitted(frame, len(indices))
                    pixels[index] = last
    if last is None:
        raise RequestError("video", "it has no frames")
    # A container may promise more frames than it decodes to.
    return Frames(np.stack([pixels.get(i, last) for i in indices]), sampled_fps)


def _count_frames(data: bytes) -> tuple[int, float]:
    """Frames and frames per second, without decoding."""
    with av.open(io.BytesIO(data), "r") as container:
        if not container.streams.video:
            raise RequestError("video", "the file has no video")
        stream = container.streams.video[0]
        _check_pixels(stream.codec_context.width, stream.codec_context.height, "video")
        rate = stream.average_rate or stream.guessed_rate
        total = sum(1 for packet in container.demux(stream) if packet.size)
    if total == 0 or not rate:
        raise RequestError("video", "it has no frames")
    if total > _MAX_VIDEO_FRAMES:
        raise RequestError(
            "video", f"{total} frames given, at most {_MAX_VIDEO_FRAMES} allowed"
        )
    return total, float(rate)


def _fitted(frame: av.VideoFrame, count: int) -> np.ndarray:
    """One frame at the size that the vision tower gets, to bound memory."""
    _check_pixels(frame.width, frame.height, "video")
    height, width = video_size(count, frame.height, frame.width)
    pixels = frame.to_ndarray(format="rgb24")
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_CUBIC)


def _listed_frames(source: dict[str, Any]) -> tuple[Frames, tuple[int, int] | None]:
    listed = source["frames"]
    if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_FRAMES_LISTED:
        raise RequestError(
            "video", f"frames must be a list of 1 to {MAX_FRAMES_LISTED} pictures"
        )
    images = [load_image(item) for item in listed]
    if len({image.size for image in images}) > 1:
        raise RequestError("video", "all frames must have the same size")
    stacked = np.stack([np.asarray(image) for image in images])
    return Frames(stacked, FRAMES_PER_SECOND), _stated_size(source)


def _stated_size(source: dict[str, Any]) -> tuple[int, int] | None:
    if "resized_height" not in source and "resized_width" not in source:
        return None
    return _side(source, "resized_height"), _side(source, "resized_width")


def _side(source: dict[str, Any], name: str) -> int:
    value = source.get(name)
    if not isinstance(value, int) or not 32 <= value <= 4096 or value % 32:
        raise RequestError(
            "video",
            "resized_height and resized_width must both be given, as multiples of 32 "
            "from 32 to 4096",
        )
    return value
