# SPDX-License-Identifier: Apache-2.0
"""The generator's side of the connection to its thinker: checks, cache, faults.

The servers here are wrong on purpose: silent, talkative, of another model. A real one
is in ``test/server``.
"""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from server.servers import free_ports
from sglang_ext_gen.errors import ConfigError, RequestError, ThinkerError
from sglang_ext_gen.models.ming_omni import thinker_client
from sglang_ext_gen.models.ming_omni.thinker_client import (
    ExpectedStates,
    OwnThinker,
    RunningThinkers,
    ThinkerClient,
    ThinkerRequest,
)
from sglang_ext_gen.models.ming_omni.thinker_protocol import (
    QUERY_BLOCK,
    QUERY_STATES_KEY,
    THINKER_ARCHITECTURE,
)

EXPECTED = ExpectedStates((2,), 3)
Answer = Callable[[dict[str, Any]], tuple[int, Any]]


def states(scale: int = 2, width: int = 3, fill: int = 1) -> dict[str, Any]:
    data = bytes([fill]) * (scale * scale * width * 4)
    value = {
        "scales": [scale],
        "width": width,
        "dtype": "float32",
        "data": base64.b64encode(data).decode("ascii"),
    }
    return {"text": "", "meta_info": {QUERY_STATES_KEY: [value]}}


class Served:
    """A server and what it was asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bodies: list[dict[str, Any]] = []


@contextmanager
def serving(
    answer: Answer, architectures: Any = (THINKER_ARCHITECTURE,)
) -> Iterator[Served]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(200, {"architectures": architectures})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            served.bodies.append(body)
            self._reply(*answer(body))

        def _reply(self, status: int, value: Any) -> None:
            payload = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Served(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def client(*urls: str, timeout_s: float = 20.0) -> ThinkerClient:
    return ThinkerClient(RunningThinkers(urls, timeout_s), EXPECTED, timeout_s)


def fetch(url: str, prompt: str = "a cat") -> Any:
    return client(url).fetch([ThinkerRequest(prompt)])


def test_request_is_the_official_prompt_with_the_query_block():
    body = ThinkerRequest("make it blue", (b"picture",)).body()
    assert "<role>HUMAN</role><IMAGE>make it blue<|role_end|>" in body["text"]
    assert body["text"].endswith("<role>ASSISTANT</role>")
    picture, block = body["image_data"]
    assert block == QUERY_BLOCK
    assert base64.b64decode(picture.partition(",")[2]) == b"picture"
    assert body["sampling_params"]["max_new_tokens"] == 1


def test_special_tokens_are_refused_before_anything_is_sent():
    with serving(lambda body: (200, states())) as thinker:
        with pytest.raises(RequestError, match="<imagePatch> is not allowed"):
            fetch(thinker.url, "a <imagePatch>")
        assert thinker.bodies == []


def test_equal_requests_are_asked_once_and_remembered():
    with serving(lambda body: (200, states())) as thinker:
        asking = client(thinker.url)
        cat, dog = ThinkerRequest("cat"), ThinkerRequest("dog")
        first = asking.fetch([cat, dog, cat])
        assert len(thinker.bodies) == 2
        assert first[0] == first[2]
        again = asking.fetch([cat])
        assert again == first[:1]
        asking.fetch([ThinkerRequest("cat", (b"picture",))])
        asking.fetch([ThinkerRequest("cat", (b"another",))])
        assert len(thinker.bodies) == 4


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(thinker_client, "CACHED_ANSWERS", 2)
    with serving(lambda body: (200, states())) as thinker:
        asking = client(thinker.url)
        for prompt in ("a", "b", "a", "c", "a", "b"):
            asking.fetch([ThinkerRequest(prompt)])
        # a, b, c were new; b was forgotten for c.
        assert len(thinker.bodies) == 4


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (200, b"garbage", "answered no JSON: b'garbage'"),
        (200, b"", "answered no JSON"),
        (200, [], "has no meta_info"),
        (200, {"meta_info": {}}, "is the server a Ming thinker"),
        (200, {"meta_info": {QUERY_STATES_KEY: [7]}}, "is int"),
        (200, {"meta_info": {QUERY_STATES_KEY: [{}]}}, "malformed"),
        (
            200,
            {"meta_info": {QUERY_STATES_KEY: [{"error": "only 3 of 4"}]}},
            "the thinker failed: only 3 of 4",
        ),
        (200, states(scale=1), "scales (1,) and width 3, this generator takes (2,)"),
        (200, states(width=4), "width 4"),
        (400, b"Bad Request", "answered 400: Bad"),
        (500, b"Internal Server Error", "answered 500: Internal"),
        (503, b"", "answered 503"),
    ],
)
def test_wrong_answers_are_errors_with_the_reason(status, answer, message):
    pattern = message.replace("(", r"\(").replace(")", r"\)")
    with serving(lambda body: (status, answer)) as thinker:
        with pytest.raises(ThinkerError, match=pattern):
            fetch(thinker.url)


def test_a_refusal_is_the_clients_error():
    refusal = {"error": {"message": "too long"}}
    with serving(lambda body: (400, refusal)) as thinker:
        with pytest.raises(RequestError, match=r"^prompt: .* refuses it: too long$"):
            fetch(thinker.url)


def test_too_few_rows():
    answer = states()
    value = answer["meta_info"][QUERY_STATES_KEY][0]
    value["data"] = base64.b64encode(bytes(3 * 3 * 4)).decode("ascii")
    with serving(lambda body: (200, answer)) as thinker:
        with pytest.raises(ThinkerError, match="has 36 bytes, expected 48"):
            fetch(thinker.url)


def test_wrong_answers_are_not_remembered():
    answers = iter([(500, b"no"), (200, states())])
    with serving(lambda body: next(answers)) as thinker:
        asking = client(thinker.url)
        with pytest.raises(ThinkerError):
            asking.fetch([ThinkerRequest("cat")])
        assert len(asking.fetch([ThinkerRequest("cat")])) == 1


def test_no_thinker_is_an_error_within_seconds():
    port, _, _ = free_ports()
    with pytest.raises(ThinkerError, match=r"does not answer: .*refused"):
        fetch(f"http://127.0.0.1:{port}")


def test_silent_thinker_is_given_up():
    release = threading.Event()

    def silent(body: dict[str, Any]) -> tuple[int, Any]:
        release.wait(30)
        return 200, states()

    with serving(silent) as thinker:
        try:
            with pytest.raises(ThinkerError, match="does not answer: timed out"):
                client(thinker.url, timeout_s=0.3).fetch([ThinkerRequest("cat")])
        finally:
            release.set()


def test_another_thinker_takes_over_and_they_share_the_work():
    port, _, _ = free_ports()
    dead = f"http://127.0.0.1:{port}"
    with serving(lambda body: (200, states())) as thinker:
        asking = client(dead, thinker.url)
        for prompt in ("a", "b", "c"):
            assert asking.fetch([ThinkerRequest(prompt)])
        assert len(thinker.bodies) == 3
    with (
        serving(lambda body: (200, states())) as one,
        serving(lambda body: (200, states())) as two,
    ):
        asking = client(one.url, two.url)
        asking.fetch([ThinkerRequest(prompt) for prompt in "abcd"])
        assert len(one.bodies) == len(two.bodies) == 2


def test_check_asks_every_thinker():
    with (
        serving(lambda body: (200, states())) as one,
        serving(lambda body: (200, states(width=7))) as two,
    ):
        client(one.url).check()
        with pytest.raises(ThinkerError, match="must be of one checkpoint"):
            client(one.url, two.url).check()


def test_all_reasons_are_told_when_none_answers():
    with (
        serving(lambda body: (500, b"first")) as one,
        serving(lambda body: (500, b"second")) as two,
    ):
        with pytest.raises(ThinkerError, match=r"first.*second|second.*first"):
            client(one.url, two.url).fetch([ThinkerRequest("cat")])


class TestStart:
    def test_a_thinker_is_accepted(self):
        with serving(lambda body: (200, states())) as thinker:
            RunningThinkers([thinker.url], 20).wait_until_ready()

    @pytest.mark.parametrize("found", [["Qwen3ForCausalLM"], None, [], "text"])
    def test_another_model_is_refused(self, found):
        with serving(lambda body: (200, states()), found) as thinker:
            with pytest.raises(ThinkerError, match="expected a Ming thinker"):
                RunningThinkers([thinker.url], 20).wait_until_ready()

    def test_silence_is_refused_in_the_end(self):
        port, _, _ = free_ports()
        with pytest.raises(ThinkerError, match="does not answer"):
            RunningThinkers([f"http://127.0.0.1:{port}"], 0).wait_until_ready()

    @pytest.mark.parametrize("argument", ["--port", "--host=x", "--model-path"])
    def test_arguments_of_the_generator_are_refused(self, argument):
        with pytest.raises(ConfigError, match="is set by the generator"):
            OwnThinker("model", [argument, "1"])

    def test_thinker_that_cannot_start_tells_why(self, tmp_path, monkeypatch):
        # A server that ends at once, in SGLang's place.
        (tmp_path / "sglang").mkdir()
        (tmp_path / "sglang" / "__init__.py").write_text("exit(2)", "utf-8")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        thinker = OwnThinker("no/such/model", ["--no-such-flag"])
        with pytest.raises(ThinkerError, match="before it was ready"):
            thinker.wait_until_ready()
        with pytest.raises(ThinkerError, match="it is being started again"):
            thinker.addresses()
        thinker.stop()
