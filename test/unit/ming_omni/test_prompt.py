# SPDX-License-Identifier: Apache-2.0
"""Token ids, spans and positions, against the official processor and model code."""

import pytest
import torch

from sglang_ext_gen.errors import ConfigError, RequestError
from sglang_ext_gen.models.ming_omni.thinker import prompt
from sglang_ext_gen.models.ming_omni.thinker.tokens import MediaTokens

# Case -> grids in tokens of pictures, grid and stamps of the video, tokens of clips.
IMAGE0, IMAGE1, VIDEO, CLIP0, CLIP1 = (2, 3), (1, 6), ((2, 2), [0.25, 1.25]), 35, 16
CASES = {
    "a_text": ([], [], []),
    "a_multiturn": ([], [], []),
    "b_image": ([IMAGE0], [], []),
    "b_two_images": ([IMAGE1, IMAGE0], [], []),
    "b_image_first": ([IMAGE1], [], []),
    "c_audio": ([], [], [CLIP0]),
    "c_two_audio": ([], [], [CLIP0, CLIP1]),
    "d_video": ([], [VIDEO], []),
    "f_mixed": ([IMAGE0], [VIDEO], [CLIP0]),
}
GENERATION = {"e_t2i": [], "e_short": [], "e_edit": [IMAGE0]}
TEXTS = {"b_image_first": "<IMAGE>ok", "e_short": "cat"}


@pytest.fixture(scope="module")
def expand(ming_tokenizer):
    tokens = MediaTokens.resolve(ming_tokenizer)

    def run(text, images=(), videos=(), clips=()):
        return prompt.expand(
            text,
            [prompt.image_piece(grid) for grid in images],
            [prompt.video_piece(*video) for video in videos],
            [prompt.audio_piece(length) for length in clips],
            ming_tokenizer.encode,
            tokens,
        )

    return run


@pytest.mark.parametrize("case", CASES)
def test_prompts_equal_the_official_ones(ming_golden, expand, case):
    text = TEXTS.get(case, ming_golden.json["cases"][case]["prompt_text"])
    got = expand(text, *CASES[case])
    assert got.ids == ming_golden.tensor(f"{case}.input_ids").tolist()
    positions, following = prompt.position_ids(got)
    assert torch.equal(positions.int(), ming_golden.tensor(f"{case}.position_ids"))
    expected = ming_golden.json["cases"][case]
    assert following - len(got.ids) == expected["rope_delta"]
    assert expected["decode_positions_first3"][0] == [following] * 3


@pytest.mark.parametrize("case", CASES)
def test_spans_are_the_tokens_of_their_router(ming_golden, expand, case):
    text = TEXTS.get(case, ming_golden.json["cases"][case]["prompt_text"])
    got = expand(text, *CASES[case])
    for mask, kinds in (("image_mask", {"image", "frame"}), ("audio_mask", {"audio"})):
        mine = torch.zeros(len(got.ids), dtype=torch.bool)
        for span in got.spans:
            first, last = span.offsets
            mine[first : last + 1] |= span.kind in kinds
        assert torch.equal(mine, ming_golden.tensor(f"{case}.{mask}"))


@pytest.mark.parametrize("case", GENERATION)
def test_query_blocks_equal_the_official_ones(
    ming_golden, ming_tokenizer, expand, case
):
    text = TEXTS.get(case, ming_golden.json["cases"][case]["prompt_text"])
    before = expand(text, GENERATION[case])
    assert before.ids == ming_golden.tensor(f"{case}.prompt_ids").tolist()
    got = prompt.append_query_blocks(before, [4], MediaTokens.resolve(ming_tokenizer))
    assert got.ids == ming_golden.tensor(f"{case}.input_ids").tolist()
    positions, _ = prompt.position_ids(got)
    assert torch.equal(positions.int(), ming_golden.tensor(f"{case}.position_ids"))
    first, last = got.spans[-1].offsets
    query = ming_golden.tensor(f"{case}.query_mask").nonzero().flatten().tolist()
    assert query == list(range(first, last + 1))


def test_several_scales_follow_one_another(ming_tokenizer, expand):
    tokens = MediaTokens.resolve(ming_tokenizer)
    got = prompt.append_query_blocks(expand("cat"), [2, 3], tokens)
    assert len(got.ids) == 3 + (4 + 2) + (9 + 2)
    positions, following = prompt.position_ids(got)
    # Text 0-2, <image> 3, block at 4, </image> 5, <image> 6, block at 7, </image> 8.
    assert positions[0, 4:8].tolist() == [4] * 4
    assert positions[2, 4:8].tolist() == [3, 4, 5, 6]
    assert positions[2, 10:19].tolist() == list(range(3, 12))
    assert following == 9


def test_sequential_positions_would_be_seen(ming_golden):
    """The wrong variant of peers differs wherever there is a picture."""
    for case in ("b_image", "b_image_first", "d_video", "f_mixed", "e_short"):
        official = ming_golden.tensor(f"{case}.position_ids")
        assert not torch.equal(official[2], torch.arange(official.shape[1]).int())


@pytest.mark.parametrize(
    ("text", "images", "message"),
    [
        ("no place", [IMAGE0], "0 <IMAGE> and 1 image"),
        ("<IMAGE><IMAGE>", [IMAGE0], "2 <IMAGE> and 1 image"),
        ("<IMAGE><imagePatch>", [IMAGE0], "patch tokens"),
        ("<audioPatch>", [], "patch tokens"),
    ],
)
def test_media_and_placeholders_must_agree(expand, text, images, message):
    with pytest.raises(RequestError, match=message):
        expand(text, images)


def test_another_models_tokenizer_is_refused():
    class Other:
        def get_vocab(self):
            return {"<image>": 1}

    with pytest.raises(ConfigError, match=r"<imagePatch>.*--tokenizer-path"):
        MediaTokens.resolve(Other())
