# SPDX-License-Identifier: Apache-2.0
"""Source pictures and videos as files: limits, checks, decoding.

A source is checked in the user's process before the request is queued, and decoded in
the worker. Videos are read with PyAV; only the frames that the task samples are kept.
"""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream
from PIL import Image

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.media.images import (
    check_dimensions,
    opened_picture,
    picture_size,
)
from sglang_ext_gen.models.lance.visual_input import (
    flatten_to_rgb,
    sample_frame_indices,
)

# All frames have to be decoded to find the last one: a minute at 60 a second.
MAX_VIDEO_FRAMES = 3600


@dataclass(frozen=True)
class SourceInfo:
    """What a source is, without its pixels.

    Args:
        width: Of the picture or of a frame.
        height: Likewise.
        num_frames: 1 for a picture.
        fps: Average rate; 0 where unknown.
    """

    width: int
    height: int
    num_frames: int = 1
    fps: float = 0.0

    def sampled_frames(self) -> int:
        """How many frames a task uses."""
        if self.num_frames == 1:
            return 1
        return len(sample_frame_indices(self.num_frames, self.fps))


Media = str | bytes  # a path, or what is in a file


def probe_image(path: str) -> SourceInfo:
    """Check a picture file.

    Raises:
        RequestError: It is missing, unreadable or too large.
    """
    _refuse_url("image_path", path)
    height, width = picture_size(path, Path(path).name)
    return SourceInfo(width, height)


def read_image(path: Media) -> Image.Image:
    """An RGB picture.

    Raises:
        RequestError: See ``probe_image``.
    """
    name = "the file" if isinstance(path, bytes) else Path(path).name
    with opened_picture(path, name) as image:
        return flatten_to_rgb(image)


def probe_video(path: Media) -> SourceInfo:
    """Check a video file by its packets; no frame is decoded but the first.

    Raises:
        RequestError: It is missing, unreadable, empty, too long or too large.
    """
    name = _existing_video(path)
    try:
        with av.open(_opened(path), "r") as container:
            stream = _video_stream(container, name)
            fps = float(stream.average_rate or 0)
            num_frames = sum(1 for packet in container.demux(stream) if packet.size)
        with av.open(_opened(path), "r") as container:
            first = next(container.decode(video=0), None)
    except (FFmpegError, OSError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise _unreadable(name, str(error)) from error
    if first is None or num_frames == 0:
        raise _unreadable(name, "it has no frames")
    if num_frames > MAX_VIDEO_FRAMES:
        raise RequestError(
            "video_path",
            f"{name} has {num_frames} frames, at most {MAX_VIDEO_FRAMES} are "
            "allowed; cut it",
        )
    check_dimensions("video_path", name, first.width, first.height)
    return SourceInfo(first.width, first.height, num_frames, fps)


def read_video(path: Media) -> list[Image.Image]:
    """The sampled frames of a video, RGB.

    Raises:
        RequestError: See ``probe_video``; or the video is damaged further on.
    """
    info = probe_video(path)
    indices = sample_frame_indices(info.num_frames, info.fps)
    wanted, frames = set(indices), {}
    name = _existing_video(path)
    try:
        with av.open(_opened(path), "r") as container:
            for index, frame in enumerate(container.decode(video=0)):
                if index in wanted:
                    frames[index] = frame.to_image()
    except (FFmpegError, OSError, ValueError) as error:
        raise _unreadable(name, str(error)) from error
    if len(frames) != len(wanted):
        raise _unreadable(name, f"{len(wanted) - len(frames)} frames are damaged")
    return [frames[index] for index in indices]


def _existing_video(path: Media) -> str:
    """The name of a video in messages."""
    if isinstance(path, bytes):
        return "the file"
    _refuse_url("video_path", path)
    if not Path(path).is_file():
        raise RequestError("video_path", f"there is no file {path}")
    return Path(path).name


def _refuse_url(field: str, path: str) -> None:
    if "://" in path or path.startswith("data:"):
        raise RequestError(field, "a URL given, expected a local file")


def _opened(path: Media) -> str | BytesIO:
    return BytesIO(path) if isinstance(path, bytes) else path


def _video_stream(container: InputContainer, name: str) -> VideoStream:
    if not container.streams.video:
        raise _unreadable(name, "it has no video stream")
    return container.streams.video[0]


def _unreadable(name: str, reason: str) -> RequestError:
    return RequestError("video_path", f"{name} is not a readable video: {reason}")
