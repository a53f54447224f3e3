# SPDX-License-Identifier: Apache-2.0
"""How fast does a thinker answer, alone and under load, and what does a hop cost?

Method: ``chat_load.py``, against any OpenAI-compatible base URL, so peers are measured
by the same code; ``--tiny`` starts a server with a tiny checkpoint by itself. For each
input mode (text, image, audio, video) and number of clients: median and p90 time to the
first token, and generated tokens per second over all clients. Decoding for one client
is bound by the bandwidth of the active experts' weights; more requests share the reads,
so tokens per second should grow about tenfold up to 32.

The hop: 256 x 4096 bf16 query states, made into an HTTP body and back, as JSON numbers
(SGLang's ``return_hidden_states``) and as base64 bytes (ours). No server is needed.
"""

import argparse
import json
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
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import chat_load
import numpy as np

from sglang_ext_gen.models.ming_omni.thinker.tiny import write_tiny
from sglang_ext_gen.models.ming_omni.thinker_protocol import (
    QUERY_STATES_KEY,
    QueryStates,
)

MODES = ("text", "image", "audio", "video")
HOP_SCALE, HOP_WIDTH, HOP_REPEATS = 16, 4096, 5
SEED = chat_load.SEED
TINY_PORT = 31730
START_SECONDS = 900


def main() -> None:
    """Measure, print the table, then one JSON line."""
    arguments = _arguments()
    rows: list[chat_load.Row] = []
    if arguments.tiny:
        with _tiny_server() as arguments.base_url:
            rows = chat_load.measure(_load(arguments))
    elif arguments.base_url:
        rows = chat_load.measure(_load(arguments))
    if rows:
        chat_load.print_table(rows)
    hop = {} if arguments.skip_hop else measure_hop()
    if hop:
        _print_hop(hop)
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
    parser.add_argument(
        "--concurrency", nargs="+", type=int, default=list(chat_load.CONCURRENCY)
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=2, help="per client and round")
    parser.add_argument("--skip-hop", action="store_true")
    parser.add_argument("--max-tokens", type=int, default=128)
    return parser.parse_args()


def _load(arguments: argparse.Namespace) -> chat_load.Load:
    return chat_load.Load(
        base_url=arguments.base_url,
        modes=arguments.modes,
        concurrency=arguments.concurrency,
        requests=arguments.requests,
        max_tokens=arguments.max_tokens,
        model=arguments.model,
        api_key=arguments.api_key,
        rounds=arguments.rounds,
    )


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


def _print_hop(hop: dict[str, float]) -> None:
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
