# SPDX-License-Identifier: Apache-2.0
"""Streamed chat completions under load, for the benchmarks of answering models.

Any OpenAI-compatible base URL will do, so peers are measured by the same code. For each
input mode and each concurrency c, c clients send requests one after the other; every
prompt begins with other words, so that no answer comes from a prefix cache. The
concurrencies take turns over the rounds, because a shared machine is busier at one time
than at another.

First of all the answers are checked: a question asked several times at once must be
answered as it is alone.
"""

import base64
import io
import json
import math
import statistics
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import soundfile
from PIL import Image

CONCURRENCY = (1, 2, 4, 8, 16, 32)
SEED = 0
CHECKED_TOGETHER = 8


@dataclass(frozen=True)
class Load:
    """What is asked of a server.

    Args:
        base_url: Such as ``http://127.0.0.1:30000/v1``.
        modes: Of ``content``.
        concurrency: Numbers of clients.
        requests: Of each client.
        max_tokens: Of each answer; none ends earlier.
        model: As the server calls it.
        api_key: For peers that ask for one.
        rounds: How often each concurrency has its turn.
    """

    base_url: str
    modes: Sequence[str]
    concurrency: Sequence[int]
    requests: int
    max_tokens: int
    model: str
    api_key: str = "none"
    rounds: int = 1


@dataclass(frozen=True)
class Row:
    """One line of the table: times of all rounds, rates as their median and best."""

    mode: str
    concurrency: int
    requests: int
    ttft_ms_median: float
    ttft_ms_p90: float
    tokens_per_second: float
    tokens_per_second_best: float


@dataclass(frozen=True)
class _Answer:
    """One streamed answer; seconds to its first token."""

    first_token: float
    tokens: int
    text: str


def measure(load: Load) -> list[Row]:
    """Every mode at every concurrency, after the check, which also warms up.

    Raises:
        RuntimeError: An answer depends on the requests beside it, or is empty.
    """
    rows = []
    for mode in load.modes:
        parts = content(mode)
        _check(load, parts, mode)
        rounds: dict[int, list[tuple[list[_Answer], float]]] = {
            clients: [] for clients in load.concurrency
        }
        for number in range(load.rounds):
            for clients, measured in rounds.items():
                tag = f"{number}.{clients}"
                measured.append(_measure(load, parts, clients, tag))
        rows += [_row(mode, clients, rounds[clients]) for clients in rounds]
    return rows


def _check(load: Load, parts: list[dict[str, Any]], mode: str) -> None:
    alone = _ask(load, parts, "check").text
    with ThreadPoolExecutor(CHECKED_TOGETHER) as threads:
        tags = ["check"] * CHECKED_TOGETHER
        together = threads.map(lambda tag: _ask(load, parts, tag).text, tags)
        if any(text != alone for text in together):
            raise RuntimeError(f"{mode}: an answer depends on the requests beside it")


def _measure(
    load: Load,
    parts: list[dict[str, Any]],
    clients: int,
    tag: str,
) -> tuple[list[_Answer], float]:
    """Answers of one round, and its seconds."""
    count = clients * load.requests
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        answers = list(
            threads.map(lambda i: _ask(load, parts, f"{tag}.{i}"), range(count))
        )
    return answers, time.perf_counter() - start


def _row(mode: str, clients: int, rounds: list[tuple[list[_Answer], float]]) -> Row:
    answers = [answer for measured, _ in rounds for answer in measured]
    first = sorted(answer.first_token * 1000 for answer in answers)
    rates = [
        sum(answer.tokens for answer in measured) / seconds
        for measured, seconds in rounds
    ]
    return Row(
        mode=mode,
        concurrency=clients,
        requests=len(answers),
        ttft_ms_median=round(statistics.median(first), 1),
        ttft_ms_p90=round(first[math.ceil(0.9 * len(first)) - 1], 1),
        tokens_per_second=round(statistics.median(rates), 2),
        tokens_per_second_best=round(max(rates), 2),
    )


def _ask(load: Load, parts: list[dict[str, Any]], tag: str) -> _Answer:
    body = {
        "model": load.model,
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": f"Request {tag}. "}, *parts],
            }
        ],
        "max_tokens": load.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    start = time.perf_counter()
    first = None
    tokens = 0
    words: list[str] = []
    for part in _events(load, body):
        if first is None and part["choices"]:
            first = time.perf_counter() - start
        words += [choice["delta"].get("content") or "" for choice in part["choices"]]
        if part.get("usage") is not None:
            tokens = part["usage"]["completion_tokens"]
    if first is None or tokens == 0:
        raise RuntimeError(f"request {tag} gave no tokens")
    return _Answer(first, tokens, "".join(words))


def _events(load: Load, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The objects of a stream.

    Read without OpenAI's client, which builds checked objects of every token: on one
    machine the clients take their time from the server.
    """
    request = urllib.request.Request(
        f"{load.base_url}/chat/completions",
        data=json.dumps(body).encode("utf-8"),
        headers={
            "Authorization": f"Bearer {load.api_key}",
            "Content-Type": "application/json",
        },
    )
    with urllib.request.urlopen(request, timeout=1800) as reply:
        for line in reply:
            if line.startswith(b"data: {"):
                event = json.loads(line[len(b"data: ") :])
                if "error" in event:
                    raise RuntimeError(f"the server failed: {event['error']}")
                yield event


def growth(rows: Sequence[Row]) -> dict[str, float]:
    """Mode -> tokens a second with most clients over those with one."""
    speeds: dict[str, dict[int, float]] = {}
    for row in rows:
        speeds.setdefault(row.mode, {})[row.concurrency] = row.tokens_per_second
    return {
        mode: round(by_clients[max(by_clients)] / by_clients[1], 2)
        for mode, by_clients in speeds.items()
        if 1 in by_clients and by_clients[1] > 0
    }


def print_table(rows: Sequence[Row]) -> None:
    """The rows for people."""
    print(f"{'mode':6} {'clients':>7} {'requests':>8} {'TTFT ms':>9} {'p90':>9} "
          f"{'tokens/s':>9} {'best':>9}")  # fmt: skip
    for row in rows:
        print(
            f"{row.mode:6} {row.concurrency:7} {row.requests:8} "
            f"{row.ttft_ms_median:9} {row.ttft_ms_p90:9} {row.tokens_per_second:9} "
            f"{row.tokens_per_second_best:9}"
        )
    for mode, times in growth(rows).items():
        print(f"{mode:6} most clients / one client: {times}")


def content(mode: str) -> list[dict[str, Any]]:
    """A question with one medium of everyday size.

    Args:
        mode: ``text``, ``image``, ``audio`` or ``video``.
    """
    question = {"type": "text", "text": "Describe this in detail."}
    if mode == "text":
        return [{"type": "text", "text": "Write a story about the sea."}]
    generator = np.random.default_rng(SEED)
    stream = io.BytesIO()
    if mode == "image":
        pixels = generator.integers(0, 255, (480, 640, 3), "uint8")
        Image.fromarray(pixels).save(stream, "PNG")
        part = {
            "type": "image_url",
            "image_url": {"url": data_url("image/png", stream.getvalue())},
        }
    elif mode == "audio":
        samples = generator.normal(0, 0.1, 16_000 * 5)
        soundfile.write(stream, samples, 16_000, format="WAV")
        part = {
            "type": "audio_url",
            "audio_url": {"url": data_url("audio/wav", stream.getvalue())},
        }
    else:
        _write_video(stream, generator)
        part = {
            "type": "video_url",
            "video_url": {"url": data_url("video/mp4", stream.getvalue())},
        }
    return [part, question]


def _write_video(stream: io.BytesIO, generator: np.random.Generator) -> None:
    with av.open(stream, "w", format="mp4") as container:
        track = container.add_stream("mpeg4", rate=10)
        track.width, track.height = 320, 240
        for _ in range(20):
            pixels = generator.integers(0, 255, (240, 320, 3), "uint8")
            container.mux(track.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(track.encode(None))


def data_url(kind: str, data: bytes) -> str:
    """A file as a ``data:`` URL."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
