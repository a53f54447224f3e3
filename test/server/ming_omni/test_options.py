# SPDX-License-Identifier: Apache-2.0
"""The generator with a thinker of its own: compiled, with batches of users.

Compiled by inductor for the CPU, in float32.
"""

import base64
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from conftest import Golden
from denoising_loop import steps_reused
from images import psnr, read_rgb
from ming_drawing import FILE_DB, golden_png, golden_request
from server.ming import FLAGS as THINKER_FLAGS
from server.one_port import at_once
from server.servers import FLOAT32, Server, serving

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    **{"size": "64x96", "num_inference_steps": 3, "seed": 5},
    **{"output_format": "png", "response_format": "b64_json"},
}


@pytest.fixture(scope="module")
def server(
    omni_golden: Golden, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The generator; nobody else asks its thinker."""
    with serving(
        omni_golden.checkpoint,
        tmp_path_factory.mktemp("options"),
        *("--model-type", "diffusion", *FLOAT32),
        f"--thinker-args={' '.join(THINKER_FLAGS)}",
        *("--batching-max-size", "4", "--batching-delay-ms", "3000"),
        *("--enable-torch-compile", "true", "--warmup-resolutions", "64x96"),
        *("--dit-cpu-offload", "true", "--vae-cpu-offload", "true"),
        program="sglang-ext-gen",
        SGLANG_TORCH_COMPILE_MODE="default",
        TORCH_LOGS="recompiles,graph_breaks",
    ) as running:
        yield running


def ask(server: Server, prompt: str, picture: Any = None, **fields: Any) -> Any:
    """The reply to a picture request, or to an edit of a picture."""
    body = {**SMALL, **fields, "prompt": prompt}
    if picture is None:
        url = f"{server.url}/v1/images/generations"
        return httpx.post(url, json=body, timeout=300)
    files = {"image": ("a.png", picture.read_bytes())}
    form = {name: str(value) for name, value in body.items()}
    url = f"{server.url}/v1/images/edits"
    return httpx.post(url, data=form, files=files, timeout=300)


def draw(server: Server, prompt: str, picture: Any = None, **fields: Any) -> bytes:
    reply = ask(server, prompt, picture, **fields)
    assert reply.status_code == 200, reply.text
    return base64.b64decode(reply.json()["data"][0]["b64_json"])


def log_since(server: Server, start: int = 0) -> str:
    return server.log.read_bytes()[start:].decode("utf-8", "replace")


def size_of_log(server: Server) -> int:
    return server.log.stat().st_size


def together(server: Server, calls: list[Callable[[], Any]]) -> tuple[list[Any], str]:
    """Results of calls at once, and what the server says meanwhile."""
    start = size_of_log(server)
    return at_once(calls), log_since(server, start)


def test_compiled_it_draws_the_official_picture(server, omni_golden) -> None:
    assert "Compiling transformer with mode: default" in log_since(server)
    fields = golden_request(omni_golden, "t2i")
    fields["size"] = f"{fields.pop('width')}x{fields.pop('height')}"
    picture = draw(server, **fields)
    assert psnr(picture, golden_png(omni_golden, "t2i")) >= FILE_DB


def test_equal_shapes_never_recompile(server) -> None:
    first = draw(server, "a cat")
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
    for got, want in zip(drawn, alone, strict=True):
        assert abs(read_rgb(got).astype(int) - read_rgb(want)).max() <= 1
    assert "Processed native grouped batch of 3/4 request(s)" in log
    assert "3 requests in 1 loops" in log


def test_edits_of_several_users_share_a_batch(server, omni_golden) -> None:
    references = (omni_golden.path / "reference.png", golden_png(omni_golden, "t2i"))
    calls = [
        lambda path=path: draw(server, "make it blue", path) for path in references
    ]
    alone = [call() for call in calls]
    drawn, log = together(server, calls)
    for got, want in zip(drawn, alone, strict=True):
        assert abs(read_rgb(got).astype(int) - read_rgb(want)).max() <= 1
    assert alone[0] != alone[1]
    assert "Processed native grouped batch of 2/4 request(s)" in log
    assert "2 requests in 1 loops" in log


def test_a_user_who_fails_fails_alone(server) -> None:
    # Only the thinker knows that this is too long for it.
    prompts = ("a cat", "long " * 3000, "a dog")
    good = [draw(server, prompt) for prompt in prompts[::2]]
    calls = [lambda prompt=prompt: ask(server, prompt) for prompt in prompts]
    replies, log = together(server, calls)
    assert [reply.status_code for reply in replies] == [200, 400, 200]
    error = replies[1].json()["error"]
    assert error["param"] == "prompt"
    assert "the thinker refuses it" in error["message"]
    drawn = [reply.json()["data"][0]["b64_json"] for reply in replies[::2]]
    assert [base64.b64decode(picture) for picture in drawn] == good
    assert "A group of 3 requests failed; each runs alone" in log


@pytest.mark.parametrize(
    ("cache", "fields"),
    [
        (
            "TeaCache",
            {"enable_teacache": True, "teacache_params": {"teacache_thresh": 0.7}},
        ),
        (
            "cache-dit",
            {
                "enable_cache_dit": True,
                "cache_dit_params": {
                    "max_warmup_steps": 4,
                    "residual_diff_threshold": 0.35,
                },
            },
        ),
    ],
)
def test_a_request_asks_for_a_cache_and_the_next_one_does_not(
    server, cache, fields
) -> None:
    long = {"num_inference_steps": 20}
    whole = draw(server, "a cat", **long)
    start = size_of_log(server)
    cached = draw(server, "a cat", **long, **fields)
    [reused] = steps_reused(log_since(server, start), cache)
    assert 0 < reused < 20
    assert 25 < psnr(cached, whole) < 100
    assert draw(server, "a cat", **long) == whole
