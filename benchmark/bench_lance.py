# SPDX-License-Identifier: Apache-2.0
"""What do the steps, tasks and answers of Lance cost, against the official algorithm?

Parts, each with its own question; correctness comes first in each:

- ``memory``: what does a task hold and need at its peak? A forked process for each task
  loads the parts of the task and runs one step; the peak is the growth of its resident
  memory. A large frame is decoded whole and in tiles.
- ``steps``: how long is one guided step, ours against ``lance_reference.py`` (the
  official algorithm put together from transformers' modules), taken in turns; and ours
  without the key/value prefix, which is then filled again in every step. Latents must
  agree within 1e-3 first.
- ``tasks``: seconds of each task through SGLang's ``DiffGenerator``, stage by stage.
- ``answers``: tokens a second of ``launch_server`` for 1 to 32 clients, measured by
  ``chat_load.py``, and of the reference for one; greedy tokens must be equal first.

Steps are bound by compute (thousands of latent tokens a step), answers for one client
by reading the weights, for many by compute. Everything runs in float32 on the CPU or
the first GPU. ``--size`` writes a random checkpoint; ``--model`` takes a real one.
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import chat_load
import httpx
import lance_reference as reference
import torch
from lance_cases import (
    OFFICIAL,
    PROMPT,
    SEED,
    SMALL,
    Case,
    Parts,
    Setting,
    condition,
    denoise,
    run_step,
    see,
    source_file,
    write_sources,
)
from torch import Tensor
from transformers import AutoTokenizer

from sglang_ext_gen.checkpoint.layout import read_json
from sglang_ext_gen.cli import running
from sglang_ext_gen.models.lance import generation, sources, tiny, vae
from sglang_ext_gen.models.lance.generation import LanceLoop
from sglang_ext_gen.models.lance.packing import (
    pack_answer,
    tokenize_prompt,
)
from sglang_ext_gen.models.lance.schedule import (
    Guidance,
    blend_guidance,
    euler_step,
    make_times,
)
from sglang_ext_gen.models.lance.tasks import TASKS, Variant
from sglang_ext_gen.models.lance.tiling import Tiling
from sglang_ext_gen.process.child_server import ChildServer
from sglang_ext_gen.registry import find_family

PARTS = ("memory", "steps", "tasks", "answers")
# The decoder of a random checkpoint, where it differs from ``tiny lance``.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "medium": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_attention_heads": 8,
        "num_hidden_layers": 8,
        "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
    },
}
MAX_ERROR = 1e-3  # latents after all steps, float32 on both sides
MIB = 2**20
START_SECONDS = 900.0
ANSWER_TOKENS = 16  # compared and timed with the reference


@dataclass(frozen=True)
class StepRow:
    """Milliseconds, medians; ``error`` is the largest difference of final latents."""

    task: str
    tokens: int
    prefix_tokens: int
    prefix_ms: float
    reference_prefix_ms: float
    step_ms: float
    reference_step_ms: float
    step_without_reuse_ms: float
    error: float


@dataclass(frozen=True)
class MemoryRow:
    """MiB; ``peak_mib`` is how far the process grew, weights included."""

    what: str
    weights_mib: float
    peak_mib: float


def main() -> int:
    """Measure, print tables, then one JSON line."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="bench-lance-") as temp:
        folder = Path(temp)
        path = arguments.model or folder / "lance"
        if arguments.model is None:
            _in_child(tiny.write_tiny, path, SEED, SIZES[arguments.size])
        setting = Setting(
            path=path,
            cases=OFFICIAL if arguments.official_sizes else SMALL,
            steps=arguments.steps,
            repeats=arguments.repeats,
            sources=write_sources(folder),
            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        )
        measured: dict[str, Any] = {}
        for part in PARTS:  # memory first: it forks, which threads would disturb
            if part in arguments.parts:
                print(f"\n{part}", flush=True)
                measured[part] = _MEASURES[part](setting, arguments)
    print(
        json.dumps(
            {
                "hardware": _hardware(),
                "versions": {
                    n: version(n) for n in ("sglang", "torch", "transformers")
                },
                "commit": _commit(),
                "seed": SEED,
                "size": str(arguments.model or arguments.size),
                "threads": torch.get_num_threads(),
                "steps": arguments.steps,
                "repeats": arguments.repeats,
                **measured,
            }
        )
    )
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure Lance.")
    parser.add_argument("--tiny", action="store_true", help="everything, small; for CI")
    parser.add_argument("--model", type=Path, help="a checkpoint; root of a release")
    parser.add_argument(
        "--size", choices=SIZES, default="medium", help="random weights"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--official-sizes", action="store_true", help="for a GPU")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5, help="timed steps a side")
    parser.add_argument("--modes", nargs="+", default=["text", "image", "video"])
    parser.add_argument(
        "--concurrency", nargs="+", type=int, default=list(chat_load.CONCURRENCY)
    )
    parser.add_argument("--requests", type=int, default=4, help="of each client")
    parser.add_argument("--max-tokens", type=int, default=64)
    arguments = parser.parse_args()
    if arguments.tiny:
        small = {
            **{"size": "tiny", "steps": 2, "repeats": 2, "modes": ["text", "image"]},
            **{"concurrency": [1, 4], "requests": 1, "max_tokens": 8},
        }
        vars(arguments).update(small)
    return arguments


def _guidance() -> Guidance:
    # Active in every step, so that each is a whole one.
    return Guidance(4.0, (0.0, 1.0), "global", 0.0)


# --- steps --------------------------------------------------------------------


def _measure_steps(setting: Setting, _: argparse.Namespace) -> list[dict[str, Any]]:
    rows = [_measure_step(setting, case) for case in setting.cases]
    print(f"{'task':11}{'tokens':>7}{'prefix':>7} | prefix ms: ours   reference | "
          f"step ms: ours   reference (ratio)   no reuse (ratio)   error")  # fmt: skip
    for row in rows:
        print(
            f"{row.task:11}{row.tokens:7}{row.prefix_tokens:7} | "
            f"{row.prefix_ms:15}{row.reference_prefix_ms:12} | "
            f"{row.step_ms:13}{row.reference_step_ms:12} "
            f"({row.reference_step_ms / row.step_ms:.2f})"
            f"{row.step_without_reuse_ms:11} "
            f"({row.step_without_reuse_ms / row.step_ms:.2f})  {row.error:.1e}"
        )
    return [asdict(row) for row in rows]


@torch.no_grad()
def _measure_step(setting: Setting, case: Case) -> StepRow:
    device = setting.device
    parts = Parts(setting, [case.task])
    conditioning = condition(setting, parts, case)
    ours = parts.transformer(case.variant)
    theirs = _reference(setting, case.variant)
    noise = generation.initial_latents(conditioning, SEED).to(device)
    times = make_times(setting.steps, 3.5)
    got = denoise(ours, conditioning, noise, times, _guidance())
    want = reference.denoise(theirs, conditioning, noise[0], times, _guidance())
    error = float((got[0] - want).abs().max())
    if not error < MAX_ERROR:
        raise RuntimeError(f"{case.task}: latents differ by {error}")

    time, end = times[0], times[1]
    is_free = torch.arange(noise.shape[1], device=device) >= conditioning.num_pinned
    at = time.to(device) * is_free

    def prefix() -> Any:
        return generation.start(ours, [conditioning], times, _guidance(), device)

    def reference_prefix() -> Any:
        return reference.fill_caches(theirs, conditioning)

    loop, caches = prefix(), reference_prefix()

    def step(loop: LanceLoop = loop) -> Tensor:
        return run_step(ours, loop, 0, noise)

    def reference_step() -> Tensor:
        velocities = [
            reference.velocity(theirs, noise[0], at, block, cache)[None]
            for cache, block in caches
        ]
        guided = blend_guidance(velocities[0], velocities[1], _guidance())
        return euler_step(noise, guided, time, end)

    medians = _in_turns(
        setting,
        {
            "prefix_ms": prefix,
            "reference_prefix_ms": reference_prefix,
            "step_ms": step,
            "reference_step_ms": reference_step,
            "step_without_reuse_ms": lambda: step(prefix()),
        },
    )
    return StepRow(
        task=case.task,
        tokens=noise.shape[1],
        prefix_tokens=loop.conditional[0].length,
        error=error,
        **medians,
    )


def _in_turns(
    setting: Setting, calls: Mapping[str, Callable[[], Any]]
) -> dict[str, float]:
    """Median milliseconds of each call; all take turns, so noise hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(setting.repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if setting.device.type == "cuda":
                torch.cuda.synchronize()
            if turn > 0:
                times[name].append(time.perf_counter() - start)
    return {
        name: round(1000 * statistics.median(seconds), 2)
        for name, seconds in times.items()
    }


def _reference(setting: Setting, variant: Variant) -> reference.ReferenceLance:
    folder = setting.files.folder(variant)
    values = read_json(folder / "llm_config.json")
    return reference.ReferenceLance.load(folder, values, setting.device)


# --- memory -------------------------------------------------------------------


def _measure_memory(setting: Setting, _: argparse.Namespace) -> dict[str, Any]:
    if setting.device.type != "cpu":
        print("not measured: this part reads the memory of CPU processes")
        return {}
    rows = [_in_child(_task_memory, setting, [case]) for case in setting.cases]
    rows.append(_in_child(_task_memory, setting, list(setting.cases)))
    rows += [
        _in_child(_decode_memory, setting, name, tiling)
        for name, tiling in (("decode whole", None), ("decode in tiles", Tiling()))
    ]
    print(f"{'what':16}{'weights MiB':>12}{'peak MiB':>12}")
    for row in rows:
        print(f"{row.what:16}{row.weights_mib:12}{row.peak_mib:12}")
    loss = _in_child(_tiling_loss, setting)
    print(f"a frame of 1024 x 1024 in tiles against whole: {loss}")
    return {"rows": [asdict(row) for row in rows], "tiling": loss}


@torch.no_grad()
def _task_memory(setting: Setting, cases: Sequence[Case]) -> MemoryRow:
    """Load what these tasks need and run one step of the last."""
    start = _reset_peak()
    parts = Parts(setting, [case.task for case in cases])
    for case in cases:
        parts.transformer(case.variant)
        if TASKS[case.task].is_edit:
            parts.vision(case.variant)
    conditioning = condition(setting, parts, cases[-1])
    latents = denoise(
        parts.transformer(cases[-1].variant),
        conditioning,
        generation.initial_latents(conditioning, SEED),
        make_times(1, 3.5),
        _guidance(),
    )
    vae.decode(parts.vae(), latents[0].view(*conditioning.target_grid, -1))
    what = cases[0].task if len(cases) == 1 else "all tasks"
    return MemoryRow(what, _mib(parts.nbytes()), _mib(_peak() - start))


@torch.no_grad()
def _decode_memory(setting: Setting, what: str, tiling: Tiling | None) -> MemoryRow:
    parts = Parts(setting, ["t2i"])
    wan = parts.vae()
    vae.decode(wan, _large_latents()[:, :8, :8])  # what libraries set up once
    start = _reset_peak()
    vae.decode(wan, _large_latents(), tiling)
    return MemoryRow(what, _mib(parts.nbytes()), _mib(_peak() - start))


@torch.no_grad()
def _tiling_loss(setting: Setting) -> dict[str, float]:
    """How close tiles come to whole frames, in dB: of pixels (peak), of latents."""
    wan = Parts(setting, ["i2v"]).vae()
    whole, tiled = (vae.decode(wan, _large_latents(), t) for t in (None, Tiling()))
    pixels = (tiled - whole).div(2).square().mean().item()
    latents, parts = (vae.encode(wan, whole, t).mean for t in (None, Tiling()))
    noise = ((parts - latents).square().mean() / latents.square().mean()).item()
    return {
        "decode_db": round(-10 * math.log10(pixels), 1),
        "encode_db": round(-10 * math.log10(noise), 1),
    }


def _large_latents() -> Tensor:
    """A frame of 1024 x 1024 pixels."""
    return torch.randn(1, 64, 64, 48, generator=torch.Generator().manual_seed(SEED))


def _in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run in a forked process, which starts small and gives its memory back."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        sender.send(function(*arguments))

    process = context.Process(target=run)
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError as error:
        raise RuntimeError(f"{function.__name__} failed; see above") from error
    finally:
        process.join()
    return result


def _reset_peak() -> int:
    """Forget the peak so far; returns the resident bytes now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def _mib(nbytes: int) -> float:
    return round(nbytes / MIB, 1)


# --- tasks --------------------------------------------------------------------


def _measure_tasks(setting: Setting, _: argparse.Namespace) -> list[dict[str, Any]]:
    family = find_family("lance")
    precision = ["--dit-precision", "fp32", "--vae-precision", "fp32"]
    precision += ["--image-encoder-precision", "fp32"]
    requests = [_request(setting, case) for case in setting.cases]
    rows = []
    with running.started_generator(
        family, str(setting.path), {}, precision
    ) as generator:
        for case, request in zip(setting.cases, requests, strict=True):
            running.run_request(generator, request)  # warms up
            found = running.describe(running.run_request(generator, request))
            rows.append(
                {
                    "task": case.task,
                    "seconds": found["seconds"],
                    "stages": found["seconds_per_stage"],
                }
            )
    print(f"{'task':11}{'seconds':>9}   stages of a millisecond and more")
    for row in rows:
        stages = ", ".join(f"{n} {s}" for n, s in row["stages"].items() if s >= 1e-3)
        print(f"{row['task']:11}{row['seconds']:9}   {stages}")
    return rows


def _request(setting: Setting, case: Case) -> dict[str, Any]:
    request = {
        **{"prompt": PROMPT, "task_type": case.task, "seed": SEED, **case.fields},
        "num_inference_steps": setting.steps,
        **running.output_fields(str(setting.sources / "out")),
    }
    if TASKS[case.task].source is not None:
        request[f"{TASKS[case.task].source}_path"] = source_file(setting, case)
    return request


# --- answers ------------------------------------------------------------------


def _measure_answers(setting: Setting, arguments: argparse.Namespace) -> dict[str, Any]:
    with _serving(setting, arguments) as url:
        spent = _compare_answer(setting, url)
        rows = chat_load.measure(
            chat_load.Load(
                base_url=f"{url}/v1",
                modes=arguments.modes,
                concurrency=arguments.concurrency,
                requests=arguments.requests,
                max_tokens=arguments.max_tokens,
                model="lance",
            )
        )
    chat_load.print_table(rows)
    print(f"transformers' modules, image, one client: {spent} tokens/s")
    return {
        "rows": [asdict(row) for row in rows],
        "growth": chat_load.growth(rows),
        "reference_tokens_per_second": spent,
    }


@contextmanager
def _serving(setting: Setting, arguments: argparse.Namespace) -> Iterator[str]:
    presets = {"image": {"resolution": "image_256res"}}
    presets["video"] = {"resolution": "video_192p"}
    flags = ["--dtype", "float32", "--log-level", "warning"]
    if setting.device.type == "cpu":
        flags += ["--max-total-tokens", "32768", "--mem-fraction-static", "0.3"]
    server = ChildServer(
        "lance",
        [
            *("-m", "sglang.launch_server", "--model-path", str(setting.path)),
            *("--mm-process-config", json.dumps(presets), *flags),
        ],
    )
    server.start()
    try:
        server.wait_until_healthy(START_SECONDS)
        yield server.url
    finally:
        server.stop()


@torch.no_grad()
def _compare_answer(setting: Setting, url: str) -> float:
    """Tokens a second of the reference, once its tokens are the server's."""
    question = "What is this?"
    image = setting.sources / "image.png"
    sampling = {"max_new_tokens": ANSWER_TOKENS, "temperature": 0, "ignore_eos": True}
    url_of_image = chat_load.data_url("image/png", image.read_bytes())
    body = {"text": question, "image_data": url_of_image, "sampling_params": sampling}
    answer = httpx.post(f"{url}/generate", json=body, timeout=600)
    answer.raise_for_status()
    got = answer.json()["output_ids"]

    files, variant = setting.files, setting.files.variants()[-1]
    features, grid = see(
        Parts(setting, ["t2i"]).vision(variant),
        [sources.read_image(str(image))],
        "image_256res",
        setting.device,
    )
    tokenizer = AutoTokenizer.from_pretrained(files.folder(variant))
    instruction = TASKS["x2t_image"].system_prompt
    tokens = tokenize_prompt(tokenizer, instruction, question)
    after = (*tokens.text, *tokens.suffix)
    segments = pack_answer(tokens.prefix, grid, after, tokens.special)
    model = _reference(setting, variant)
    head = model.language_model.lm_head
    head.weight.data = head.weight[: len(tokenizer)]
    start = time.perf_counter()
    want = reference.answer(model, segments, features, ANSWER_TOKENS)
    seconds = time.perf_counter() - start
    if got != want:
        raise RuntimeError(f"the server answers {got}, the reference {want}")
    return round(ANSWER_TOKENS / seconds, 2)


_MEASURES: dict[str, Callable[[Setting, argparse.Namespace], Any]] = {
    "memory": _measure_memory,
    "steps": _measure_steps,
    "tasks": _measure_tasks,
    "answers": _measure_answers,
}


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {os.cpu_count()} cores"


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
