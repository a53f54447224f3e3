# SPDX-License-Identifier: Apache-2.0
"""Packed sequences: padding, positions, unpacking."""

import torch

from sglang_ext_gen.models.ideogram4.packing import (
    IMAGE_POSITION_OFFSET,
    image_position_ids,
    pack_text,
    tokens_to_latent_image,
)


def test_prompts_are_padded_on_the_left() -> None:
    long, short = torch.randn(5, 3), torch.randn(2, 3)
    text = pack_text([long, short])
    assert text.has_padding
    assert text.mask.tolist() == [[True] * 5, [False] * 3 + [True] * 2]
    assert torch.equal(text.features[0], long)
    assert torch.equal(text.features[1, 3:], short)
    assert not text.features[1, :3].any()
    assert text.position_ids[1].tolist() == [
        [0] * 3,
        [0] * 3,
        [0] * 3,
        [0] * 3,
        [1] * 3,
    ]


def test_equal_lengths_need_no_mask() -> None:
    assert not pack_text([torch.randn(4, 3), torch.randn(4, 3)]).has_padding


def test_image_positions_run_row_by_row_from_the_offset() -> None:
    position_ids = image_position_ids(32, 48, torch.device("cpu"))
    assert position_ids.shape == (1, 6, 3)
    expected = [(0, h, w) for h in range(2) for w in range(3)]
    assert (position_ids[0] - IMAGE_POSITION_OFFSET).tolist() == [
        list(position) for position in expected
    ]


def test_unpacking_puts_each_channel_where_it_belongs() -> None:
    height, width, channels = 32, 48, 8  # 2 x 3 tokens, 2 VAE channels
    latents = torch.arange(6 * channels, dtype=torch.float32).view(1, 6, channels)
    image = tokens_to_latent_image(latents, height, width)
    assert image.shape == (1, 2, 4, 6)
    for token, (row, column) in enumerate((r, c) for r in range(2) for c in range(3)):
        for patch_row in range(2):
            for patch_column in range(2):
                for channel in range(2):
                    source = (patch_row * 2 + patch_column) * 2 + channel
                    pixel = image[
                        0, channel, 2 * row + patch_row, 2 * column + patch_column
                    ]
                    assert pixel == latents[0, token, source]
