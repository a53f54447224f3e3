# SPDX-License-Identifier: Apache-2.0
"""The mask over what sequence parallelism pads; the runs are in test/server/."""

import pytest
import torch

from lazy import LazyModule

dit = LazyModule("sglang_ext_gen.models.qwen_image.dit")


def inputs_of(shapes: list[tuple[int, int, int]], length: int, mask=None) -> dict:
    return {
        "encoder_hidden_states": torch.rand(2, length, 4),
        "encoder_hidden_states_mask": mask,
        "img_shapes": [shapes] * 2,
        "freqs_cis": (torch.rand(3, 8), torch.rand(length, 8)),
        "freqs_complex": None,
        "timestep": "kept",
    }


def test_nothing_is_done_where_nothing_is_padded() -> None:
    # Stock masks a padded text itself.
    for shapes in ([(1, 4, 4)], [(1, 4, 4), (1, 2, 3)]):
        inputs = inputs_of(shapes, length=5)
        assert dit.mask_padding(inputs, rank=1, ranks=2) is inputs


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_token_is_seen_once(ranks: int) -> None:
    shapes = [(1, 9, 11), (1, 3, 3), (1, 2, 1)]
    lengths = [5, 3]
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    given = inputs_of(shapes, 5, mask)
    parts = [dit.mask_padding(given, rank, ranks) for rank in range(ranks)]
    for part in parts:
        text = part["encoder_hidden_states"]
        assert text.shape[1] % ranks == 0
        assert torch.equal(text[:, :5], given["encoder_hidden_states"])
        picture_cache, text_cache = part["freqs_cis"]
        assert picture_cache is given["freqs_cis"][0]
        assert len(text_cache) == text.shape[1]
        assert part["encoder_hidden_states_mask"] is None
        assert part["timestep"] == "kept"
    masks = [part["attention_kwargs"]["attn_mask"] for part in parts]
    assert len({mask.shape for mask in masks}) == 1
    seen = torch.cat(masks, dim=1).sum(dim=1)
    assert seen.tolist() == [length + 99 + 11 for length in lengths]


def test_a_mask_alone_is_kept() -> None:
    mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    parts = [dit.mask_padding(inputs_of([(1, 2, 2)], 4, mask), r, 2) for r in (0, 1)]
    masks = [part["attention_kwargs"]["attn_mask"] for part in parts]
    assert masks[0].tolist() == [[True] * 4] * 2
    assert masks[1].tolist() == [[True] * 4, [False, False, True, True]]
