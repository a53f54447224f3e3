# SPDX-License-Identifier: Apache-2.0
"""The stages one after the other on golden query states: latents and pictures.

The thinker is replaced by its stored answers; tests through a real one are in
``test/server``. The wrong variants that golden.json lists are made here, and caught.
"""

from typing import Any

import pytest
import torch

from conftest import Golden
from ming_drawing import CASES, TENSOR_DB, golden_request
from ming_studio import StoredThinker, Studio, golden_answers, psnr, stored_levels
from sglang_ext_gen.errors import RequestError, ThinkerError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def studio(omni_golden: Golden, diffusion_runtime: Any) -> Studio:
    thinker = StoredThinker(golden_answers(omni_golden))
    return Studio(omni_golden, thinker, diffusion_runtime)


@pytest.mark.parametrize("name", CASES)
def test_case_equals_the_official_picture(name, studio, omni_golden):
    [levels] = studio.draw([studio.request(**golden_request(omni_golden, name))])
    assert psnr(levels[0], stored_levels(omni_golden, name)) >= TENSOR_DB


@pytest.mark.parametrize("name", ["t2i", "t2i_text", "edit", "t2i_cfg1"])
def test_latents_after_every_step(name, studio, omni_golden):
    fields = golden_request(omni_golden, name)
    request = studio.request(**fields, return_trajectory_latents=True)
    [latents] = studio.latents([request])
    final = omni_golden.tensor(f"{name}.final_latents")
    torch.testing.assert_close(latents[0], final, atol=2e-4, rtol=0)
    steps = request.trajectory_latents[0]
    assert len(steps) == fields["num_inference_steps"]
    for step in range(len(steps) - 1):
        want = omni_golden.tensor(f"{name}.latents_after_step{step}")
        torch.testing.assert_close(steps[step], want, atol=2e-4, rtol=0)
    # The last step changes nothing, and the model is not run for it.
    assert torch.equal(steps[-1], steps[-2])


def test_words_are_refused_where_nothing_letters_them(studio, omni_golden, monkeypatch):
    fields = golden_request(omni_golden, "t2i_text")
    monkeypatch.delitem(studio.condition.modules, "glyph_encoder")
    with pytest.raises(RequestError, match="byt5_text: this checkpoint letters no"):
        studio.latents([studio.request(**fields, byt5_text="OPEN")])
    # Words that the prompt quotes are drawn as the model likes.
    assert studio.latents([studio.request(**fields)])


def test_group_equals_its_singles_and_asks_once(studio, omni_golden):
    fields = golden_request(omni_golden, "t2i")
    seeds = [fields["seed"] + i for i in range(3)]
    singles = [
        studio.draw([studio.request(**{**fields, "seed": seed})])[0] for seed in seeds
    ]
    others = golden_request(omni_golden, "t2i_text")
    studio.thinker.asked.clear()
    group = [studio.request(**{**fields, "seed": seed}) for seed in seeds]
    *together, lettered = studio.draw([*group, studio.request(**others)])
    for got, want in zip(together, singles, strict=True):
        assert (got - want).abs().max() <= 1
    assert psnr(lettered[0], stored_levels(omni_golden, "t2i_text")) >= TENSOR_DB
    assert len({request.key for request in studio.thinker.asked}) == 2


def test_same_seed_same_bits(studio, omni_golden):
    fields = golden_request(omni_golden, "edit")
    first, again = (studio.draw([studio.request(**fields)])[0] for _ in range(2))
    assert torch.equal(first, again)


def test_thinker_failure_reaches_the_caller(studio):
    request = studio.request(prompt="unknown to the thinker", width=64, height=64)
    with pytest.raises(ThinkerError, match="no stored answer"):
        studio.latents([request])


def test_real_negative_prompt_replaces_the_zeros(
    drawing_golden, diffusion_runtime, omni_golden
):
    """The other golden set, whose case was given to the official pipeline directly."""
    thinker = StoredThinker(
        {
            "a lake": drawing_golden.tensor("t2i_neg.thinker_hidden_states"),
            "blurry": drawing_golden.tensor("t2i_neg.negative_thinker_hidden_states"),
        }
    )
    studio = Studio(drawing_golden, thinker, diffusion_runtime)
    fields = {
        **{"prompt": "a lake", "negative_prompt": "blurry"},
        **{"width": 64, "height": 64, "num_inference_steps": 3},
        **{"guidance_scale": 3.0, "seed": 5},
    }
    [latents] = studio.latents([studio.request(**fields)])
    want = drawing_golden.tensor("t2i_neg.latents_after_step2")
    torch.testing.assert_close(latents, want, atol=2e-4, rtol=0)
    # Without guidance nothing leads away from it, so the thinker is not asked.
    thinker.asked.clear()
    studio.latents([studio.request(**{**fields, "guidance_scale": 1.0})])
    assert [request.prompt for request in thinker.asked] == ["a lake"]
