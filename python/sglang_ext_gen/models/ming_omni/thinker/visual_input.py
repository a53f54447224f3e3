# SPDX-License-Identifier: Apache-2.0
"""Pictures and video frames -> patches of the vision tower.

Source: the official image processor and video reader (Qwen2-VL's resizing rule with a
factor of 32, PIL bicubic for pictures, OpenCV bicubic without antialiasing for frames).
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sglang_ext_gen.errors import RequestError

PATCH = 16
MERGE = 2
TEMPORAL_PATCH = 2
FACTOR = PATCH * MERGE
MIN_PIXELS, MAX_PIXELS = 4096, 16_777_216  # of a picture, after resizing
MAX_ASPECT_RATIO = 200
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

MAX_FRAMES = 170
FRAMES_PER_SECOND = 2.0
# Pixels of a frame: at least _FRAME_MIN; at most a share of _VIDEO_PIXELS.
_FRAME_MIN = 131_072
_VIDEO_PIXELS = 12_582_912
_FRAME_MAX_FLOOR = 137_625


@dataclass(frozen=True)
class Frames:
    """Frames of one video, sampled.

    Args:
        pixels: [F, height, width, 3] uint8.
        fps: Sampled frames per second.
    """

    pixels: np.ndarray
    fps: float


@dataclass(frozen=True)
class VisualInput:
    """What the vision tower gets for one picture or one pair of frames.

    Args:
        patches: [h * w, 3 * 2 * 16 * 16] float32, 2 x 2 blocks contiguous.
        grid: (h, w) in patches; h and w are even.
    """

    patches: Tensor
    grid: tuple[int, int]

    @property
    def tokens(self) -> int:
        """Language model tokens: one for 2 x 2 patches."""
        return self.grid[0] * self.grid[1] // MERGE**2


def fit_size(
    height: int, width: int, min_pixels: float, max_pixels: float
) -> tuple[int, int]:
    """The nearest size in multiples of 32 whose area is in the given range.

    Raises:
        RequestError: One side is more than 200 times the other.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise RequestError(
            "media",
            f"{width}x{height} pixels given, one side may be at most "
            f"{MAX_ASPECT_RATIO} times the other",
        )
    # round() is Python's: halves go to the even multiple, as in the official code.
    new_height = max(FACTOR, round(height / FACTOR) * FACTOR)
    new_width = max(FACTOR, round(width / FACTOR) * FACTOR)
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(FACTOR, math.floor(height / shrink / FACTOR) * FACTOR)
        new_width = max(FACTOR, math.floor(width / shrink / FACTOR) * FACTOR)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / FACTOR) * FACTOR
        new_width = math.ceil(width * grow / FACTOR) * FACTOR
    return new_height, new_width


def image_input(image: Image.Image) -> VisualInput:
    """Patches of one picture; it fills both frames of a temporal patch."""
    height, width = fit_size(image.height, image.width, MIN_PIXELS, MAX_PIXELS)
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(resized)
    return _patches(np.stack([pixels] * TEMPORAL_PATCH))


def video_inputs(frames: Frames) -> tuple[list[VisualInput], list[float]]:
    """Patches and timestamp in seconds of each pair of frames of one video.

    An odd last frame is paired with itself. Each pair is encoded on its own (the tower
    attends within a frame pair only), so each can be cached.
    """
    return resized_video_inputs(frames, *video_size(*frames.pixels.shape[:3]))


def video_size(count: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of each of ``count`` sampled frames after resizing."""
    most = max(_VIDEO_PIXELS / count * TEMPORAL_PATCH, _FRAME_MAX_FLOOR)
    return fit_size(height, width, _FRAME_MIN, most)


def resized_video_inputs(
    frames: Frames, height: int, width: int
) -> tuple[list[VisualInput], list[float]]:
    """As ``video_inputs``, at a given size (multiples of 32)."""
    pixels = [
        frame
        if frame.shape[:2] == (height, width)
        else cv2.resize(frame, (width, height), interpolation=cv2.INTER_CUBIC)
        for frame in frames.pixels
    ]
    seconds = [index / frames.fps for index in range(len(pixels))]
    if len(pixels) % TEMPORAL_PATCH:
        pixels.append(pixels[-1])
        seconds.append(seconds[-1])
    pairs = range(0, len(pixels), TEMPORAL_PATCH)
    inputs = [_patches(np.stack(pixels[i : i + TEMPORAL_PATCH])) for i in pairs]
    stamps = [sum(seconds[i : i + TEMPORAL_PATCH]) / TEMPORAL_PATCH for i in pairs]
    return inputs, stamps


def sampled_frames(total: int, fps: float) -> tuple[list[int], float]:
    """Which frames of a video file to read.

    Args:
        total: Frames in the file, at least 1.
        fps: Its frames per second, above 0.

    Returns:
        Indices, evenly spread from the first frame to the last, and the sampled
        frames per second.
    """
    wanted = int(total / fps * min(FRAMES_PER_SECOND, fps) + 0.5)
    count = min(max(wanted, 1), MAX_FRAMES)
    indices = np.linspace(0, total - 1, count).astype(int).tolist()
    return indices, count / total * fps


def _patches(frames: np.ndarray) -> VisualInput:
    """[2, height, width, 3] uint8 -> patches, normalised in float32."""
    _, height, width, channels = frames.shape
    h, w = height // PATCH, width // PATCH
    pixels = torch.from_numpy(frames).float() / 255.0
    pixels = (pixels - torch.tensor(MEAN)) / torch.tensor(STD)
    # (2, height, width, 3) -> blocks of 2 x 2 patches; inside a patch: channel,
    # frame, row, column.
    blocks = pixels.view(
        TEMPORAL_PATCH, h // MERGE, MERGE, PATCH, w // MERGE, MERGE, PATCH, channels
    ).permute(1, 4, 2, 5, 7, 0, 3, 6)
    return VisualInput(blocks.reshape(h * w, -1).contiguous(), (h, w))
