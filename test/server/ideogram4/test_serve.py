# SPDX-License-Identifier: Apache-2.0
"""``sglang-ext-gen serve``: our flags reach SGLang's server, in a real process."""

import shutil
from collections.abc import Callable

import httpx
import pytest

from checkpoint_damage import copy_checkpoint
from conftest import Golden
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
    flags = ("--no-unconditional", "--fp8-mode", "expanded", "--precision", "float32")
    return serve(checkpoint, *flags, program="sglang-ext-gen")


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


def test_the_log_says_what_was_loaded_and_what_it_became(server: Server) -> None:
    log = server.log.read_text("utf-8", "replace")
    assert "Ideogram4Transformer: 25 FP8 linears, mode expanded" in log
    assert " transformer/: loaded" in log
    assert "unconditional_transformer/: loaded" not in log
