# SPDX-License-Identifier: Apache-2.0
"""Edits over HTTP: a real server, the ``openai`` client, good and bad pictures."""

import base64
import io
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI
from PIL import Image

from conftest import GOLDEN_ROOT
from images import psnr, read_rgb
from server.servers import FLOAT32, Server

pytestmark = pytest.mark.slow

GOLDEN = GOLDEN_ROOT / "qwen_image" / "edit"
EDITS = "/v1/images/edits"
SMALL = {"reference_pixels": 128 * 128, "num_inference_steps": 3}


@pytest.fixture(scope="module")
def server(serve: Callable[..., Server]) -> Server:
    return serve(GOLDEN / "Qwen-Image-Edit-2509", *FLOAT32)


@pytest.fixture(scope="module")
def openai(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def picture(width: int = 96, height: int = 64, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.radial_gradient("L").resize((width, height)).convert("RGB").save(file, kind)
    return file.getvalue()


def edit(openai: OpenAI, images: list[bytes], **fields: Any) -> list[bytes]:
    response = openai.images.edit(
        image=[(f"{i}.png", data) for i, data in enumerate(images)],
        prompt=fields.pop("prompt", "make it blue"),
        size=fields.pop("size", "128x128"),
        n=fields.pop("n", 1),
        response_format="b64_json",
        output_format="png",
        extra_body=fields,
    )
    return [base64.b64decode(item.b64_json or "") for item in response.data or []]


def test_picture_matches_the_reference(openai: OpenAI) -> None:
    (image,) = edit(
        openai,
        [(GOLDEN / "input_0.png").read_bytes()],
        prompt="make the circle blue and add a star",
        negative_prompt="blurry",
        true_cfg_scale=4.0,
        size="256x192",
        num_inference_steps=3,
        seed=3,
    )
    assert psnr(image, GOLDEN / "golden.png") >= 48


def test_several_references_and_outputs(openai: OpenAI) -> None:
    images = [picture(96, 64), picture(48, 80, "JPEG")]
    first, second = edit(openai, images, n=2, seed=5, **SMALL)
    (alone,) = edit(openai, images, seed=6, **SMALL)
    assert psnr(second, alone) >= 48
    assert (read_rgb(first) != read_rgb(second)).any()


def test_fields_change_the_picture(openai: OpenAI) -> None:
    images = [picture()]
    (plain,) = edit(openai, images, negative_prompt=" ", **SMALL)
    changes = (
        {"reference_pixels": 256 * 256},
        {"sigmas": [1.0, 0.9, 0.1]},
        {"true_cfg_scale": 1.5},
        {"negative_prompt": ""},
    )
    for change in changes:
        (image,) = edit(openai, images, **{"negative_prompt": " ", **SMALL, **change})
        assert (read_rgb(image) != read_rgb(plain)).any(), change


def test_the_size_follows_the_last_reference(openai: OpenAI) -> None:
    (image,) = edit(openai, [picture(), picture(160, 80)], size="auto", **SMALL)
    assert read_rgb(image).shape == (736, 1440, 3)


@pytest.mark.parametrize(
    ("images", "word"),
    [
        ([b"no picture"], "picture 1"),
        ([b""], "picture 1"),
        ([picture(), picture()[:60]], "picture 2"),
        ([picture(9000, 9000, "JPEG")], "9000x9000"),
        ([picture(1000, 10)], "aspect"),
        ([picture()] * 20, "20"),
        ([picture()] * 11, "11"),
    ],
    ids=["text", "empty", "truncated", "oversized", "narrow", "twenty", "eleven"],
)
def test_bad_pictures(openai: OpenAI, images: list[bytes], word: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        edit(openai, images, **SMALL)
    assert caught.value.param == "image"
    assert word in str(caught.value)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"size": "100x100"}, "size"),
        ({"reference_pixels": 100}, "reference_pixels"),
        ({"sigmas": "[0.1, 0.9]"}, "sigmas"),
        ({"true_cfg_scale": "nan"}, "true_cfg_scale"),
        ({"n": "0"}, "n"),
        ({"max_sequence_length": "1"}, "max_sequence_length"),
        ({"flow_shift": "3"}, "flow_shift"),
    ],
)
def test_bad_fields(server: Server, change: dict[str, str], field: str) -> None:
    response = httpx.post(
        server.url + EDITS,
        data={"prompt": "make it blue", "size": "128x128", **change},
        files=[("image", picture())],
        timeout=30,
    )
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == field


def test_no_form_and_other_routes(server: Server) -> None:
    response = httpx.post(server.url + EDITS, json={"prompt": "a"})
    assert response.status_code == 415
    response = httpx.post(server.url + "/v1/images/generations", json={"prompt": "a"})
    assert response.status_code == 404
