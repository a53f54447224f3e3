# SPDX-License-Identifier: Apache-2.0
"""The gateway: the real process, with small servers behind it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from sglang_ext_gen.process.child_server import free_port

# Keeps a defect from hanging the run; nothing here takes more than a few seconds.
LIMIT = 60.0
CHAT, EDITS = "/v1/chat/completions", "/v1/images/edits"

# The real process but for its upstreams' commands: SGLang takes a minute to start.
PROGRAM = """
import sys
from sglang_ext_gen.registry import find_family
from sglang_ext_gen.gateway import launch, upstream

script, port, thinker, generator, url_option = sys.argv[1:]
upstream.FIRST_DELAY_SECONDS = 0.1
upstream.POLL_SECONDS = 0.1
upstream.MAX_RESTARTS = 3
launch.thinker_command = lambda *_: [*thinker.split(), "thinker"]
launch.generator_command = lambda *_: [*generator.split(), "generator"]
family = find_family("lance")
if url_option:
    import dataclasses
    family = dataclasses.replace(family, thinker_url_option=url_option)
launch.run(launch.GatewayOptions(family, ".", "my model", port=int(port)))
"""
SCRIPT = str(Path(__file__).parents[2] / "small_server.py")


@contextmanager
def one_port(
    folder: Path,
    *,
    thinker: str = SCRIPT,
    generator: str = SCRIPT,
    url_option: str = "",
    port: int | None = None,
) -> Iterator[tuple[psutil.Popen, str]]:
    port = free_port() if port is None else port
    arguments = (SCRIPT, str(port), thinker, generator, url_option)
    with (folder / "log").open("wb") as log:
        process = psutil.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        tree = tree_of(process)
        with suppress(psutil.NoSuchProcess):
            process.terminate()
        _, left = psutil.wait_procs(tree, timeout=LIMIT)
        for each in left:
            each.kill()
        print((folder / "log").read_text())
        assert not left


def tree_of(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if result := condition():
                return result
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def is_healthy(url: str) -> bool:
    return httpx.get(f"{url}/health").status_code == 200


def ask(url: str, path: str, **body: Any) -> httpx.Response:
    return httpx.post(url + path, json=body, timeout=LIMIT)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    with one_port(tmp_path_factory.mktemp("one_port")) as (_, url):
        wait_for(lambda: is_healthy(url))
        yield url


def error_of(reply: httpx.Response) -> dict[str, Any]:
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("method", "target", "title"),
    [
        ("POST", CHAT, "thinker"),
        ("POST", "/v1/completions", "thinker"),
        ("POST", "/v1/images/generations", "generator"),
        ("POST", EDITS, "generator"),
        ("GET", "/v1/images/a%2Fb/content?variant=1", "generator"),
        ("POST", "/v1/videos", "generator"),
        ("GET", "/v1/videos?limit=2&after=x", "generator"),
        ("DELETE", "/v1/videos/video_1", "generator"),
    ],
)
def test_a_request_reaches_its_upstream_as_it_is(server, method, target, title):
    headers = {"authorization": "Bearer x", "connection": "close"}
    content: dict[str, Any] = {"json": {"do": "echo"}} if method == "POST" else {}
    reply = httpx.request(method, server + target, headers=headers, **content)
    seen = reply.json()
    assert (seen["title"], reply.headers["x-upstream"]) == (title, title)
    assert seen["method"] == method
    assert seen["target"] + bool(seen["query"]) * "?" + seen["query"] == target
    assert seen["headers"]["authorization"] == "Bearer x"
    assert len(reply.headers.get_list("date")) == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405),
        ("POST", "/generate", 404),
        ("POST", "/v1/embeddings", 404),
        ("POST", "/update_weights_from_disk", 404),
        ("GET", "/v1/imagesX", 404),
        ("POST", "/health", 404),
        ("GET", "/", 404),
    ],
)
def test_other_routes_are_closed(server, method, path, status):
    reply = httpx.request(method, server + path, content=b"x" * 100_000)
    assert reply.status_code == status
    assert error_of(reply)["type"] == "invalid_request_error"


def test_models_are_one_model(server):
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="x", max_retries=0)
    assert [model.id for model in client.models.list()] == ["my model"]
    assert client.models.retrieve("my model").id == "my model"
    with pytest.raises(openai.NotFoundError, match="model: 'yours' given"):
        client.models.retrieve("yours")


def test_health_names_both_upstreams(server):
    for path in ("/health", "/health_generate"):
        reply = httpx.get(server + path)
        assert reply.status_code == 200
        states = {"thinker": "is ready", "generator": "is ready"}
        assert reply.json() == {"status": "ok", "parts": states}


def test_a_stream_is_passed_on_as_it_comes(server):
    arrivals = []
    with httpx.stream("POST", server + CHAT, json={"do": "stream"}) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        for chunk in reply.iter_text():
            arrivals.append(chunk)
    assert "".join(arrivals).count("data: ") == 4
    assert len(arrivals) >= 3


@pytest.mark.parametrize(
    ("runtime", "message", "param"),
    [
        ("language model", "no such thing", "top_p"),
        ("diffusion", "size: 7 given", None),
    ],
)
def test_errors_are_restated(server, runtime, message, param):
    reply = ask(server, CHAT, do=f"fail like the {runtime} runtime")
    assert reply.status_code == 400
    error = error_of(reply)
    assert (error["message"], error["param"]) == (message, param)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b"[1]", b"null", b"{", b'{"do": 1, "do": 2}'])
def test_a_chat_must_be_one_json_object(server, body):
    headers = {"content-type": "application/json"}
    reply = httpx.post(server + CHAT, content=body, headers=headers)
    assert reply.status_code == 400
    error_of(reply)
    assert httpx.post(server + CHAT, content=b"{}").status_code == 415


def test_a_body_that_is_too_large_is_refused(server):
    def endless() -> Iterator[bytes]:
        for _ in range(66):
            yield b"x" * (1 << 20)

    reply = httpx.post(server + EDITS, content=endless(), timeout=LIMIT)
    assert reply.status_code == 413
    assert error_of(reply)["code"] == "request_too_large"


def test_a_client_that_leaves_ends_the_work(server):
    def left() -> int:
        # The gateway shows only its own state, so the upstream is asked.
        return httpx.get(f"{upstream}/health").json()["left"]

    host = ask(server, CHAT, do="echo").json()["headers"]["host"]
    upstream = f"http://{host}"
    before = left()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(server + CHAT, json={"do": "wait"}, timeout=0.5)
    wait_for(lambda: left() == before + 1)
    assert ask(server, CHAT, do="echo").status_code == 200


# Faults: the upstreams die and come back; each test leaves a healthy server.


def test_an_upstream_that_dies_is_named_and_comes_back(server):
    reply = ask(server, CHAT, do="die")
    assert reply.status_code == 503
    error = error_of(reply)
    assert error["code"] == "thinker_unavailable"
    assert "the thinker of this server exited with code 5" in error["message"]
    assert reply.headers["retry-after"]
    # The other one goes on.
    assert ask(server, EDITS, do="echo").status_code == 200
    wait_for(lambda: is_healthy(server))
    assert ask(server, CHAT, do="echo").status_code == 200


def test_a_stream_that_breaks_ends_with_an_error(server):
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="x", max_retries=0)
    stream = client.chat.completions.create(
        model="my model",
        messages=[{"role": "user", "content": "x"}],
        stream=True,
        extra_body={"do": "die in a stream"},
    )
    seen = []
    with pytest.raises(openai.APIError, match="exited with code 5"):
        seen.extend(stream)
    assert len(seen) == 3
    wait_for(lambda: is_healthy(server))


def test_an_upstream_that_says_it_is_unwell_is_restarted(server):
    first = ask(server, EDITS, do="get sick").json()["pid"]
    reply = wait_for(lambda: is_503(httpx.get(f"{server}/health")))
    assert "says that it is unwell: worker exited" in reply.json()["parts"]["generator"]
    assert reply.json()["parts"]["thinker"] == "is ready"
    wait_for(lambda: is_healthy(server))
    assert ask(server, EDITS, do="echo").json()["pid"] != first


def is_503(reply: httpx.Response) -> httpx.Response | None:
    return reply if reply.status_code == 503 else None


def test_an_upstream_that_dies_again_and_again_is_given_up(tmp_path):
    with one_port(tmp_path) as (_, url):
        wait_for(lambda: is_healthy(url))

        def given_up() -> str | None:
            reply = ask(url, CHAT, do="die")
            message = reply.json()["error"]["message"]
            return message if "restarted 3 times in vain" in message else None

        assert "exited with code 5" in wait_for(given_up)
        assert ask(url, EDITS, do="echo").status_code == 200
        assert httpx.get(f"{url}/health").status_code == 503


def test_who_needs_the_thinker_says_so(tmp_path):
    with one_port(tmp_path, url_option="thinker_url") as (_, url):
        wait_for(lambda: is_healthy(url))
        assert ask(url, CHAT, do="die").status_code == 503
        reply = ask(url, EDITS, do="echo")
        assert reply.status_code == 503
        assert error_of(reply)["code"] == "thinker_unavailable"


def test_an_upstream_that_cannot_start_ends_the_server_with_its_reason(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit('no such checkpoint')")
    with one_port(tmp_path, generator=str(broken)) as (process, _):
        tree = tree_of(process)
        assert process.wait(timeout=LIMIT) == 1
        assert not psutil.wait_procs(tree, timeout=LIMIT)[1]
    log = (tmp_path / "log").read_text()
    assert "generator exited with code 1 before it was ready" in log
    assert "no such checkpoint" in log


def test_a_taken_port_is_refused_before_anything_is_started(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with one_port(tmp_path, port=port) as (process, _):
            assert process.wait(timeout=LIMIT) == 1
    log = (tmp_path / "log").read_text()
    assert f"--port {port} of --host 127.0.0.1 cannot be had: Address already" in log
    assert "[thinker]" not in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_behind(tmp_path, number):
    with one_port(tmp_path) as (process, url):
        wait_for(lambda: is_healthy(url))
        tree = tree_of(process)
        assert len(tree) >= 3
        os.kill(process.pid, number)
        assert not psutil.wait_procs(tree, timeout=LIMIT)[1]


def test_requests_are_answered_while_the_upstreams_start(tmp_path):
    slow = tmp_path / "slow.py"
    slow.write_text(
        f"import time, runpy; time.sleep(3); runpy.run_path({SCRIPT!r}, "
        "run_name='__main__')"
    )
    with one_port(tmp_path, thinker=str(slow)) as (_, url):
        reply = wait_for(lambda: is_503(ask(url, CHAT, do="echo")))
        assert "the thinker of this server is still starting" in reply.text
        assert json.loads(reply.text)["error"]["type"] == "server_error"
        wait_for(lambda: is_healthy(url))
