# SPDX-License-Identifier: Apache-2.0
"""Qwen-Image over HTTP: a real server, the ``openai`` client, the golden checkpoint."""

import base64
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import OpenAI
from safetensors.torch import load_file, save_file

from conftest import GOLDEN_ROOT
from images import psnr, read_rgb
from qwen_image_runtime import copy_checkpoint, write_adapter
from server.bad_requests import (
    IMAGES,
    QWEN_IMAGE,
    QWEN_IMAGE_GOOD,
    BadRequest,
    live,
)
from server.one_port import wait_until
from server.servers import FLOAT32, Server

pytestmark = pytest.mark.slow

GOLDEN = GOLDEN_ROOT / "qwen_image" / "t2i"
REQUEST = {
    "negative_prompt": "low quality, blurry, a longer negative prompt",
    "true_cfg_scale": 4.0,
    "num_inference_steps": 4,
    "seed": 1,
}
# Offload of the transformer is taken, and on a CPU it stays where it is.
FLAGS = (*FLOAT32, "--batching-max-size", "4", "--dit-cpu-offload", "true")


@pytest.fixture(scope="module")
def server(
    serve: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory
) -> Server:
    # Found by its content: neither the name nor a parent says what it is.
    checkpoint = tmp_path_factory.mktemp("any") / "folder"
    checkpoint.symlink_to(GOLDEN / "Qwen-Image", target_is_directory=True)
    # For adapters; the routes are closed by default (ideogram4/test_http.py).
    return serve(checkpoint, *FLAGS, SGLANG_EXT_GEN_ALLOW_CONTROL_ROUTES="1")


@pytest.fixture(scope="module")
def openai(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def decoded(response: Any) -> list[bytes]:
    return [base64.b64decode(item.b64_json) for item in response.data]


def generate(openai: OpenAI, **fields: Any) -> list[bytes]:
    return decoded(
        openai.images.generate(
            prompt=fields.pop("prompt", "a red circle on white"),
            size=fields.pop("size", "256x256"),
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
        {"flow_shift": 9.0},
        {"cfg_gate_step": 0.5},
        {"progressive_mode": "dct", "progressive_delta": 0.3},
    )
    for change in changes:
        (image,) = generate(openai, **change)
        assert (read_rgb(image) != read_rgb(plain)).any(), change


def test_steps_are_spared(openai: OpenAI) -> None:
    cache = {"max_warmup_steps": 2, "residual_diff_threshold": 0.9}
    (plain,) = generate(openai, num_inference_steps=12)
    (cached,) = generate(
        openai, num_inference_steps=12, enable_cache_dit=True, cache_dit_params=cache
    )
    assert 20 < psnr(cached, plain) < 60
    (again,) = generate(openai, num_inference_steps=12)
    assert psnr(again, plain) >= 60


def test_fields_that_leave_it_as_it_is(openai: OpenAI) -> None:
    (plain,) = generate(openai)
    for same in (
        {"quality": "exact"},
        {"quality": "auto"},
        {"attention_backend_override": "torch_sdpa"},
        {"enable_cache_dit": False},
    ):
        (image,) = generate(openai, **same)
        assert psnr(image, plain) >= 48, same


def test_requests_of_several_users_are_one_batch(
    server: Server, openai: OpenAI
) -> None:
    prompts = ["a cat", "a much longer prompt about a dog on a hill", "sky"]
    fields = [{"prompt": text, "negative_prompt": text[:3]} for text in prompts]
    alone = [generate(openai, **each)[0] for each in fields]
    with ThreadPoolExecutor(4) as users:
        # While this one is drawn the others queue up.
        large = {"size": "768x768", "num_inference_steps": 60, "prompt": "first"}
        busy = users.submit(generate, openai, **large)
        wait_until(lambda: "steps: 60" in server.log.read_text(), 60)
        together = list(users.map(lambda each: generate(openai, **each)[0], fields))
        busy.result()
    for image, single in zip(together, alone, strict=True):
        assert psnr(image, single) >= 48
    log = server.log.read_text()
    assert "3 requests are denoised in 1 loops" in log
    assert "Processed native grouped batch of 3/4 request(s)" in log


def test_the_operators_fields(server: Server, openai: OpenAI, tmp_path: Path) -> None:
    from sglang.multimodal_gen.runtime.postprocess.realesrgan_upscaler import RRDBNet

    torch.manual_seed(0)
    network = RRDBNet(3, 3, scale=4, num_feat=8, num_block=1, num_grow_ch=4)
    torch.save(network.state_dict(), tmp_path / "upscaler.pth")
    (image,) = generate(
        openai,
        perf_dump_path=str(tmp_path / "timings.json"),
        profile=True,
        num_profiled_timesteps=2,
        enable_upscaling=True,
        upscaling_model_path=str(tmp_path / "upscaler.pth"),
        upscaling_scale=2,
    )
    assert read_rgb(image).shape == (512, 512, 3)
    timings = json.loads((tmp_path / "timings.json").read_text("utf-8"))
    assert len(timings["denoise_steps_ms"]) == 4
    assert list((server.folder / "logs").glob("*.trace.json.gz"))


def test_rollouts(server: Server) -> None:
    from sglang.multimodal_gen.runtime.entrypoints.post_training.rollout_api import (
        msgspec,
    )

    body = {
        **{"prompt": "a red circle on white", "width": 256, "height": 256},
        **{"num_inference_steps": 4, "seed": 1, "generator_device": "cpu"},
        "rollout_return_dit_trajectory": True,
    }
    response = httpx.post(f"{server.url}/rollout/generate", json=body, timeout=60)
    assert response.status_code == 200, response.text
    (found,) = msgspec.msgpack.decode(response.content)
    assert found["rollout_log_probs"]["shape"] == [4]
    response = httpx.post(
        f"{server.url}/rollout/generate", json={**body, "width": 100}, timeout=60
    )
    assert response.status_code == 400
    assert "width: 100 given" in response.json()["error"]["message"]


def test_weights_are_exchanged(server: Server, openai: OpenAI, tmp_path: Path) -> None:
    original = (GOLDEN / "Qwen-Image").resolve()
    other = copy_checkpoint(original, tmp_path / "other")
    file = other / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["proj_out.weight"] *= 2
    save_file(weights, file, metadata={"format": "pt"})
    (before,) = generate(openai)
    pictures = []
    for folder in (other, original):
        response = httpx.post(
            f"{server.url}/update_weights_from_disk",
            json={"model_path": str(folder), "target_modules": ["transformer"]},
            timeout=120,
        )
        assert response.status_code == 200, response.text
        pictures += generate(openai)
    changed, back = pictures
    assert psnr(changed, before) < 40
    assert psnr(back, before) >= 48


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
