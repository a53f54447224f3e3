# SPDX-License-Identifier: Apache-2.0
"""``sglang-ext-gen serve``: our flags and stock's, in a real process.

Requests of several users are one batch here, and cache-dit is on by its variables.
"""

import base64
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from checkpoint_damage import copy_checkpoint
from conftest import Golden
from denoising_loop import steps_reused
from images import psnr
from server.bad_requests import GOOD, IMAGES
from server.servers import Server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(
    serve: Callable[..., Server],
    ideogram4_golden: Golden,
    tmp_path_factory: pytest.TempPathFactory,
) -> Server:
    """Expanded weights; the unconditional transformer is not even on disk."""
    folder = tmp_path_factory.mktemp("checkpoint") / "half"
    checkpoint = copy_checkpoint(ideogram4_golden.checkpoint, folder)
    shutil.rmtree(checkpoint / "unconditional_transformer")
    return serve(
        checkpoint,
        *("--no-unconditional", "--fp8-mode", "expanded", "--precision", "float32"),
        *("--batching-max-size", "4", "--batching-delay-ms", "3000"),
        # Where the weights wait between their uses must not be seen in a picture.
        *("--dit-cpu-offload", "true", "--text-encoder-cpu-offload", "true"),
        *("--vae-cpu-offload", "true"),
        program="sglang-ext-gen",
        SGLANG_CACHE_DIT_ENABLED="true",
        SGLANG_CACHE_DIT_WARMUP="2",
        SGLANG_CACHE_DIT_RDT="1.0",
    )


def draw(server: Server, **fields: Any) -> bytes:
    response = httpx.post(server.url + IMAGES, json=GOOD | fields, timeout=120)
    assert response.status_code == 200, response.text
    return base64.b64decode(response.json()["data"][0]["b64_json"])


def log_of(server: Server) -> str:
    return server.log.read_text("utf-8", "replace")


def test_the_default_is_a_preset_without_guidance(server: Server) -> None:
    body = {name: GOOD[name] for name in ("prompt", "size", "seed", "output_format")}
    pictures = [
        httpx.post(server.url + IMAGES, json=body | fields, timeout=120).json()["data"]
        for fields in ({}, {"preset": "V4_FAST_20"})
    ]
    assert pictures[0][0]["b64_json"] == pictures[1][0]["b64_json"]


def test_guidance_is_refused_before_any_work(server: Server) -> None:
    for fields in ({"guidance_scale": 3}, {"preset": "V4_DEFAULT_20"}):
        response = httpx.post(server.url + IMAGES, json=GOOD | fields, timeout=30)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] == "guidance_scale"
        assert "left unloaded (--no-unconditional)" in error["message"]


def test_users_share_a_batch_and_get_what_they_would_alone(server: Server) -> None:
    asked: list[dict[str, Any]] = [
        {"prompt": "ok", "seed": 1},
        {"prompt": "a red fox in the snow at night", "seed": 2},
        {"prompt": "a cat", "seed": 3},
    ]
    asked = [{**fields, "enable_cache_dit": False} for fields in asked]
    alone = [draw(server, **fields) for fields in asked]
    before = log_of(server)
    with ThreadPoolExecutor(len(asked)) as users:
        together = list(users.map(lambda fields: draw(server, **fields), asked))
    # As for two pictures of one request: some values fall on the other side of a
    # rounding boundary.
    for got, want in zip(together, alone, strict=True):
        assert psnr(got, want) >= 70
    log = log_of(server).removeprefix(before)
    assert "Processed native grouped batch of 3/4 request(s)" in log
    assert "3 requests in 1 loops" in log


def test_several_outputs_are_a_batch_of_their_own(server: Server) -> None:
    asked = [{"n": 2}, {"n": 2}, {}]
    before = log_of(server)
    with ThreadPoolExecutor(len(asked)) as users:
        list(users.map(lambda n: draw(server, **n, enable_cache_dit=False), asked))
    assert "failed" not in log_of(server).removeprefix(before)


def test_cache_dit_by_variable_and_off_by_request(server: Server) -> None:
    long = {"preset": "V4_FAST_20", "num_inference_steps": 20}
    before = log_of(server)
    cached = draw(server, **long)
    [reused] = steps_reused(log_of(server).removeprefix(before), "cache-dit")
    assert 0 < reused < 20
    whole = draw(server, **long, enable_cache_dit=False)
    assert 15 < psnr(cached, whole) < 100
    assert draw(server, **long) == cached
    assert "requests in" not in log_of(server).removeprefix(before)


def test_the_log_says_what_was_loaded_and_what_it_became(server: Server) -> None:
    log = server.log.read_text("utf-8", "replace")
    assert "Ideogram4Transformer: 25 FP8 linears, mode expanded" in log
    assert " transformer/: loaded" in log
    assert "unconditional_transformer/: loaded" not in log
