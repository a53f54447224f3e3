# SPDX-License-Identifier: Apache-2.0
"""Where does the time of a Ming picture go, is the transformer slower than diffusers?

Method, part 1 (``transformer``): one step with guidance, both branches, in one process:
ours and diffusers' ``ZImageTransformer2DModel`` with the same weights, inputs and
threads, after their outputs were compared, in turns. What ours does once a request
(caption, positions) is timed on its own. On a busy machine the fastest step and the
process's CPU time say more than the median. Compute-bound: almost all time is in matrix
products.

Part 2 (``pipeline``): a picture through the real ``DiffGenerator`` with a real thinker
as its child, a new prompt each time, so that nothing comes from a cache. The thinker's
own time is asked of it directly; the hop is what its client waits beyond that.

The checkpoint is the mid-size random one (about 100 million parameters in the
transformer); ``--model`` takes any other, ``--tiny`` the tiny one.
"""

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sglang_ext_gen.checkpoint.build import load_component
from sglang_ext_gen.models.ming_omni import tiny
from sglang_ext_gen.models.ming_omni.checkpoint import BRIDGE, TRANSFORMER

SEED = 0
PROMPT = 'A red fox on a bench in the snow, number {}, with a sign "OPEN"'
# Outputs may differ by the order of additions, not by more.
MAX_RELATIVE_ERROR = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
THINKER_FLAGS = ("--context-length", "2048", "--max-total-tokens", "16384")


def main() -> None:
    """Measure, print tables, then one JSON line."""
    arguments = _arguments()
    record: dict[str, Any] = {
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "device": arguments.device,
        "dtype": arguments.dtype,
        "threads": torch.get_num_threads(),
        "size": arguments.size,
        "steps": arguments.steps,
        "versions": {name: version(name) for name in ("torch", "sglang", "diffusers")},
        "commit": _commit(),
        "seed": SEED,
    }
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if model is None:
            model = Path(folder) / "ming"
            size = tiny.TINY if arguments.tiny else tiny.MID_SIZE
            tiny.write_tiny(model, SEED, size)
        if "pipeline" in arguments.parts:
            record["pipeline"] = measure_pipeline(model, Path(folder), arguments)
        if "transformer" in arguments.parts:
            record["transformer"] = measure_transformer(model, arguments)
    print(json.dumps(record))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure a Ming picture.")
    parser.add_argument("--model", type=Path, help="a checkpoint; default: mid-size")
    parser.add_argument("--tiny", action="store_true", help="seconds, not minutes")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=("transformer", "pipeline"),
        default=["transformer", "pipeline"],
    )
    parser.add_argument("--size", type=int, help="pixels a side")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu"
    )
    arguments = parser.parse_args()
    defaults = (64, 3, 2) if arguments.tiny else (256, 30, 5)
    for name, value in zip(("size", "steps", "repeats"), defaults, strict=True):
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.tiny:
        arguments.parts = ["transformer"]
    return arguments


# --- The transformer ----------------------------------------------------------------


@torch.no_grad()
def measure_transformer(model: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One step of ours and of diffusers', text to image and edit."""
    from diffusers.models.transformers.transformer_z_image import (
        ZImageTransformer2DModel,
    )
    from sglang.multimodal_gen.runtime.managers.forward_context import (
        set_forward_context,
    )

    _start_runtime(model)
    dtype, device = getattr(torch, arguments.dtype), torch.device(arguments.device)
    part = TRANSFORMER.at(model)
    ours = load_component(part, dtype=dtype, device=device)
    theirs: Any = ZImageTransformer2DModel.from_pretrained(
        str(model / "transformer"), torch_dtype=dtype
    )
    theirs = theirs.to(device).eval()
    side = arguments.size // 8
    generator = torch.Generator().manual_seed(SEED)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    channels = part.config.in_channels
    query_tokens = BRIDGE.at(model).config.num_query_tokens
    caption = noise(query_tokens, part.config.cap_feat_dim)
    captions = torch.stack([caption, torch.zeros_like(caption)])
    when = torch.tensor(0.1, device=device)
    rows: dict[str, dict[str, Any]] = {}
    print(f"{'case':<16}{'side':<12}{'median ms':>11}{'fastest ms':>12}{'CPU ms':>10}")
    for case in ("text to image", "edit"):
        latents = noise(1, channels, side, side)
        reference = noise(1, channels, side, side) if case == "edit" else None
        frames = [latents] if reference is None else [latents, reference]
        stacked = torch.stack(frames, dim=2)[0].to(dtype)  # [C, F, h, w]

        def run_theirs(stacked: torch.Tensor = stacked) -> torch.Tensor:
            output = theirs(
                [stacked, stacked],
                when.expand(2),
                [row.to(dtype) for row in captions],
                return_dict=False,
            )[0]
            return torch.stack([sample[:, 0] for sample in output]).float()

        with set_forward_context(0, attn_metadata=None, forward_batch=None):

            def prepare(reference: torch.Tensor | None = reference) -> Any:
                refined = ours.refine_caption(captions)
                rows_ = refined.rows.shape[1]
                return refined, ours.prepare_canvas(side, side, rows_, reference)

            prepared = prepare()

            def run_ours(
                latents: torch.Tensor = latents, prepared: Any = prepared
            ) -> torch.Tensor:
                return ours(latents, when, *prepared)

            error = _relative_error(run_ours(), run_theirs())
            if error > MAX_RELATIVE_ERROR[dtype]:
                raise SystemExit(f"{case}: outputs differ by {error:.1e}")
            # In turns, so that a busy machine hurts all alike.
            timings: dict[str, list[tuple[float, float]]] = {}
            for _ in range(arguments.repeats):
                for side_name, call in (
                    ("ours", run_ours),
                    ("diffusers", run_theirs),
                    ("once", prepare),
                ):
                    timings.setdefault(side_name, []).append(_time(call, device))
        rows[case] = {
            side_name: {
                "median_ms": round(statistics.median(wall for wall, _ in times), 2),
                "fastest_ms": round(min(wall for wall, _ in times), 2),
                "cpu_ms": round(statistics.median(cpu for _, cpu in times), 2),
            }
            for side_name, times in timings.items()
        }
        for side_name, row in rows[case].items():
            figures = (
                f"{row['median_ms']:>11}{row['fastest_ms']:>12}{row['cpu_ms']:>10}"
            )
            print(f"{case:<16}{side_name:<12}{figures}")
        rows[case]["relative_error"] = error
    return rows


def _start_runtime(model: Path) -> None:
    from sglang.multimodal_gen.runtime.distributed.parallel_state import (
        maybe_init_distributed_environment_and_model_parallel,
    )
    from sglang.multimodal_gen.runtime.platforms.plugins import apply_plugin_hooks
    from sglang.multimodal_gen.runtime.server_args import (
        ServerArgs,
        set_global_server_args,
    )

    apply_plugin_hooks()
    set_global_server_args(
        ServerArgs.from_kwargs(
            model_path=str(model), backend="sglang", thinker_url="http://127.0.0.1:9"
        )
    )
    from sglang_ext_gen.process.child_server import free_port

    maybe_init_distributed_environment_and_model_parallel(
        tp_size=1, sp_size=1, distributed_init_method=f"tcp://127.0.0.1:{free_port()}"
    )


def _relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


def _time(call: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Milliseconds on the clock, and of this process's CPU time."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (
        (time.perf_counter() - wall) * 1000,
        (time.process_time() - cpu) * 1000,
    )


# --- The whole picture --------------------------------------------------------------


def measure_pipeline(
    model: Path, folder: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Seconds of each part of a picture, medians over new prompts."""
    from sglang.multimodal_gen import DiffGenerator

    from sglang_ext_gen.cli.running import TIMING_VARIABLES, describe
    from sglang_ext_gen.models.ming_omni.thinker_client import OwnThinker
    from sglang_ext_gen.process.child_server import free_port

    for variable in TIMING_VARIABLES:
        os.environ.setdefault(variable, "1")
    precision = {"float32": "fp32", "bfloat16": "bf16"}[arguments.dtype]
    flags = ["--dtype", arguments.dtype, "--mem-fraction-static", "0.3"]
    thinker = OwnThinker(str(model), [*flags, *THINKER_FLAGS])
    thinker.wait_until_ready()
    [url] = thinker.addresses()
    generator = DiffGenerator.from_pretrained(
        model_path=str(model),
        backend="sglang",
        dit_precision=precision,
        vae_precision=precision,
        text_encoder_precisions=(precision,),
        thinker_url=url,
        sleep_on_idle=True,
        scheduler_port=free_port(),
        master_port=free_port(),
        output_path=str(folder),
    )
    runs = []
    with generator:
        for number in range(arguments.repeats + 1):
            start = time.perf_counter()
            result = generator.generate(
                sampling_params_kwargs={
                    "prompt": PROMPT.format(number),
                    "width": arguments.size,
                    "height": arguments.size,
                    "num_inference_steps": arguments.steps,
                    "seed": SEED,
                    "output_file_name": f"{number}.png",
                }
            )
            seconds = time.perf_counter() - start
            runs.append(_shares(describe([result]), seconds))
        hop = _measure_hop(url, arguments.repeats)
    thinker.stop()
    runs = runs[1:]  # the first one warms up
    medians = {
        name: round(statistics.median(run[name] for run in runs), 4) for name in runs[0]
    }
    medians |= hop | {"png_s": _measure_png(folder / "0.png", arguments.repeats)}
    medians["rest_share"] = round(medians["rest_s"] / medians["total_s"], 4)
    print("\n".join(f"{name:<28}{value:>10.4f}" for name, value in medians.items()))
    return medians


def _shares(description: dict[str, Any], seconds: float) -> dict[str, float]:
    stages = description["seconds_per_stage"]
    steps = description["seconds_per_step"]
    by_name = {
        word: sum(s for name, s in stages.items() if word in name.lower())
        for word in ("thinker", "conditioning", "denoising", "decoding")
    }
    known = by_name["thinker"] + sum(steps) + by_name["decoding"]
    return {
        "total_s": seconds,
        "thinker_and_hop_s": by_name["thinker"],
        "condition_encoder_s": by_name["conditioning"] - by_name["thinker"],
        "transformer_steps_s": sum(steps),
        "transformer_step_s": statistics.median(steps),
        "caption_and_loop_s": by_name["denoising"] - sum(steps),
        "vae_s": by_name["decoding"],
        "rest_s": seconds - known,
    }


def _measure_png(file: Path, repeats: int) -> float:
    """Seconds of writing a picture."""
    times = []
    with Image.open(file) as image:
        image.load()
        for _ in range(repeats):
            start = time.perf_counter()
            image.save(io.BytesIO(), "PNG")
            times.append(time.perf_counter() - start)
    return round(statistics.median(times), 4)


def _measure_hop(url: str, repeats: int) -> dict[str, float]:
    """Seconds of the thinker's own work, and of everything around it."""
    from sglang_ext_gen.models.ming_omni.thinker_client import (
        ThinkerRequest,
        post_json,
    )
    from sglang_ext_gen.models.ming_omni.thinker_protocol import QueryStates

    inside, around = [], []
    for number in range(repeats):
        body = ThinkerRequest(f"hop {number}").body()
        start = time.perf_counter()
        meta = post_json(f"{url}/generate", body, 300.0)["meta_info"]
        QueryStates.from_meta_info(meta)
        seconds = time.perf_counter() - start
        inside.append(meta["e2e_latency"])
        around.append(seconds - meta["e2e_latency"])
    return {
        "thinker_prefill_s": round(statistics.median(inside), 4),
        "hop_s": round(statistics.median(around), 4),
    }


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
