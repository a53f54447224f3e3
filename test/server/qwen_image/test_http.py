# SPDX-License-Identifier: Apache-2.0
"""Qwen-Image over HTTP: a real server, the ``openai`` client, the golden checkpoint."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import OpenAI
from safetensors.torch import load_file, save_file

from conftest import GOLDEN_ROOT
from images import psnr, read_rgb
from qwen_image_runtime import write_adapter
from server.bad_requests import (
    IMAGES,
    QWEN_IMAGE,
    QWEN_IMAGE_GOOD,
    BadRequest,
    live,
)
from server.servers import FLOAT32, Server

pytestmark = pytest.mark.slow

GOLDEN = GOLDEN_ROOT / "qwen_image" / "t2i"
REQUEST = {
    "negative_prompt": "low quality, blurry, a longer negative prompt",
    "true_cfg_scale": 4.0,
    "num_inference_steps": 4,
    "seed": 1,
}


@pytest.fixture(scope="module")
def server(
    serve: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory
) -> Server:
    # Found by its content: neither the name nor a parent says what it is.
    checkpoint = tmp_path_factory.mktemp("any") / "folder"
    checkpoint.symlink_to(GOLDEN / "Qwen-Image", target_is_directory=True)
    # For adapters; the routes are closed by default (ideogram4/test_http.py).
    return serve(checkpoint, *FLOAT32, SGLANG_EXT_GEN_ALLOW_CONTROL_ROUTES="1")


@pytest.fixture(scope="module")
def openai(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def decoded(response: Any) -> list[bytes]:
    return [base64.b64decode(item.b64_json) for item in response.data]


def generate(openai: OpenAI, **fields: Any) -> list[bytes]:
    return decoded(
        openai.images.generate(
            prompt="a red circle on white",
            size="256x256",
            response_format="b64_json",
            output_format="png",
            n=fields.pop("n", 1),
            extra_body={**REQUEST, **fields},
        )
    )


def test_picture_matches_the_reference(openai: OpenAI) -> None:
    (image,) = generate(openai)
    assert psnr(image, GOLDEN / "golden.png") >= 48


def test_n_pictures_have_successive_seeds(openai: OpenAI) -> None:
    first, second = generate(openai, n=2)
    (alone,) = generate(openai, seed=2)
    assert psnr(first, GOLDEN / "golden.png") >= 48
    assert psnr(second, alone) >= 48


def test_fields_change_the_picture(openai: OpenAI) -> None:
    (plain,) = generate(openai)
    changes = (
        {"true_cfg_scale": 1.0},
        {"sigmas": [1.0, 0.9, 0.5, 0.1]},
        {"max_sequence_length": 2},
        {"negative_prompt": "other"},
    )
    for change in changes:
        (image,) = generate(openai, **change)
        assert (read_rgb(image) != read_rgb(plain)).any(), change


# The control routes of this server are open, those rows are for others.
BAD = [case for case in live(QWEN_IMAGE) if case.status != 403]


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.name)
def test_bad_requests_are_refused(server: Server, case: BadRequest) -> None:
    response = httpx.request(
        case.method,
        server.url + case.path,
        content=case.content,
        headers=case.headers,
        timeout=60,
    )
    assert response.status_code == case.status, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == case.param
    assert case.word in error["message"]


def set_lora(server: Server, **fields: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/set_lora", json=fields, timeout=60)


def test_adapters(server: Server, openai: OpenAI, tmp_path: Path) -> None:
    (plain,) = generate(openai)
    base = load_file(
        GOLDEN / "Qwen-Image" / "transformer" / "diffusion_pytorch_model.safetensors"
    )
    paths = {name: str(tmp_path / f"{name}.safetensors") for name in ("a", "b", "c")}
    alphas = (None, 3.0, 0.5)
    for seed, (path, alpha) in enumerate(zip(paths.values(), alphas, strict=True)):
        write_adapter(Path(path), seed, alpha, base)
    pictures: dict[str, bytes] = {}
    for name in ("a", "b", "c", "a", "c", "b"):
        response = set_lora(server, lora_nickname=name, lora_path=paths[name])
        assert response.status_code == 200, response.text
        (adapter,) = response.json()["adapters"]
        assert (adapter["nickname"], adapter["path"]) == (name, paths[name])
        assert adapter["matched_layers"] == 3
        (image,) = generate(openai)
        assert psnr(image, pictures.setdefault(name, image)) >= 48
    assert len({plain, *pictures.values()}) == 4

    write_adapter(Path(paths["a"]), 9, None, base)
    wrong = {"transformer.blocks.9.attn.to_q.lora_A.weight": torch.ones(2, 64)}
    save_file({**load_file(paths["a"]), **wrong}, paths["a"])
    for fields, word in (
        ({"lora_nickname": "a", "lora_path": paths["a"]}, "blocks.9.attn.to_q"),
        ({"lora_nickname": "x", "lora_path": "/nowhere/x.safetensors"}, "lora_path"),
        ({"lora_nickname": ["b", "c"], "lora_path": [paths["b"]]}, "lora_nickname"),
    ):
        response = set_lora(server, **fields)
        assert response.status_code == 400, response.text
        assert word in response.json()["error"]["message"]
        (image,) = generate(openai)
        assert psnr(image, pictures["b"]) >= 48

    response = httpx.post(f"{server.url}/v1/unmerge_lora_weights", json={}, timeout=60)
    assert response.status_code == 200, response.text
    (image,) = generate(openai)
    assert psnr(image, plain) >= 48


def test_the_server_still_works(server: Server) -> None:
    response = httpx.post(server.url + IMAGES, json=QWEN_IMAGE_GOOD, timeout=120)
    assert response.status_code == 200, response.text
    (item,) = response.json()["data"]
    assert read_rgb(base64.b64decode(item["b64_json"])).shape == (128, 128, 3)
