# SPDX-License-Identifier: Apache-2.0
"""Fields of an image request: what passes, in which form, and what is refused.

Ideogram 4 is the sample family; its own limits are tested with it.
"""

from dataclasses import replace
from typing import Any

import pytest

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.http import images
from sglang_ext_gen.http.errors import Refusal
from sglang_ext_gen.http.images import checked_image_body
from sglang_ext_gen.http.served_model import ServedModel
from sglang_ext_gen.models.ideogram4 import request
from sglang_ext_gen.models.qwen_image import request as qwen_image

MODEL = ServedModel(
    title="Ideogram 4",
    table=request.REQUEST_FIELDS,
    routes=frozenset({images.PATH}),
    check=request.check_request,
)


def check(**body: Any) -> dict[str, Any]:
    return checked_image_body({"prompt": "a cat", **body}, MODEL)


def test_the_least_request_keeps_the_familys_own_size():
    assert check() == {"size": None, "prompt": "a cat"}


def test_a_full_request_is_rewritten_with_checked_values():
    body = check(
        model="org/served-name",
        n=2,
        size="512x256",
        seed=7.0,
        guidance_scale=4,
        response_format="b64_json",
        output_format="png",
        user="someone",
        background="opaque",
        quality="auto",
        extra_body={"preset": "V4_FAST_20", "mu": None},
    )
    assert body == {
        "size": None,
        "prompt": "a cat",
        "n": 2,
        "width": 512,
        "height": 256,
        "seed": 7,
        "guidance_scale": 4.0,
        "preset": "V4_FAST_20",
        "response_format": "b64_json",
        "output_format": "png",
    }
    assert type(body["seed"]) is int
    assert type(body["guidance_scale"]) is float


@pytest.mark.parametrize("size", [{"size": "auto"}, {"size": None}, {}])
def test_no_size_is_the_familys_default(size: dict[str, Any]):
    assert "width" not in check(**size)


def test_width_and_height_replace_size():
    body = check(width=256, height=512)
    assert (body["width"], body["height"]) == (256, 512)


def test_any_model_name_is_accepted_as_in_stock():
    assert "model" not in check(model="gpt-image-1")
    with pytest.raises(RequestError, match="model"):
        check(model=3)


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({"prompt": None}, "prompt", "missing"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": " \n"}, "prompt", "empty"),
        ({"prompt": ["a cat"]}, "prompt", "a list given"),
        ({"prompt": 3}, "prompt", "a int given"),
        ({"prompt": "\ud83d"}, "prompt", "surrogate"),
        ({"n": 0}, "n", "0 given"),
        ({"n": 11}, "n", "11 given, expected an integer from 1 to 10"),
        ({"n": True}, "n", "True given"),
        ({"n": "2"}, "n", "'2' given"),
        ({"size": "256"}, "size", "WIDTHxHEIGHT"),
        ({"size": "256x"}, "size", "WIDTHxHEIGHT"),
        ({"size": "-256x256"}, "size", "WIDTHxHEIGHT"),
        ({"size": "\u0662\u0665\u0666x256"}, "size", "WIDTHxHEIGHT"),
        ({"size": 256}, "size", "WIDTHxHEIGHT"),
        ({"size": "256x17"}, "size", "height 17 given"),
        ({"size": "4096x256"}, "size", "width 4096 given"),
        ({"size": "2048x256"}, "size", "aspect ratio"),
        ({"size": "256x256", "width": 256, "height": 256}, "size", "choose one"),
        ({"width": 256}, "width", "given alone"),
        ({"height": 256}, "height", "given alone"),
        ({"width": 17, "height": 256}, "width", "17 given"),
        ({"seed": float("inf")}, "seed", "inf given"),
        ({"seed": 10**400}, "seed", "given"),
        ({"guidance_scale": 10**400}, "guidance_scale", "given"),
        ({"guidance_scale": float("nan")}, "guidance_scale", "nan given"),
        ({"guidance_schedule": [1.0]}, "guidance_schedule", "1 values given"),
        ({"negative_prompt": "blur"}, "negative_prompt", "cannot use one"),
        ({"response_format": "png"}, "response_format", "one of url, b64_json"),
        ({"output_format": "gif"}, "output_format", "one of png"),
        ({"output_compression": 101}, "output_compression", "from 0 to 100"),
        ({"output_quality": "best"}, "output_quality", "one of default"),
        ({"enhance_prompt": "yes"}, "enhance_prompt", "true or false"),
        ({"background": "transparent"}, "background", "one of auto, opaque"),
        ({"quality": "hd"}, "quality", "one of auto"),
        ({"user": {"name": "x"}}, "user", "a string"),
        ({"extra_body": {"n": 0}}, "n", "0 given"),
    ],
)
def test_values_that_are_refused(body: dict[str, Any], field: str, message: str):
    with pytest.raises(RequestError, match=message) as caught:
        check(**body)
    assert caught.value.field == field


def test_a_missing_prompt_is_named():
    with pytest.raises(RequestError, match="prompt: missing"):
        checked_image_body({"n": 1}, MODEL)


@pytest.mark.parametrize("name", sorted(images.REFUSED))
def test_refused_names_say_why(name: str):
    with pytest.raises(Refusal, match="unknown field") as caught:
        check(**{name: None, "extra_body": {name: "x"}})
    assert caught.value.param == name
    assert images.REFUSED[name] in caught.value.message


def test_other_unknown_names_list_the_known_ones():
    with pytest.raises(
        Refusal, match="known fields: attention_backend_override, "
    ) as caught:
        check(guidance=3)
    assert (caught.value.param, caught.value.code) == ("guidance", "unknown_field")


def test_a_long_unknown_name_is_cut():
    with pytest.raises(Refusal) as caught:
        check(**{"x" * 10_000: 1})
    assert len(caught.value.message) < 600


def test_every_field_has_one_meaning():
    protocol = [field.name for field in (*images.FORWARDED, *images.WITHOUT_EFFECT)]
    assert len(set(protocol)) == len(protocol)
    assert not set(protocol) & MODEL.fields
    assert not set(images.REFUSED) & (MODEL.fields - {"num_outputs_per_prompt"})


OPEN = replace(MODEL, allows_control=True)
OPERATORS = {
    "profile": True,
    "profile_all_stages": True,
    "num_profiled_timesteps": 2,
    "perf_dump_path": "/tmp/timings.json",
    "enable_upscaling": True,
    "upscaling_model_path": "/models/esrgan.pth",
    "upscaling_scale": 2,
}


def test_an_open_server_takes_the_operators_fields():
    assert set(OPERATORS) == {field.name for field in images.OPERATORS}
    body = checked_image_body({"prompt": "a cat", **OPERATORS}, OPEN)
    assert body == {"size": None, "prompt": "a cat", **OPERATORS}
    for name, bad in (("profile", "yes"), ("upscaling_scale", 9)):
        with pytest.raises(RequestError, match=name):
            checked_image_body({"prompt": "a cat", name: bad}, OPEN)


QWEN = ServedModel(
    title="Qwen-Image",
    table=qwen_image.REQUEST_FIELDS,
    routes=frozenset({images.PATH}),
    check=qwen_image.check_request,
)


def test_fields_of_stocks_loop_pass_where_a_family_has_them():
    fields = {
        "enable_cache_dit": True,
        "cache_dit_params": {"max_warmup_steps": 2},
        "cfg_gate_step": 0.5,
        "attention_backend_override": "torch_sdpa",
        "skip_softmax_params": {"threshold_scale_factor": 1.0},
        "quality": "exact",
        "flow_shift": 3.0,
        "progressive_mode": "dct",
        "progressive_levels": 2,
        "progressive_delta": 0.02,
    }
    body = checked_image_body({"prompt": "a cat", **fields}, QWEN)
    assert body == {"size": None, "prompt": "a cat", **fields}
    with pytest.raises(RequestError, match="cache_dit_params: 3 given, expected an ob"):
        checked_image_body({"prompt": "a cat", "cache_dit_params": 3}, QWEN)


def test_no_wish_for_a_quality_is_taken_by_every_family():
    for model in (MODEL, QWEN):
        body = checked_image_body({"prompt": "a cat", "quality": "auto"}, model)
        assert body == {"size": None, "prompt": "a cat"}
    with pytest.raises(RequestError, match="quality: 'hd' given"):
        checked_image_body({"prompt": "a cat", "quality": "hd"}, QWEN)
