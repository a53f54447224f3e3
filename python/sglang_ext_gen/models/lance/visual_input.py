# SPDX-License-Identifier: Apache-2.0
"""Source pictures and videos: frame sampling, resizing, normalising.

Source: the official bucket transform and frame sampler. A picture is cut in its
centre to the nearest of six ratios, resized to that bucket, then cut to whole tokens.
The same frames go to the vision tower and to the VAE, each at its own size.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sglang_ext_gen.models.lance.config import PIXELS_PER_LATENT, LanceVisionConfig
from sglang_ext_gen.models.lance.packing import Grid
from sglang_ext_gen.models.lance.tasks import (
    FPS,
    MAX_SOURCE_SECONDS,
    RESOLUTIONS,
    UNKNOWN_FPS,
    Size,
)

_VIT_MEAN = (0.48145466, 0.4578275, 0.40821073)
_VIT_STD = (0.26862954, 0.26130258, 0.27577711)


def sample_frame_indices(num_frames: int, fps: float) -> list[int]:
    """Which frames of a source video are used: 4 k + 1 of them, evenly spread.

    Args:
        num_frames: Frames of the video, at least 1.
        fps: Its average frame rate; 0 where unknown.
    """
    rate = round(fps) or UNKNOWN_FPS
    wanted = round(min(num_frames / rate, MAX_SOURCE_SECONDS) * FPS)
    wanted = wanted - 3 if wanted % 4 == 0 else wanted // 4 * 4 + 1
    spread = np.linspace(0, num_frames - 1, max(wanted, 1))
    return [int(index) for index in spread]


def flatten_to_rgb(image: Image.Image) -> Image.Image:
    """RGB of any mode; what is transparent becomes white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def nearest_bucket(width: int, height: int, buckets: Sequence[Size]) -> Size:
    """The bucket whose ratio is nearest to that of a picture; the first wins."""
    ratio = width / height
    return min(buckets, key=lambda size: abs(ratio - size[1] / size[0]))


def vae_size(width: int, height: int, resolution: str) -> Size:
    """(height, width) of the latents' picture that a source leads to."""
    return nearest_bucket(width, height, RESOLUTIONS[resolution].vae)


def resize_to_bucket(
    image: Image.Image, buckets: Sequence[Size], multiple_of: int
) -> Image.Image:
    """Cut to the bucket's ratio, resize (bicubic), cut to whole tokens."""
    height, width = nearest_bucket(*image.size, buckets)
    cut = _centre_crop(image, *_crop_size(*image.size, width / height))
    resized = cut.resize((width, height), Image.Resampling.BICUBIC)
    return _centre_crop(
        resized, width // multiple_of * multiple_of, height // multiple_of * multiple_of
    )


def vae_pixels(frames: Sequence[Image.Image], resolution: str) -> Tensor:
    """Frames for the VAE.

    Returns:
        [1, 3, frames, height, width] float32 in [-1, 1].
    """
    buckets = RESOLUTIONS[resolution].vae
    resized = [resize_to_bucket(f, buckets, PIXELS_PER_LATENT) for f in frames]
    return (_stack(resized) * 2 - 1)[None]


def vit_patches(
    frames: Sequence[Image.Image], resolution: str, config: LanceVisionConfig
) -> tuple[Tensor, Grid]:
    """Flattened patches for the vision tower, in its merge order.

    An odd number of frames repeats the last one (a picture is shown twice).

    Returns:
        [patches, patch_dim] float32, and the grid (t, h, w) before merging.
    """
    buckets = RESOLUTIONS[resolution].vit
    resized = [resize_to_bucket(f, buckets, config.pixels_per_token) for f in frames]
    pixels = _stack(resized)
    mean, std = (pixels.new_tensor(v).view(3, 1, 1, 1) for v in (_VIT_MEAN, _VIT_STD))
    pixels = (pixels - mean) / std  # [3, frames, height, width]
    missing = -len(frames) % config.temporal_patch_size
    pixels = torch.cat([pixels, *[pixels[:, -1:]] * missing], dim=1)

    step, merge = config.patch_size, config.spatial_merge_size
    grid = (
        pixels.shape[1] // config.temporal_patch_size,
        pixels.shape[2] // step,
        pixels.shape[3] // step,
    )
    patches = pixels.reshape(
        3,
        grid[0],
        config.temporal_patch_size,
        grid[1] // merge,
        merge,
        step,
        grid[2] // merge,
        merge,
        step,
    )
    # [t, h / m, w / m, m, m, channel, frame in patch, row, column]
    patches = patches.permute(1, 3, 6, 4, 7, 0, 2, 5, 8)
    return patches.reshape(-1, config.patch_dim), grid


def _stack(frames: Sequence[Image.Image]) -> Tensor:
    """[3, frames, height, width] float32 in [0, 1]."""
    arrays = np.stack([np.asarray(frame) for frame in frames])
    return torch.from_numpy(arrays).permute(3, 0, 1, 2).float() / 255


def _crop_size(width: int, height: int, ratio: float) -> tuple[int, int]:
    """Largest (width, height) of this ratio inside a picture."""
    if width / height < ratio:
        return width, round(width / ratio)
    if width / height > ratio:
        return round(height * ratio), height
    return width, height


def _centre_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
