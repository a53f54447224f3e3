# SPDX-License-Identifier: Apache-2.0
"""A compiled Ideogram 4, warmed up by its server, and what a request asks of its loop.

Compiled by inductor for the CPU, in float32.
"""

import base64
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from conftest import Golden
from denoising_loop import steps_reused
from images import psnr
from server.bad_requests import GOOD, IMAGES
from server.servers import FLOAT32, Server

pytestmark = pytest.mark.slow

LONG = {**GOOD, "preset": "V4_DEFAULT_20", "num_inference_steps": 20}


@pytest.fixture(scope="module")
def server(serve: Callable[..., Server], ideogram4_golden: Golden) -> Server:
    return serve(
        ideogram4_golden.checkpoint,
        *FLOAT32,
        *("--enable-torch-compile", "true", "--warmup-resolutions", "256x256"),
        SGLANG_TORCH_COMPILE_MODE="default",
        TORCH_LOGS="recompiles,graph_breaks",
    )


def draw(server: Server, **fields: Any) -> bytes:
    response = httpx.post(server.url + IMAGES, json=LONG | fields, timeout=300)
    assert response.status_code == 200, response.text
    return base64.b64decode(response.json()["data"][0]["b64_json"])


class Log:
    """What a server has said since this was made."""

    def __init__(self, server: Server) -> None:
        self.server, self.start = server, server.log.stat().st_size

    def text(self) -> str:
        return self.server.log.read_bytes()[self.start :].decode("utf-8", "replace")

    def recompiles(self) -> int:
        """Of the transformers."""
        return self.text().count("Recompiling function forward")


def test_the_warm_up_compiled_it(server: Server) -> None:
    log = server.log.read_text("utf-8", "replace")
    assert log.count("Compiling transformer with mode: default") == 2
    assert "warmup" in log.lower()


def test_compiled_it_draws_the_reference(
    server: Server, ideogram4_golden: Golden
) -> None:
    request = ideogram4_golden.json["request"]
    fields = {name: request[name] for name in ("prompt", "seed", "preset")}
    picture = draw(server, **fields)
    thresholds = ideogram4_golden.json["suggested_thresholds"]["float32"]
    minimum = thresholds["image_8bit_truncated_psnr_db"]
    assert psnr(picture, ideogram4_golden.png) >= minimum


def test_equal_shapes_never_recompile_and_other_sizes_once(server: Server) -> None:
    first = draw(server)
    log = Log(server)
    assert draw(server) == first
    assert log.recompiles() == 0
    draw(server, size="320x256")
    # At most one of each transformer.
    assert log.recompiles() <= 2
    log = Log(server)
    draw(server, size="256x384")
    assert log.recompiles() == 0
    assert "graph_breaks]" not in log.text()


@pytest.mark.parametrize(
    ("cache", "fields"),
    [
        (
            "TeaCache",
            {"enable_teacache": True, "teacache_params": {"teacache_thresh": 0.4}},
        ),
        (
            "cache-dit",
            {
                "enable_cache_dit": True,
                "cache_dit_params": {
                    "max_warmup_steps": 4,
                    "residual_diff_threshold": 0.5,
                },
            },
        ),
    ],
)
def test_a_request_asks_for_a_cache_and_the_next_one_does_not(
    server: Server, cache: str, fields: dict[str, Any]
) -> None:
    whole = draw(server)
    log = Log(server)
    cached = draw(server, **fields)
    reused = steps_reused(log.text(), cache)
    assert len(reused) == 2
    assert all(0 < count < 20 for count in reused)
    assert 45 < psnr(cached, whole) < 100
    assert draw(server) == whole


@pytest.mark.parametrize(
    ("fields", "param", "word"),
    [
        ({"attention_backend_override": "best"}, "attention_backend_override", "best"),
        # Where the kernel is compiled in, it cannot be another one.
        (
            {"attention_backend_override": "torch_sdpa"},
            "attention_backend_override",
            "torch.compile",
        ),
        ({"teacache_params": {"x": 1}}, "teacache_params", "expected"),
        ({"cache_dit_params": {"x": 1}}, "cache_dit_params", "Valid keys"),
        ({"cfg_gate_step": 0.5}, "cfg_gate_step", "unknown field"),
    ],
)
def test_what_it_cannot_do_is_a_400_that_names_the_field(
    server: Server, fields: dict[str, Any], param: str, word: str
) -> None:
    response = httpx.post(server.url + IMAGES, json=LONG | fields, timeout=60)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert word in error["message"]
