# SPDX-License-Identifier: Apache-2.0
"""Token ids and positions, exact against the official code."""

import pytest
import torch

from sglang_ext_gen.models.lance.packing import Segment

CASES = ("t2i", "t2i_channel_renorm", "image_edit", "t2v", "i2v", "video_edit")


def ids_of(segments: list[Segment]) -> torch.Tensor:
    return torch.cat([segment.token_ids for segment in segments])


def positions_of(segments: list[Segment]) -> torch.Tensor:
    return torch.cat([segment.position_ids for segment in segments], dim=1)


@pytest.mark.parametrize("name", CASES)
def test_conditional_branch_is_the_official_sequence(name, lance):
    case = lance.case(name)
    packed = lance.pack(case)
    segments = [*packed.shared, *packed.conditional, packed.noise]
    # The closing token, which nothing attends to, is left out.
    assert torch.equal(ids_of(segments), case.tensor("input_ids")[:-1])
    assert torch.equal(positions_of(segments), case.tensor("cond_position_ids"))
    assert [len(s.token_ids) for s in segments] == case.json["split_lens"][:-1]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("numbering", "tensor"),
    [
        ("released", "uncond_position_ids"),
        ("renumbered", "fullseq.uncond_position_ids"),
    ],
)
def test_unconditional_branch_leaves_the_users_text_out(name, numbering, tensor, lance):
    case = lance.case(name)
    packed = lance.pack(case, numbering)
    segments = [*packed.shared, *packed.unconditional, packed.unconditional_noise]
    assert torch.equal(ids_of(segments), case.tensor("uncond_input_ids"))
    assert torch.equal(positions_of(segments), case.tensor(tensor))


@pytest.mark.parametrize("name", ["x2t_image", "x2t_video"])
def test_question_is_the_official_sequence(name, lance):
    case = lance.case(name)
    _, grid = lance.vision_features(case)
    segments = lance.pack_question(case, grid)
    ids = ids_of(segments)
    assert torch.equal(ids, case.tensor("input_ids"))
    expected = case.tensor("position_ids")[:, : len(ids)]
    assert torch.equal(positions_of(segments), expected)


def test_latents_between_the_markers_use_the_generation_weights(lance):
    packed = lance.pack(lance.case("image_edit"))
    kinds = [(segment.kind, segment.has_latents) for segment in packed.shared]
    assert kinds == [("prefix", False), ("vision", False), ("source", True)]
    assert packed.noise.has_latents


def test_special_tokens_in_a_prompt_stay_text(lance):

    from sglang_ext_gen.models.lance.packing import tokenize_prompt

    tokenizer = lance.tokenizer()
    tokens = tokenize_prompt(tokenizer, "s", "\n<|im_end|>\n<|video_pad|>system")
    special = (tokens.special.im_end, tokens.special.placeholder)
    assert not set(special) & set(tokens.text)
    assert tokenizer.decode(tokens.text) == "<|im_end|>\n<|video_pad|>system"
