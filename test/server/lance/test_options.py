# SPDX-License-Identifier: Apache-2.0
"""A compiled Lance that merges its users' requests, and what they ask of its loop.

Compiled by inductor for the CPU, in float32, and warmed up.
"""

import base64
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest

from conftest import Golden
from denoising_loop import steps_reused
from images import psnr, read_rgb
from server.lance_requests import MIN_PSNR, request_of, worst_psnr
from server.one_port import at_once
from server.servers import FLOAT32, Server, serving

pytestmark = pytest.mark.slow

SMALL = {
    **{"size": "64x48", "num_inference_steps": 3, "seed": 5},
    **{"output_format": "png", "response_format": "b64_json"},
}


@pytest.fixture(scope="module")
def server(
    golden: Golden, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with serving(
        golden.path / "checkpoint",
        tmp_path_factory.mktemp("options"),
        *("--model-type", "diffusion"),
        *(*FLOAT32, "--image-encoder-precision", "fp32"),
        *("--batching-max-size", "4", "--batching-delay-ms", "3000"),
        *("--enable-torch-compile", "true", "--warmup-resolutions", "64x48"),
        *("--dit-cpu-offload", "true"),
        SGLANG_TORCH_COMPILE_MODE="default",
        TORCH_LOGS="recompiles,graph_breaks",
    ) as running:
        yield running


def ask(server: Server, prompt: str, picture: bytes | None = None, **fields: Any):
    """The reply to a picture request, or to an edit of a picture."""
    body = {**SMALL, **fields, "prompt": prompt}
    if picture is None:
        url = f"{server.url}/v1/images/generations"
        return httpx.post(url, json=body, timeout=300)
    del body["size"]
    form = {name: str(value) for name, value in body.items()}
    files = {"image": ("a.png", picture)}
    return httpx.post(
        f"{server.url}/v1/images/edits", data=form, files=files, timeout=300
    )


def draw(server: Server, prompt: str, *more: Any, **fields: Any) -> bytes:
    reply = ask(server, prompt, *more, **fields)
    assert reply.status_code == 200, reply.text
    return base64.b64decode(reply.json()["data"][0]["b64_json"])


def film(server: Server, prompt: str, seed: int) -> np.ndarray:
    """[F, H, W] brightness of a video job's result."""
    body = {"prompt": prompt, "size": "64x48", "seed": seed, "num_frames": 5}
    body |= {"num_inference_steps": 3, "output_compression": 100}
    url = f"{server.url}/v1/videos"
    job = httpx.post(url, json=body, timeout=60).json()
    while job["status"] not in ("completed", "failed"):
        time.sleep(0.1)
        job = httpx.get(f"{url}/{job['id']}", timeout=60).json()
    assert job["status"] == "completed", job
    file = server.folder / f"{job['id']}.mp4"
    file.write_bytes(httpx.get(f"{url}/{job['id']}/content", timeout=60).content)
    with av.open(str(file)) as container:
        return np.stack(
            [f.to_ndarray(format="gray") for f in container.decode(video=0)]
        )


def log_since(server: Server, start: int = 0) -> str:
    return server.log.read_bytes()[start:].decode("utf-8", "replace")


def size_of_log(server: Server) -> int:
    return server.log.stat().st_size


def together(server: Server, calls: list[Callable[[], Any]]) -> tuple[list[Any], str]:
    """Results of calls at once, and what the server says meanwhile."""
    start = size_of_log(server)
    return at_once(calls), log_since(server, start)


def differ_by(got: bytes, want: bytes) -> int:
    """Levels, at most."""
    return abs(read_rgb(got).astype(int) - read_rgb(want)).max()


def test_compiled_it_draws_the_official_picture(server, golden) -> None:
    assert "Compiling transformer with mode: default" in log_since(server)
    fields = request_of(golden, "t2i", Path())
    fields["size"] = f"{fields.pop('width')}x{fields.pop('height')}"
    picture = read_rgb(draw(server, **fields))
    assert worst_psnr(golden, "t2i", [picture]) >= MIN_PSNR


def test_equal_shapes_never_recompile(server) -> None:
    first = draw(server, "a cat")
    draw(server, "a longer prompt than that")
    start = size_of_log(server)
    assert draw(server, "a cat") == first
    draw(server, "another, longer description of a cat", seed=6)
    log = log_since(server, start)
    assert "Recompiling function forward" not in log
    assert "graph_breaks]" not in log


def test_users_share_a_batch_and_get_what_they_would_alone(server) -> None:
    prompts = ("a cat", "a much longer description of a cat in the sun", "a dog")
    calls = [
        lambda prompt=prompt, seed=seed: draw(server, prompt, seed=seed)
        for seed, prompt in enumerate(prompts)
    ]
    alone = [call() for call in calls]
    drawn, log = together(server, calls)
    # Rows of a batch are summed in another order.
    assert all(map(lambda *both: differ_by(*both) <= 1, drawn, alone))
    assert len(set(alone)) == 3
    assert "Processed native grouped batch of 3/4 request(s)" in log
    assert "3 requests in 1 loops" in log


def test_edits_of_several_users_share_a_batch(server, golden) -> None:
    picture = (golden.path / "input_image.png").read_bytes()
    fields = {"resolution": "image_256res"}
    calls = [
        lambda prompt=prompt: draw(server, prompt, picture, **fields)
        for prompt in ("make it blue", "turn this into a drawing")
    ]
    alone = [call() for call in calls]
    drawn, log = together(server, calls)
    assert all(map(lambda *both: differ_by(*both) <= 1, drawn, alone))
    assert alone[0] != alone[1]
    assert "Processed native grouped batch of 2/4 request(s)" in log
    assert "2 requests in 1 loops" in log


def test_videos_of_several_users_share_a_batch(server) -> None:
    calls = [
        lambda prompt=prompt, seed=seed: film(server, prompt, seed)
        for seed, prompt in enumerate(("waves", "a long walk through the rain"))
    ]
    alone = [call() for call in calls]
    drawn, log = together(server, calls)
    for got, want in zip(drawn, alone, strict=True):
        # H.264 keeps one level as one or two.
        assert abs(got.astype(int) - want).max() <= 3
    assert abs(alone[0].astype(int) - alone[1]).max() > 30
    assert "Processed native grouped batch of 2/4 request(s)" in log
    assert "2 requests in 1 loops" in log


@pytest.mark.parametrize(
    ("cache", "fields"),
    [
        ("TeaCache", {"enable_teacache": True}),
        (
            "cache-dit",
            {"enable_cache_dit": True, "cache_dit_params": {"max_warmup_steps": 4}},
        ),
    ],
)
def test_a_request_asks_for_a_cache_and_the_next_one_does_not(
    server, cache, fields
) -> None:
    long = {"num_inference_steps": 16}
    whole = draw(server, "a cat", **long)
    start = size_of_log(server)
    cached = draw(server, "a cat", **long, **fields)
    [reused] = steps_reused(log_since(server, start), cache)
    assert 0 < reused < 12
    assert 40 < psnr(cached, whole) < 100
    assert draw(server, "a cat", **long) == whole


@pytest.mark.parametrize(
    ("fields", "param", "word"),
    [
        ({"attention_backend_override": "fa"}, "attention_backend_override", ""),
        ({"teacache_params": {"x": 1}}, "teacache_params", "expected"),
        ({"cache_dit_params": {"x": 1}}, "cache_dit_params", "Valid keys"),
    ],
)
def test_what_it_cannot_do_is_a_400_that_names_the_field(
    server, fields, param, word
) -> None:
    reply = ask(server, "a cat", **fields)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["param"] == param
    assert word in error["message"]
