# SPDX-License-Identifier: Apache-2.0
"""The golden data sees each known mistake: an independent decoder with and without it.

The same threshold, 2e-4 on hidden states, decides in
test/server/ming_omni/test_engine.py whether the served model is right.
"""

import pytest
import torch

from ming_reference import Variant, decode, load

THRESHOLD = 2e-4
CASES = ("a_text", "b_image", "b_image_first", "c_audio", "d_video", "f_mixed", "e_t2i")
# Mistake -> cases that must see it.
VISIBLE = {
    "sequential_positions": ("b_image", "b_image_first", "d_video", "f_mixed", "e_t2i"),
    "text_router_everywhere": ("b_image", "c_audio", "d_video", "f_mixed", "e_t2i"),
    "unnormalised_features": ("b_image", "c_audio", "d_video", "f_mixed"),
    "prenorm_states": CASES,
    "no_routed_scaling": CASES,
}


@pytest.fixture(scope="module")
def error_of(ming_golden):
    weights = load(ming_golden.path)

    def run(case: str, variant: Variant) -> float:
        tensor = ming_golden.tensor
        image, audio = tensor(f"{case}.image_mask"), None
        modality = image.long()
        if not case.startswith("e_"):
            audio = tensor(f"{case}.audio_mask")
            modality = modality + 2 * audio.long()
        features = _features(ming_golden, case, image, audio)
        got = decode(
            *(weights, tensor(f"{case}.input_ids"), tensor(f"{case}.position_ids")),
            *(modality, features, variant),
        )
        return float((got - tensor(f"{case}.hidden")).abs().max())

    return run


def _features(golden, case, image, audio):
    """Media embeddings of the golden data in the order of their tokens."""
    if case == "a_text":
        return None
    if case == "e_t2i":
        from safetensors import safe_open

        with safe_open(golden.path / "mlp" / "model.safetensors", "pt") as stored:
            return stored.get_tensor("query_tokens_dict.4x4").float()
    visual = [
        golden.tensor(f"{case}.{kind}_embeds")
        for kind in ("image", "video")
        if _has(golden, f"{case}.{kind}_embeds")
    ]
    media = torch.zeros(len(image), 64)
    if visual:
        media[image] = torch.cat(visual)
    if audio is not None and audio.any():
        media[audio] = golden.tensor(f"{case}.audio_embeds")
    return media[image | audio]


def _has(golden, name):
    from safetensors import safe_open

    with safe_open(golden.path / "golden.safetensors", "pt") as stored:
        return name in stored.keys()


@pytest.mark.parametrize("case", CASES)
def test_the_official_model_is_within_the_threshold(error_of, case):
    assert error_of(case, Variant()) < THRESHOLD


@pytest.mark.parametrize(
    ("mistake", "case"), [(m, case) for m, cases in VISIBLE.items() for case in cases]
)
def test_each_mistake_is_far_beyond_it(error_of, mistake, case):
    assert error_of(case, Variant(**{mistake: True})) > 100 * THRESHOLD
