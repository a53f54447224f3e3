# SPDX-License-Identifier: Apache-2.0
"""How fast does a thinker answer, alone and under load, and what does a hop cost?

Method: streamed chat completions against any OpenAI-compatible base URL, so peers are
measured by the same code; ``--tiny`` starts a server with a tiny checkpoint by itself.
For each input mode (text, image, audio, video) and each concurrency c, c clients send
requests one after the other; every prompt begins with other words, so that no answer
comes from a prefix cache. The concurrencies take turns over several rounds, because a
shared machine is busier at one time than at another. Reported: median and p90 time to
the first token over all rounds, and generated tokens per second over all clients, the
median of the rounds and the best. Decoding at concurrency 1 is bound by the bandwidth
of the active experts' weights; more requests share the reads, so tokens per second
should grow about tenfold up to 32.

First of all the answers are checked: a question asked 8 times at once must be answered
as it is alone.

The hop: 256 x 4096 bf16 query states, made into an HTTP body and back, as JSON numbers
(SGLang's ``return_hidden_states``) and as base64 bytes (ours). No server is needed.
"""

import argparse
import base64
import io
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import numpy as np
import openai
import soundfile
from PIL import Image

from sglang_ext_gen.models.ming_omni.thinker.tiny import write_tiny
from sglang_ext_gen.models.ming_omni.thinker_protocol import (
    QUERY_STATES_KEY,
    QueryStates,
)

MODES = ("text", "image", "audio", "video")
CONCURRENCY = (1, 2, 4, 8, 16, 32)
HOP_SCALE, HOP_WIDTH, HOP_REPEATS = 16, 4096, 5
SEED = 0
CHECKED_TOGETHER = 8
TINY_PORT = 31730
START_SECONDS = 900


@dataclass(frozen=True)
class Answer:
    """One streamed answer, in seconds."""

    first_token: float
    total: float
    tokens: int
    text: str


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    mode: str
    concurrency: int
    requests: int
    ttft_ms_median: float
    ttft_ms_p90: float
    tokens_per_second: float
    tokens_per_second_best: float


def main() -> None:
    """Measure, print the table, then one JSON line."""
    arguments = _arguments()
    rows: list[Row] = []
    if arguments.tiny:
        with _tiny_server() as arguments.base_url:
            rows = _measure_server(arguments)
    elif arguments.base_url:
        rows = _measure_server(arguments)
    hop = {} if arguments.skip_hop else measure_hop()
    _print_table(rows, hop)
    print(
        json.dumps(
            {
                "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
                "url": arguments.base_url,
                "sglang": version("sglang"),
                "torch": version("torch"),
                "commit": _commit(),
                "seed": SEED,
                "max_tokens": arguments.max_tokens,
                "rows": [asdict(row) for row in rows],
                "hop": hop,
            }
        )
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure a thinker.")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--base-url", help="such as http://127.0.0.1:30000/v1")
    where.add_argument("--tiny", action="store_true", help="start a server for it")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--model", default="ming")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--concurrency", nargs="+", type=int, default=list(CONCURRENCY))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=2, help="per client and round")
    parser.add_argument("--skip-hop", action="store_true")
    parser.add_argument("--max-tokens", type=int, default=128)
    return parser.parse_args()


@contextmanager
def _tiny_server() -> Iterator[str]:
    """A server with a tiny checkpoint; its base URL."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, log = Path(folder) / "ming", Path(folder) / "log"
        write_tiny(checkpoint)
        command = [
            *(sys.executable, "-m", "sglang.launch_server"),
            *("--model-path", str(checkpoint), "--dtype", "float32"),
            *("--port", str(TINY_PORT), "--max-total-tokens", "65536"),
            *("--mem-fraction-static", "0.3"),
        ]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, cwd=folder
            )
        try:
            _wait(process, f"http://127.0.0.1:{TINY_PORT}/health", log)
            yield f"http://127.0.0.1:{TINY_PORT}/v1"
        finally:
            process.terminate()
            process.wait(timeout=60)


def _wait(process: subprocess.Popen, url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(1)
    raise RuntimeError(f"the server did not start:\n{log.read_text()[-3000:]}")


def _measure_server(arguments: argparse.Namespace) -> list[Row]:
    client = openai.OpenAI(
        base_url=arguments.base_url, api_key=arguments.api_key, max_retries=0
    )
    rows = []
    for mode in arguments.modes:
        content = _content(mode)
        _check(client, arguments, content, mode)
        rounds: dict[int, list[tuple[list[Answer], float]]] = {
            concurrency: [] for concurrency in arguments.concurrency
        }
        for number in range(arguments.rounds):
            for concurrency, measured in rounds.items():
                tag = f"{number}.{concurrency}"
                measured.append(_load(client, arguments, content, concurrency, tag))
        rows += [_row(mode, c, measured) for c, measured in rounds.items()]
    return rows


def _check(
    client: openai.OpenAI,
    arguments: argparse.Namespace,
    content: list[dict[str, Any]],
    mode: str,
) -> None:
    """A question is answered in company as it is alone; also warms the server up."""
    alone = _ask(client, arguments, content, "check").text
    with ThreadPoolExecutor(CHECKED_TOGETHER) as threads:
        tags = ["check"] * CHECKED_TOGETHER
        together = list(
            threads.map(lambda tag: _ask(client, arguments, content, tag), tags)
        )
    if any(answer.text != alone for answer in together):
        raise RuntimeError(f"{mode}: the answer depends on the requests beside it")


def _load(
    client: openai.OpenAI,
    arguments: argparse.Namespace,
    content: list[dict[str, Any]],
    concurrency: int,
    tag: str,
) -> tuple[list[Answer], float]:
    """Answers of one round at one concurrency, and its seconds."""
    count = concurrency * arguments.requests
    start = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as threads:
        answers = list(
            threads.map(
                lambda i: _ask(client, arguments, content, f"{tag}.{i}"), range(count)
            )
        )
    return answers, time.perf_counter() - start


def _row(mode: str, concurrency: int, rounds: list[tuple[list[Answer], float]]) -> Row:
    answers = [answer for measured, _ in rounds for answer in measured]
    first = sorted(answer.first_token * 1000 for answer in answers)
    rates = [
        sum(answer.tokens for answer in measured) / seconds
        for measured, seconds in rounds
    ]
    return Row(
        mode=mode,
        concurrency=concurrency,
        requests=len(answers),
        ttft_ms_median=round(statistics.median(first), 1),
        ttft_ms_p90=round(first[math.ceil(0.9 * len(first)) - 1], 1),
        tokens_per_second=round(statistics.median(rates), 2),
        tokens_per_second_best=round(max(rates), 2),
    )


def _ask(
    client: openai.OpenAI,
    arguments: argparse.Namespace,
    content: list[dict[str, Any]],
    tag: str,
) -> Answer:
    message = [{"type": "text", "text": f"Request {tag}. "}, *content]
    start = time.perf_counter()
    first = None
    tokens = 0
    words: list[str] = []
    stream = client.chat.completions.create(
        model=arguments.model,
        messages=[{"role": "user", "content": message}],  # type: ignore[misc]
        max_tokens=arguments.max_tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    for part in stream:
        if first is None and part.choices:
            first = time.perf_counter() - start
        words += [choice.delta.content or "" for choice in part.choices]
        if part.usage is not None:
            tokens = part.usage.completion_tokens
    if first is None or tokens == 0:
        raise RuntimeError(f"request {tag} gave no tokens")
    return Answer(first, time.perf_counter() - start, tokens, "".join(words))


def _content(mode: str) -> list[dict[str, Any]]:
    """A question with one medium of everyday size."""
    question = {"type": "text", "text": "Describe this in detail."}
    if mode == "text":
        return [{"type": "text", "text": "Write a story about the sea."}]
    generator = np.random.default_rng(SEED)
    stream = io.BytesIO()
    if mode == "image":
        pixels = generator.integers(0, 255, (480, 640, 3), "uint8")
        Image.fromarray(pixels).save(stream, "PNG")
        part = {"type": "image_url", "image_url": {"url": _url("image/png", stream)}}
    elif mode == "audio":
        samples = generator.normal(0, 0.1, 16_000 * 5)
        soundfile.write(stream, samples, 16_000, format="WAV")
        part = {"type": "audio_url", "audio_url": {"url": _url("audio/wav", stream)}}
    else:
        _write_video(stream, generator)
        part = {"type": "video_url", "video_url": {"url": _url("video/mp4", stream)}}
    return [part, question]


def _write_video(stream: io.BytesIO, generator: np.random.Generator) -> None:
    with av.open(stream, "w", format="mp4") as container:
        track = container.add_stream("mpeg4", rate=10)
        track.width, track.height = 320, 240
        for _ in range(20):
            pixels = generator.integers(0, 255, (240, 320, 3), "uint8")
            container.mux(track.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(track.encode(None))


def _url(kind: str, stream: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def measure_hop() -> dict[str, float]:
    """Bytes and milliseconds of one hop, both ways of writing it, checked equal."""
    rows = HOP_SCALE * HOP_SCALE
    generator = np.random.default_rng(SEED)
    # bf16 values: float32 numbers whose lower 16 bits are zero.
    bits = generator.normal(0, 1, (rows, HOP_WIDTH)).astype(np.float32).view(np.uint32)
    bits &= np.uint32(0xFFFF0000)
    stored = (bits >> 16).astype("<u2").tobytes()
    states = QueryStates((HOP_SCALE,), HOP_WIDTH, "bfloat16", stored)
    numbers = bits.view(np.float32)

    def as_numbers() -> tuple[int, bool]:
        body = json.dumps({"hidden_states": numbers.tolist()})
        back = np.array(json.loads(body)["hidden_states"], dtype=np.float32)
        return len(body), bool((back == numbers).all())

    def as_bytes() -> tuple[int, bool]:
        body = json.dumps({QUERY_STATES_KEY: [states.to_json()]})
        back = QueryStates.from_meta_info(json.loads(body))
        return len(body), back.data == stored

    result = {}
    for name, run in (("json_numbers", as_numbers), ("bytes", as_bytes)):
        times = []
        for _ in range(HOP_REPEATS):
            start = time.perf_counter()
            size, is_equal = run()
            times.append((time.perf_counter() - start) * 1000)
            if not is_equal:
                raise RuntimeError(f"{name}: the rows changed on the way")
        result[f"{name}_bytes"] = size
        result[f"{name}_ms_median"] = round(statistics.median(times), 2)
    return result


def _print_table(rows: list[Row], hop: dict[str, float]) -> None:
    if rows:
        print(f"{'mode':6} {'clients':>7} {'requests':>8} {'TTFT ms':>9} {'p90':>9} "
              f"{'tokens/s':>9} {'best':>9}")  # fmt: skip
    for row in rows:
        print(
            f"{row.mode:6} {row.concurrency:7} {row.requests:8} "
            f"{row.ttft_ms_median:9} {row.ttft_ms_p90:9} {row.tokens_per_second:9} "
            f"{row.tokens_per_second_best:9}"
        )
    for mode in dict.fromkeys(row.mode for row in rows):
        rates = {r.concurrency: r.tokens_per_second for r in rows if r.mode == mode}
        few, many = min(rates), max(rates)
        print(f"{mode}: {many} clients get {rates[many] / rates[few]:.1f} times the "
              f"tokens a second of {few}")  # fmt: skip
    if not hop:
        return
    print(f"hop of {HOP_SCALE * HOP_SCALE} x {HOP_WIDTH} bf16 rows, encode and decode:")
    for name in ("json_numbers", "bytes"):
        print(f"  {name:12} {hop[f'{name}_bytes']:>10} bytes "
              f"{hop[f'{name}_ms_median']:>9} ms")  # fmt: skip


def _commit() -> str:
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
