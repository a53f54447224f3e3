# SPDX-License-Identifier: Apache-2.0
"""What does a denoising step of Qwen-Image cost here, in stock SGLang, in diffusers?

Question: does a batch cost less than the same pictures one after another, is a single
picture no slower than in stock SGLang and diffusers, and what do FP8 weights save?

Method: one process holds the same random checkpoint on all sides. Each side makes one
picture first (warm-up); pictures that disagree with ours fail the run. Then the sides
take turns. Time is that of the whole denoising loop, from the transformer's first call
to the end of its last, divided by steps; guidance runs two branches a step. "Batch 4"
is four pictures of one prompt: one batch here and in diffusers, one after another in
stock. On a CPU, stock runs with this package's hooks, without which it cannot run.
Memory is the bytes of the transformer's parameters.

Regime: at 256 x 256 a step is operator overhead, at 512 x 512 arithmetic.

    python benchmark/bench_qwen_image.py
    python benchmark/bench_qwen_image.py --tiny
"""

import argparse
import itertools
import json
import os
import platform
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sglang_ext_gen.models.qwen_image.tiny import MID_SIZE, TRANSFORMER, write_tiny

PROMPT, NEGATIVE = "a red circle on white", "blurry and dull"
SEED = 1
# Sides differ by the order of sums only; measured over 80 dB in float32.
MIN_PSNR_DB = 48.0
DISABLE = "SGLANG_EXT_GEN_DISABLE"

# From size and number of pictures to the pictures [n, 3, H, W].
Draw = Callable[[int, int], torch.Tensor]


@dataclass(frozen=True)
class Timing:
    """Milliseconds per step and picture."""

    side: str
    size: int
    batch: int
    median_ms: float
    p90_ms: float
    psnr_db: float


class LoopClock:
    """Seconds from the first call of a transformer to the end of its last."""

    def __init__(self, transformer: torch.nn.Module) -> None:
        self.start = self.end = 0.0
        transformer.register_forward_pre_hook(self._before)
        transformer.register_forward_hook(self._after)

    def _before(self, *_: Any) -> None:
        self._synchronize()
        self.start = self.start or time.perf_counter()

    def _after(self, *_: Any) -> None:
        self._synchronize()
        self.end = time.perf_counter()

    def take(self) -> float:
        """The seconds of the loop that just ran."""
        seconds, self.start = self.end - self.start, 0.0
        return seconds

    @staticmethod
    def _synchronize() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def main() -> int:
    """Run the benchmark; returns the exit code."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    start_runtime()
    with tempfile.TemporaryDirectory() as folder:
        # Stock goes by the directory's name.
        checkpoint = Path(folder) / "Qwen-Image"
        write_tiny(checkpoint, transformer=TRANSFORMER if args.tiny else MID_SIZE)
        sides = {
            "ours": sglang_side(checkpoint, args.steps),
            "stock": stock_side(checkpoint, args.steps),
            "diffusers": diffusers_side(checkpoint, args.steps),
        }
        timings = measure(sides, args)
        memory = {
            "bf16_mib": parameter_mib(checkpoint, weight_format="released"),
            "fp8_mib": parameter_mib(checkpoint, weight_format="fp8"),
        }
    print(table(timings, memory))
    print(json.dumps(record(args, timings, memory)))
    wrong = [timing for timing in timings if timing.psnr_db < MIN_PSNR_DB]
    for timing in wrong:
        print(f"wrong: {timing.side} draws another picture: {timing}", file=sys.stderr)
    return 1 if wrong else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="small, for CI")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    args.sizes = (128, 256) if args.tiny else (256, 512)
    if args.tiny:
        args.rounds = 2
    return args


def start_runtime() -> None:
    """SGLang's single-process runtime with our plugin's hooks."""
    from sglang.multimodal_gen.runtime.distributed.parallel_state import (
        maybe_init_distributed_environment_and_model_parallel,
    )
    from sglang.multimodal_gen.runtime.platforms.plugins import apply_plugin_hooks

    apply_plugin_hooks()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        os.environ["MASTER_PORT"] = str(probe.getsockname()[1])
    maybe_init_distributed_environment_and_model_parallel(tp_size=1, sp_size=1)


@contextmanager
def without_our_families():
    """Let stock SGLang answer for the checkpoint."""
    os.environ[DISABLE] = "qwen_image,qwen_image_edit"
    try:
        yield
    finally:
        del os.environ[DISABLE]


def load(checkpoint: Path, precision: str = "fp32", **options: Any) -> tuple[Any, Any]:
    """The pipeline that SGLang chooses for a checkpoint, and its arguments."""
    from sglang.multimodal_gen.registry import get_model_info
    from sglang.multimodal_gen.runtime.server_args import (
        ServerArgs,
        set_global_server_args,
    )

    server_args = ServerArgs.from_kwargs(
        model_path=str(checkpoint),
        backend="sglang",
        dit_precision=precision,
        vae_precision=precision,
        text_encoder_precisions=(precision,),
        **options,
    )
    set_global_server_args(server_args)
    info = get_model_info(str(checkpoint))
    assert info is not None, f"SGLang does not know {checkpoint}"
    return info.pipeline_cls(str(checkpoint), server_args), server_args


def sglang_side(checkpoint: Path, steps: int) -> tuple[Draw, LoopClock]:
    """SGLang with whatever pipeline it chooses now."""
    from sglang.multimodal_gen.configs.sample.sampling_params import SamplingParams
    from sglang.multimodal_gen.runtime.entrypoints.utils import (
        expand_request_outputs,
        prepare_request,
    )
    from sglang.multimodal_gen.runtime.server_args import set_global_server_args

    pipeline, server_args = load(checkpoint)
    sampling_params = type(SamplingParams.from_pretrained(str(checkpoint)))

    def draw(size: int, batch: int) -> torch.Tensor:
        set_global_server_args(server_args)
        fields = {
            **{"prompt": PROMPT, "negative_prompt": NEGATIVE, "true_cfg_scale": 4.0},
            **{"width": size, "height": size, "num_inference_steps": steps},
            **{"seed": SEED, "num_outputs_per_prompt": batch},
        }
        params = sampling_params(**fields)
        params._explicit_fields = set(fields)
        params._adjust(server_args)
        request = prepare_request(server_args=server_args, sampling_params=params)
        requests = expand_request_outputs(request)
        with torch.inference_mode():
            results = pipeline.forward_batch(requests, server_args)
        pictures = torch.cat([result.output.float() for result in results])
        return pictures[:, :, 0] if pictures.dim() == 5 else pictures

    return draw, LoopClock(pipeline.get_module("transformer"))


def stock_side(checkpoint: Path, steps: int) -> tuple[Draw, LoopClock]:
    """Stock SGLang's own pipeline."""
    with without_our_families():
        return sglang_side(checkpoint, steps)


def diffusers_side(checkpoint: Path, steps: int) -> tuple[Draw, LoopClock]:
    """The reference pipeline."""
    from diffusers import QwenImagePipeline

    pipeline = QwenImagePipeline.from_pretrained(checkpoint, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")

    def draw(size: int, batch: int) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(SEED + i) for i in range(batch)]
        result = pipeline(
            prompt=PROMPT,
            negative_prompt=NEGATIVE,
            true_cfg_scale=4.0,
            width=size,
            height=size,
            num_inference_steps=steps,
            num_images_per_prompt=batch,
            generator=generators,
            output_type="pt",
        )
        return result.images.float().cpu()

    return draw, LoopClock(pipeline.transformer)


def measure(
    sides: dict[str, tuple[Draw, LoopClock]], args: argparse.Namespace
) -> list[Timing]:
    """Warm up, compare the pictures, then take turns."""
    timings = []
    for size, batch in itertools.product(args.sizes, (1, 4)):
        pictures = {name: draw(size, batch).cpu() for name, (draw, _) in sides.items()}
        for _, clock in sides.values():
            clock.take()
        samples: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(args.rounds):
            order = list(sides) if turn % 2 == 0 else list(reversed(sides))
            for name in order:
                draw, clock = sides[name]
                draw(size, batch)
                samples[name].append(1000 * clock.take() / args.steps / batch)
        for name, values in samples.items():
            error = (pictures[name] - pictures["ours"]).square().mean()
            psnr = float(-10 * torch.log10(error)) if error > 0 else 999.0
            deciles = statistics.quantiles(values, n=10, method="inclusive")
            median = statistics.median(values)
            timings.append(Timing(name, size, batch, median, deciles[-1], psnr))
    return timings


def parameter_mib(checkpoint: Path, **options: Any) -> float:
    """MiB of the transformer's parameters, loaded in bf16 or FP8."""
    pipeline, _ = load(checkpoint, precision="bf16", **options)
    transformer = pipeline.get_module("transformer")
    return sum(parameter.nbytes for parameter in transformer.parameters()) / 2**20


def table(timings: list[Timing], memory: dict[str, float]) -> str:
    """The results for people."""
    lines = ["side       size  batch  ms/step/picture (median, p90)  dB to ours"]
    lines += [
        f"{t.side:<10}{t.size:>5}{t.batch:>7}{t.median_ms:>12.2f}{t.p90_ms:>12.2f}"
        f"{t.psnr_db:>20.1f}"
        for t in timings
    ]
    ratio = memory["fp8_mib"] / memory["bf16_mib"]
    lines.append(
        f"transformer: {memory['bf16_mib']:.1f} MiB in bf16, {memory['fp8_mib']:.1f} "
        f"MiB with FP8 weights ({ratio:.3f})"
    )
    return "\n".join(lines)


def record(
    args: argparse.Namespace, timings: list[Timing], memory: dict[str, float]
) -> dict[str, Any]:
    """Everything that a later run must be compared with."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "benchmark": "qwen_image",
        "hardware": {"cpu": platform.processor() or platform.machine(), "gpu": gpu},
        "versions": {n: version(n) for n in ("sglang", "torch", "diffusers")},
        "checkpoint": "tiny" if args.tiny else "mid-size",
        **{"steps": args.steps, "rounds": args.rounds, "threads": args.threads},
        **{"seed": SEED, "dtype": "float32"},
        "timings": [asdict(timing) for timing in timings],
        "memory": memory,
    }


if __name__ == "__main__":
    sys.exit(main())
