# SPDX-License-Identifier: Apache-2.0
"""``sglang serve`` of a thinker without its tokenizer's files, on two ranks.

In one start: the plain command, ``--tokenizer-path``, tensor parallelism, no prefix
cache, and a host from which pictures may be fetched.
"""

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import httpx
import openai
import pytest
import torch

from conftest import Golden
from server.ming import (
    GENERATION_CASES,
    GREEDY,
    HTTP_CASES,
    ONE_TOKEN,
    SGLANG_SERVE,
    THRESHOLD,
    golden_request,
    max_error,
    query_error,
    thinker_server,
)
from sglang_ext_gen.models.ming_omni.thinker.checkpoint import TOKENIZER_FILES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def golden(golden_dir) -> Golden:
    return Golden(golden_dir("ming_thinker"))


@pytest.fixture(scope="module")
def server(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    checkpoint, tokenizer = folder / "checkpoint", folder / "tokenizer"
    shutil.copytree(golden.path, checkpoint)
    tokenizer.mkdir()
    for name in TOKENIZER_FILES:
        shutil.move(checkpoint / name, tokenizer / name)
    flags = ("--tokenizer-path", str(tokenizer), "--tp-size", "2")
    flags += ("--disable-radix-cache",)
    with thinker_server(
        checkpoint,
        folder,
        *(*flags, "--enable-return-hidden-states"),
        door=SGLANG_SERVE,
        # Each rank its core; SGLang asks for NUMA nodes otherwise.
        SGLANG_CPU_OMP_THREADS_BIND="0|1",
        SGLANG_EXT_GEN_MEDIA_HOSTS="127.0.0.1",
    ) as running:
        yield running


def generate(server, request, **options):
    body = {**request, **options}
    answer = httpx.post(f"{server.url}/generate", json=body, timeout=300)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_there_are_two_ranks(server):
    ranks = [" ".join(worker.cmdline()) for worker in server.workers()]
    assert sum("scheduler" in rank for rank in ranks) == 2, ranks


@pytest.mark.parametrize("case", HTTP_CASES)
def test_two_ranks_answer_as_one(server, golden, case):
    output = generate(
        server,
        golden_request(golden, case),
        sampling_params=GREEDY,
        return_hidden_states=True,
    )
    assert output["output_ids"] == golden.json["cases"][case]["greedy_ids"]
    assert output["meta_info"]["cached_tokens"] == 0
    got = torch.tensor(output["meta_info"]["hidden_states"][0])
    assert max_error(got, golden.tensor(f"{case}.hidden")) < THRESHOLD


@pytest.mark.parametrize("case", GENERATION_CASES)
def test_two_ranks_give_the_query_states(server, golden, case):
    for _ in range(3):
        output = generate(
            server, golden_request(golden, case), sampling_params=ONE_TOKEN
        )
        assert output["meta_info"]["cached_tokens"] == 0
        assert query_error(golden, case, output["meta_info"]) < THRESHOLD


def test_the_openai_client_is_answered(server, golden):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        answer = client.chat.completions.create(
            model="ming",
            messages=[{"role": "user", "content": "What is 2+2?"}],
            max_tokens=8,
            temperature=0,
            extra_body={"ignore_eos": True},
        )
    expected = golden.json["cases"]["a_text"]["greedy_text"]
    assert answer.choices[0].message.content == expected


class Handler(SimpleHTTPRequestHandler):
    """Files, and ``/to/URL``, which leads there."""

    def do_GET(self) -> None:
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def files(golden):
    """The address of a file server on a host that is allowed by name."""
    handler = partial(Handler, directory=golden.path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_pictures_are_fetched_from_allowed_hosts_only(server, golden, files):
    request = golden_request(golden, "b_image")
    for picture in (f"{files}/image0.png", f"{files}/to/{files}/image0.png"):
        output = generate(
            server, {**request, "image_data": [picture]}, sampling_params=GREEDY
        )
        assert output["output_ids"] == golden.json["cases"]["b_image"]["greedy_ids"]
    # Where a redirect leads is judged anew.
    body = {**request, "image_data": [f"{files}/to/http://127.0.0.2/image0.png"]}
    answer = httpx.post(f"{server.url}/generate", json=body, timeout=300)
    assert answer.status_code == 400
    assert "'127.0.0.2' is or resolves to an address that is not public" in answer.text
