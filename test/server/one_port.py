# SPDX-License-Identifier: Apache-2.0
"""One port for two servers: start it, find its processes, ask it much at once."""

import base64
import io
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
from openai import OpenAI
from PIL import Image

from server.servers import Server, free_ports, running

# An upstream that died is back in a minute or two; the machine may be busy.
BACK_SECONDS = 600
# "Within seconds", on a busy machine.
FAIL_SECONDS = 60


@contextmanager
def serving_one_port(
    command: Sequence[str], folder: Path, *flags: str, **environment: str
) -> Iterator[Server]:
    """Run a serve command for a checkpoint with two models until the block ends."""
    port, _, _ = free_ports()
    words = [*command, "--host", "127.0.0.1", "--port", str(port), *flags]
    with running(words, folder, port, environment) as server:
        yield server


def client_of(server: Server) -> OpenAI:
    url = f"{server.url}/v1"
    return OpenAI(base_url=url, api_key="none", max_retries=0, timeout=300)


def upstream_of(server: Server, title: str) -> psutil.Process:
    """The main process of an upstream."""
    word = {"thinker": "sglang.launch_server", "generator": "sglang_ext_gen"}[title]
    [found] = [p for p in living(server.process.children()) if word in p.cmdline()]
    return found


def address_of(server: Server, title: str) -> str:
    """Where an upstream listens."""
    words = upstream_of(server, title).cmdline()
    return f"http://127.0.0.1:{words[words.index('--port') + 1]}"


def as_server(server: Server, title: str) -> Server:
    """A part as the server of its own that it is."""
    return replace(server, url=address_of(server, title))


def living(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended: a killed one is a zombie until it is waited for."""
    return [p for p in processes if p.is_running() and p.status() != "zombie"]


def worker_of(server: Server, title: str) -> psutil.Process:
    """A process of an upstream that runs its model: the one with the most memory."""
    children = living(upstream_of(server, title).children(recursive=True))
    return max(children, key=lambda process: process.memory_info().rss)


def health_of(server: Server) -> dict[str, str]:
    """What is said of each upstream."""
    return httpx.get(f"{server.url}/health", timeout=60).json()["parts"]


def wait_until(condition: Callable[[], Any], seconds: float = BACK_SECONDS) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.2)
    raise AssertionError(f"waited {seconds} s in vain")


def is_healthy(server: Server) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{server.url}/health", timeout=60).status_code == 200
    return False


def streamed(client: OpenAI, messages: Any, **fields: Any) -> str:
    """The text of a streamed chat, which must come in pieces."""
    stream = client.chat.completions.create(messages=messages, stream=True, **fields)
    words = [part.choices[0].delta.content or "" for part in stream if part.choices]
    assert len(words) > 2
    return "".join(words)


def pictures(response: Any) -> list[bytes]:
    return [base64.b64decode(item.b64_json) for item in response.data]


def at_once(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Results of calls that run at the same time, in their order."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return [job.result() for job in [threads.submit(call) for call in calls]]


def refused(server: Server, path: str, status: int, word: str, **request: Any) -> None:
    """Post a bad request; the answer must be OpenAI's error, with ``word`` in it."""
    reply = httpx.post(server.url + path, timeout=120, **request)
    assert reply.status_code == status, (request, reply.text)
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert word in error["message"], error


def blank_png(width: int, height: int) -> bytes:
    """A picture of any size that is small to send."""
    stream = io.BytesIO()
    Image.new("1", (width, height)).save(stream, "PNG")
    return stream.getvalue()


def kill_when_busy(server: Server, title: str) -> None:
    """Kill an upstream's worker some time after a request was sent."""
    worker = worker_of(server, title)
    worker.cpu_percent()
    wait_until(lambda: worker.cpu_percent(0.3) > 20)
    worker.kill()


def failure_of(call: Callable[[], Any]) -> openai.APIError:
    """The error that a call ends with, within seconds."""
    started = time.monotonic()
    try:
        call()
    except openai.APIError as error:
        assert time.monotonic() - started < FAIL_SECONDS
        return error
    raise AssertionError("the call did not fail")
