# SPDX-License-Identifier: Apache-2.0
"""Streamed chat completions under load, for the benchmarks of answering models.

Any OpenAI-compatible base URL will do, so peers are measured by the same code. For each
input mode and each concurrency c, c clients send requests one after the other; every
prompt begins with other words, so that no answer comes from a prefix cache.
"""

import base64
import io
import math
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import openai
import soundfile
from PIL import Image

CONCURRENCY = (1, 2, 4, 8, 16, 32)
SEED = 0


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
    """

    base_url: str
    modes: Sequence[str]
    concurrency: Sequence[int]
    requests: int
    max_tokens: int
    model: str
    api_key: str = "none"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    mode: str
    concurrency: int
    requests: int
    ttft_ms_median: float
    ttft_ms_p90: float
    tokens_per_second: float


@dataclass(frozen=True)
class _Answer:
    """One streamed answer; seconds to its first token."""

    first_token: float
    tokens: int


def measure(load: Load) -> list[Row]:
    """Every mode at every concurrency, after a request that warms up."""
    client = openai.OpenAI(
        base_url=load.base_url, api_key=load.api_key, max_retries=0, timeout=1800
    )
    rows = []
    for mode in load.modes:
        parts = content(mode)
        _ask(client, load, parts, "warm-up")
        for clients in load.concurrency:
            rows.append(_measure(client, load, parts, mode, clients))
    return rows


def _measure(
    client: openai.OpenAI,
    load: Load,
    parts: list[dict[str, Any]],
    mode: str,
    clients: int,
) -> Row:
    count = clients * load.requests
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        answers = list(
            threads.map(
                lambda i: _ask(client, load, parts, f"{clients}.{i}"), range(count)
            )
        )
    seconds = time.perf_counter() - start
    first = sorted(answer.first_token * 1000 for answer in answers)
    return Row(
        mode=mode,
        concurrency=clients,
        requests=count,
        ttft_ms_median=round(statistics.median(first), 1),
        ttft_ms_p90=round(first[math.ceil(0.9 * len(first)) - 1], 1),
        tokens_per_second=round(sum(a.tokens for a in answers) / seconds, 2),
    )


def _ask(
    client: openai.OpenAI, load: Load, parts: list[dict[str, Any]], tag: str
) -> _Answer:
    message = [{"type": "text", "text": f"Request {tag}. "}, *parts]
    start = time.perf_counter()
    first = None
    tokens = 0
    stream = client.chat.completions.create(
        model=load.model,
        messages=[{"role": "user", "content": message}],  # type: ignore[misc]
        max_tokens=load.max_tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    for part in stream:
        if first is None and part.choices:
            first = time.perf_counter() - start
        if part.usage is not None:
            tokens = part.usage.completion_tokens
    if first is None or tokens == 0:
        raise RuntimeError(f"request {tag} gave no tokens")
    return _Answer(first, tokens)


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
          f"{'tokens/s':>9}")  # fmt: skip
    for row in rows:
        print(
            f"{row.mode:6} {row.concurrency:7} {row.requests:8} "
            f"{row.ttft_ms_median:9} {row.ttft_ms_p90:9} {row.tokens_per_second:9}"
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
