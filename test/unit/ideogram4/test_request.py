# SPDX-License-Identifier: Apache-2.0
"""Request fields, presets and their rules."""

import math

import pytest

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.models.ideogram4.request import (
    PRESETS,
    check_request,
    plan_denoising,
)


@pytest.mark.parametrize(
    ("preset", "guidance", "mu", "std"),
    [
        ("V4_QUALITY_48", (7.0,) * 45 + (3.0,) * 3, 0.0, 1.5),
        ("V4_DEFAULT_20", (7.0,) * 18 + (3.0,) * 2, 0.0, 1.75),
        ("V4_TURBO_12", (7.0,) * 11 + (3.0,), 0.5, 1.75),
        ("V4_FAST_20", (1.0,) * 20, 0.0, 1.75),
        ("V4_INSTANT_8", (1.0,) * 8, 0.0, 1.75),
    ],
)
def test_presets_are_the_vendors_in_execution_order(preset, guidance, mu, std) -> None:
    plan = plan_denoising({"preset": preset})
    assert (plan.guidance, plan.mu, plan.std) == (guidance, mu, std)
    assert plan.needs_unconditional == (guidance[0] != 1.0)


def test_the_guidance_tail_scales_with_free_steps() -> None:
    assert plan_denoising({"num_inference_steps": 10}).guidance == (7.0,) * 9 + (3.0,)
    assert plan_denoising({"num_inference_steps": 1}).guidance == (7.0,)


def test_own_values_replace_the_presets() -> None:
    own = {"guidance_schedule": [7, 5, 1], "mu": 0.3, "std": 1.2}
    plan = plan_denoising({"num_inference_steps": 3, **own})
    assert (plan.guidance, plan.mu, plan.std) == ((7, 5, 1), 0.3, 1.2)
    assert plan_denoising({"guidance_scale": 4.5, "mu": None}).guidance == (4.5,) * 20
    assert not plan_denoising({"guidance_scale": 1.0}).needs_unconditional


GOOD = {"prompt": "a cat", "width": 256, "height": 512, "seed": 3}


def test_a_good_request_comes_back_in_its_own_types() -> None:
    checked = check_request({**GOOD, "mu": 1, "preset": None})
    assert checked == {**GOOD, "mu": 1.0}
    assert isinstance(checked["mu"], float)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", None),
        ("prompt", ""),
        ("prompt", "  \n"),
        ("prompt", 5),
        ("prompt", ["a", ""]),
        ("prompt", ["a", 1]),
        ("prompt", "x" * 70_000),
        ("prompt", "half a pair \ud800"),
        ("width", 0),
        ("width", -256),
        ("width", 240),
        ("width", 257),
        ("width", 2064),
        ("width", "256"),
        ("width", 256.5),
        ("height", True),
        ("num_outputs_per_prompt", 0),
        ("num_outputs_per_prompt", 11),
        ("seed", -1),
        ("seed", 2**80),
        ("seed", 1.5),
        ("seed", "lucky"),
        ("preset", "V5"),
        ("preset", 20),
        ("num_inference_steps", 0),
        ("num_inference_steps", 10**9),
        ("num_inference_steps", 1.5),
        ("guidance_scale", math.nan),
        ("guidance_scale", math.inf),
        ("guidance_scale", -1),
        ("guidance_scale", "strong"),
        ("guidance_scale", [7.0]),
        ("guidance_schedule", 7.0),
        ("guidance_schedule", []),
        ("guidance_schedule", [7.0, 3.0]),
        ("guidance_schedule", [7.0] * 19 + [math.nan]),
        ("guidance_schedule", "7,3"),
        ("mu", 11),
        ("std", 0),
        ("std", None.__class__),
        ("negative_prompt", "ugly"),
    ],
)
def test_a_bad_value_is_refused_by_its_field(field: str, value: object) -> None:
    with pytest.raises(RequestError) as refused:
        check_request({**GOOD, field: value})
    assert refused.value.field == field
    assert str(refused.value).startswith(f"{field}: ")
    assert len(str(refused.value)) < 300


def test_refusals_say_what_is_allowed() -> None:
    with pytest.raises(RequestError, match="from 256 to 2048 in steps of 16"):
        check_request({**GOOD, "width": 17})
    with pytest.raises(RequestError, match="V4_QUALITY_48, V4_DEFAULT_20"):
        check_request({**GOOD, "preset": "fast"})
    with pytest.raises(RequestError, match="2 values given, expected one for each"):
        check_request({**GOOD, "guidance_schedule": [7.0, 3.0]})
    with pytest.raises(RequestError, match="cannot use one"):
        check_request({**GOOD, "negative_prompt": "ugly"})
    with pytest.raises(RequestError, match="beyond the aspect ratio of 6:1"):
        check_request({**GOOD, "width": 2048, "height": 256})


def test_both_kinds_of_guidance_are_refused() -> None:
    with pytest.raises(RequestError, match="choose one"):
        check_request({**GOOD, "guidance_scale": 3, "guidance_schedule": [3.0] * 20})


def test_a_blank_negative_prompt_means_none() -> None:
    assert check_request({**GOOD, "negative_prompt": " "})["prompt"] == "a cat"


def test_every_preset_can_be_planned() -> None:
    for name, preset in PRESETS.items():
        plan = plan_denoising({"preset": name})
        assert plan.num_inference_steps == preset.num_inference_steps
