# SPDX-License-Identifier: Apache-2.0
"""Text and image tokens in one sequence: ``[left padding][text][image]``.

Source: section "packed sequence" of the reference pipeline of diffusers.

Prompts of a batch are padded on the left to the longest one, never to the
model's limit: the values of real tokens are the same and the sequence is short.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# All position axes of image tokens start here, far above any text position.
IMAGE_POSITION_OFFSET = 65536
PIXELS_PER_TOKEN = 16


@dataclass(frozen=True)
class PackedText:
    """Features of a batch of prompts, left-padded to one length.

    Args:
        features: [B, T, F] float32, zero at padding.
        mask: [B, T] bool, false at padding.
        position_ids: [B, T, 3] int64, from 0 at each prompt's first token and
            0 at padding.
    """

    features: Tensor
    mask: Tensor
    position_ids: Tensor

    @property
    def has_padding(self) -> bool:
        return not bool(self.mask.all())


def pack_text(features: Sequence[Tensor]) -> PackedText:
    """Stack the features of prompts of any lengths.

    Args:
        features: One [T_i, F] float32 tensor a prompt.
    """
    longest = max(len(item) for item in features)
    batch, width = len(features), features[0].shape[-1]
    packed = features[0].new_zeros(batch, longest, width)
    mask = torch.zeros(batch, longest, dtype=torch.bool, device=packed.device)
    positions = torch.zeros(batch, longest, dtype=torch.int64, device=packed.device)
    for row, item in enumerate(features):
        start = longest - len(item)
        packed[row, start:] = item
        mask[row, start:] = True
        positions[row, start:] = torch.arange(len(item), device=packed.device)
    return PackedText(packed, mask, positions[..., None].expand(-1, -1, 3))


def image_position_ids(height: int, width: int, device: torch.device) -> Tensor:
    """Positions (t, h, w) of the image tokens, row by row.

    Args:
        height: Picture height in pixels, a multiple of 16.
        width: Picture width in pixels, a multiple of 16.

    Returns:
        [1, I, 3] int64; also t is ``IMAGE_POSITION_OFFSET``, not 0.
    """
    rows = torch.arange(height // PIXELS_PER_TOKEN, device=device)
    columns = torch.arange(width // PIXELS_PER_TOKEN, device=device)
    h, w = torch.meshgrid(rows, columns, indexing="ij")
    position_ids = torch.stack([torch.zeros_like(h), h, w], dim=-1).reshape(1, -1, 3)
    return position_ids + IMAGE_POSITION_OFFSET


def tokens_to_latent_image(latents: Tensor, height: int, width: int) -> Tensor:
    """Unpack image tokens into the VAE's latent image.

    Args:
        latents: [B, I, C]; the channel of a token is (row in patch, column in
            patch, VAE channel), VAE channel fastest.
        height: Picture height in pixels.
        width: Picture width in pixels.

    Returns:
        [B, C / 4, height / 8, width / 8].
    """
    batch, _, channels = latents.shape
    gh, gw = height // PIXELS_PER_TOKEN, width // PIXELS_PER_TOKEN
    patches = latents.view(batch, gh, gw, 2, 2, channels // 4)
    image = patches.permute(0, 5, 1, 3, 2, 4)  # [B, C/4, gh, 2, gw, 2]
    return image.reshape(batch, channels // 4, 2 * gh, 2 * gw)
