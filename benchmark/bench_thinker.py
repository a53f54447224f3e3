# SPDX-License-Identifier: Apache-2.0
"""How fast does a thinker answer, alone and under load, and what does a hop cost?

Method: streamed chat completions against any OpenAI-compatible base URL, so peers are
measured by the same code. For each input mode (text, image, audio, video) and each
concurrency c, c clients send requests one after the other; every prompt begins with
other words, so that no answer comes from a prefix cache. Reported: median and p90 time
to the first token, and generated tokens per second over all clients. Decoding at
concurrency 1 is bound by the bandwidth of the active experts' weights; more requests
share the reads, so tokens per second should grow about tenfold up to 32.

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
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import numpy as np
import openai
import soundfile
from PIL import Image

from sglang_ext_gen.models.ming_omni.thinker_protocol import (
    QUERY_STATES_KEY,
    QueryStates,
)

MODES = ("text", "image", "audio", "video")
CONCURRENCY = (1, 2, 4, 8, 16, 32)
HOP_SCALE, HOP_WIDTH, HOP_REPEATS = 16, 4096, 5
SEED = 0


@dataclass(frozen=True)
class Answer:
    """One streamed answer, in seconds."""

    first_token: float
    total: float
    tokens: int


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    mode: str
    concurrency: int
    requests: int
    ttft_ms_median: float
    ttft_ms_p90: float
    tokens_per_second: float


def main() -> None:
    """Measure, print the table, then one JSON line."""
    arguments = _arguments()
    rows = _measure_server(arguments) if arguments.base_url else []
    hop = measure_hop()
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
    parser.add_argument("--base-url", help="such as http://127.0.0.1:30000/v1")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--model", default="ming")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--concurrency", nargs="+", type=int, default=list(CONCURRENCY))
    parser.add_argument("--requests", type=int, default=4, help="per client")
    parser.add_argument("--max-tokens", type=int, default=128)
    return parser.parse_args()


def _measure_server(arguments: argparse.Namespace) -> list[Row]:
    client = openai.OpenAI(
        base_url=arguments.base_url, api_key=arguments.api_key, max_retries=0
    )
    media = {mode: _content(mode) for mode in arguments.modes}
    rows = []
    for mode in arguments.modes:
        _ask(client, arguments, media[mode], "warm-up")
        for concurrency in arguments.concurrency:
            rows.append(_measure(client, arguments, media[mode], mode, concurrency))
    return rows


def _measure(
    client: openai.OpenAI,
    arguments: argparse.Namespace,
    content: list[dict[str, Any]],
    mode: str,
    concurrency: int,
) -> Row:
    count = concurrency * arguments.requests
    start = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as threads:
        answers = list(
            threads.map(
                lambda i: _ask(client, arguments, content, f"{concurrency}.{i}"),
                range(count),
            )
        )
    seconds = time.perf_counter() - start
    first = sorted(answer.first_token * 1000 for answer in answers)
    return Row(
        mode=mode,
        concurrency=concurrency,
        requests=count,
        ttft_ms_median=round(statistics.median(first), 1),
        ttft_ms_p90=round(first[math.ceil(0.9 * len(first)) - 1], 1),
        tokens_per_second=round(sum(a.tokens for a in answers) / seconds, 2),
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
        if part.usage is not None:
            tokens = part.usage.completion_tokens
    if first is None or tokens == 0:
        raise RuntimeError(f"request {tag} gave no tokens")
    return Answer(first, time.perf_counter() - start, tokens)


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
              f"{'tokens/s':>9}")  # fmt: skip
    for row in rows:
        print(
            f"{row.mode:6} {row.concurrency:7} {row.requests:8} "
            f"{row.ttft_ms_median:9} {row.ttft_ms_p90:9} {row.tokens_per_second:9}"
        )
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
