# SPDX-License-Identifier: Apache-2.0
"""What does a denoising step of Ideogram 4 cost here, in stock SGLang, in diffusers?

Question: is this package's pipeline at least as fast as the one in stock SGLang, what
does it hold in memory, and is half the cost saved where guidance is 1?

Method: every side (``ours``, ``stock``, and ``diffusers`` with ``--reference-python``)
is a process that holds the same random checkpoint: a tiny one (256 x 256) and one of
about 100 million parameters a transformer (512 x 512). Each first makes one picture per
preset with the same seed: this is the warm-up, and pictures that disagree with ours
fail the run. Then the sides take turns, in reverse order every other round. A step
lasts from one call of the conditional transformer to the next, the GPU's queue drained
before. Median, 90th percentile and fastest of all steps by the wall clock; median of
CPU time, which means more than the wall clock where other programs are busy.

Two presets, one guided and one with guidance 1: ours then runs one transformer a step,
the others run two. Stock is the same SGLang with no plugin loaded; diffusers gets bf16
weights, since it cannot read the FP8 ones.

Memory: the highest RSS of the side's process (its libraries included), the highest
CUDA allocation of a request, and the bytes of both transformers' parameters after the
runs, as a ratio of the same parameters in bf16.

Regime: with few rows (tiny) a step is operator overhead; at 512 x 512 it is bound by
arithmetic on a CPU, and stock also pays for dequantising each weight in each step.

    python benchmark/bench_denoise.py
    python benchmark/bench_denoise.py --reference-python /path/to/python
    python benchmark/bench_denoise.py --model /path/to/checkpoint --size 1024
    python benchmark/bench_denoise.py --tiny
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from denoise_protocol import Message, Side, SideError
from reporting import commit, decibels, hardware, tell

from sglang_ext_gen.models.ideogram4.request import PRESETS, plan_denoising

HERE = Path(__file__).parent
PROMPT = (
    '{"high_level_description":"A red circle on the sand",'
    '"compositional_deconstruction":{"background":"flat beige",'
    '"elements":[{"type":"obj","desc":"the circle"}]}}'
)
SEED = 42
# Lowest PSNR with our picture that rounding explains; golden.json's thresholds.
MIN_PSNR_DB = {"bf16": 28.0, "fp32": 48.0}
MAX_DIT_RATIO = 0.55  # of bf16, with FP8 weights resident


@dataclass(frozen=True)
class Case:
    """A checkpoint and what is asked of it.

    Args:
        name: For the table.
        size: Height and width of the picture in pixels.
        presets: To run; a guided one and one with guidance 1 unless told otherwise.
        rounds: Timed pictures per side, preset and number of threads.
    """

    name: str
    size: int
    presets: tuple[str, ...]
    rounds: int


LONG, SHORT = ("V4_DEFAULT_20", "V4_FAST_20"), ("V4_TURBO_12", "V4_INSTANT_8")
CASES = (Case("tiny", 256, LONG, rounds=3), Case("mid-size", 512, SHORT, rounds=2))
CI_CASES = (Case("tiny", 256, SHORT, rounds=1),)


@dataclass(frozen=True)
class Timing:
    """Steps of one side in one setting, in milliseconds.

    ``cpu_ms`` is the median of CPU time in all threads; threads that wait for each
    other count.
    """

    case: str
    size: int
    preset: str
    threads: int
    side: str
    steps: int
    median_ms: float
    p90_ms: float
    fastest_ms: float
    cpu_ms: float
    psnr_db: float | None


@dataclass(frozen=True)
class Memory:
    """What one side holds. MiB."""

    case: str
    side: str
    peak_rss_mib: float
    rss_before_loading_mib: float
    peak_cuda_mib: float
    dit_mib: float
    dit_ratio_of_bf16: float


def main() -> int:
    args = parse_arguments()
    timings: list[Timing] = []
    memories: list[Memory] = []
    try:
        for case in args.cases:
            with tempfile.TemporaryDirectory() as folder:
                measure(case, args, Path(folder), timings, memories)
    except SideError as error:
        sys.exit(str(error))
    if not args.json:
        print(table(timings, memories, has_reference=bool(args.reference_python)))
    print(json.dumps(record(args, timings, memories)))
    problems = find_problems(args, timings, memories)
    for problem in problems:
        print(f"wrong: {problem}", file=sys.stderr)
    return 1 if problems else 0


def measure(
    case: Case,
    args: argparse.Namespace,
    folder: Path,
    timings: list[Timing],
    memories: list[Memory],
) -> None:
    """Run one case on all sides and add what was found to the two lists."""
    model = make_checkpoint(case, args.model, folder)
    with ExitStack() as stack:
        sides = start_sides(model, args, folder, stack)
        loaded = {side.name: side.wait_until_loaded() for side in sides}
        tell(f"{case.name}: loaded by {', '.join(loaded)}; compares pictures")
        psnr = compare_pictures(case, sides, max(args.threads), folder)
        steps: dict[tuple[int, str, str], list[Message]] = {}
        last: dict[str, Message] = {}
        rounds = args.rounds or case.rounds
        for round_ in range(rounds):
            tell(f"{case.name}: round {round_ + 1} of {rounds}")
            for threads, preset in itertools.product(args.threads, case.presets):
                for side in sides[:: -1 if round_ % 2 else 1]:
                    answer = run(side, case, preset, threads, folder)
                    steps.setdefault((threads, preset, side.name), []).append(answer)
                    last[side.name] = answer
    timings += [timing_of(case, *key, found, psnr) for key, found in steps.items()]
    memories += [
        memory_of(case, name, loaded[name], answer) for name, answer in last.items()
    ]


def make_checkpoint(case: Case, given: Path | None, folder: Path) -> Path:
    """A checkpoint in a folder whose name stock SGLang recognises."""
    path = folder / "ideogram-4-fp8-benchmark"
    if given is not None:
        path.symlink_to(given.resolve())
        return path
    # Imported here: it needs PyTorch, which the measuring process does not.
    from sglang_ext_gen.models.ideogram4.tiny import MID_SIZE, TINY, write_tiny

    dimensions = {"tiny": TINY, "mid-size": MID_SIZE}[case.name]
    write_tiny(path, seed=SEED, dimensions=dimensions)
    return path


def start_sides(
    model: Path, args: argparse.Namespace, folder: Path, stack: ExitStack
) -> list[Side]:
    """Start every side; ours comes first."""
    common = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(max(args.threads) or os.cpu_count()),
    }
    sglang = [sys.executable, str(HERE / "denoise_sglang.py")]
    options = {
        **{"model": str(model), "precision": args.precision, "load_options": {}},
        "transformers": ["transformer", "unconditional_transformer"],
    }
    ours = {**options, "load_options": {"fp8_mode": args.fp8_mode}}
    no_plugins = {"SGLANG_PLUGINS": ","}  # an empty string would mean all of them
    sides = [
        Side("ours", sglang, ours, common, folder / "ours.log"),
        Side("stock", sglang, options, common | no_plugins, folder / "stock.log"),
    ]
    if args.reference_python:
        command = [args.reference_python, str(HERE / "denoise_diffusers.py")]
        log = folder / "diffusers.log"
        sides.append(Side("diffusers", command, options, common, log))
    for side in sides:
        stack.callback(side.close)
    return sides


def compare_pictures(
    case: Case, sides: list[Side], threads: int, folder: Path
) -> dict[tuple[str, str], float]:
    """Warm up, and compare each side's pictures with ours: PSNR in dB."""
    psnr = {}
    for preset in case.presets:
        for side in sides:
            run(side, case, preset, threads, folder)
        ours, *others = (picture(side, preset, folder) for side in sides)
        for side, other in zip(sides[1:], others, strict=True):
            psnr[preset, side.name] = decibels(ours, other)
    return psnr


def run(side: Side, case: Case, preset: str, threads: int, folder: Path) -> Message:
    """One picture on one side."""
    request = {
        "fields": {
            **{"prompt": PROMPT, "width": case.size, "height": case.size},
            **{"seed": SEED, "preset": preset},
        },
        "plan": asdict(plan_denoising({"preset": preset})),
        "threads": threads,
        "picture": str(picture(side, preset, folder)),
    }
    return side.ask(request)


def picture(side: Side, preset: str, folder: Path) -> Path:
    return folder / f"{side.name}-{preset}.png"


def timing_of(
    case: Case,
    threads: int,
    preset: str,
    name: str,
    answers: list[Message],
    psnr: dict[tuple[str, str], float],
) -> Timing:
    """Summary of all steps of a side in one setting."""
    wall = np.concatenate([answer["step_ms"] for answer in answers])
    cpu = np.concatenate([answer["step_cpu_ms"] for answer in answers])
    return Timing(
        case=case.name,
        size=case.size,
        preset=preset,
        threads=threads,
        side=name,
        steps=wall.size,
        median_ms=round(float(np.median(wall)), 3),
        p90_ms=round(float(np.percentile(wall, 90)), 3),
        fastest_ms=round(float(wall.min()), 3),
        cpu_ms=round(float(np.median(cpu)), 3),
        psnr_db=psnr.get((preset, name)),
    )


def memory_of(case: Case, name: str, loaded: Message, answer: Message) -> Memory:
    """Summary of a side's last answer."""
    return Memory(
        case=case.name,
        side=name,
        peak_rss_mib=round(answer["peak_rss_mib"]),
        rss_before_loading_mib=round(loaded["rss_before_loading_mib"]),
        peak_cuda_mib=round(answer["peak_cuda_mib"]),
        dit_mib=round(answer["dit_bytes"] / 2**20, 1),
        dit_ratio_of_bf16=round(answer["dit_bytes"] / answer["dit_bf16_bytes"], 3),
    )


def find_problems(
    args: argparse.Namespace, timings: list[Timing], memories: list[Memory]
) -> list[str]:
    """What makes the figures worthless, or breaks what the project promises."""
    limit = MIN_PSNR_DB[args.precision]
    problems = [
        f"{timing.case}, {timing.preset}: {timing.side}'s picture is "
        f"{timing.psnr_db} dB from ours, expected {limit} dB or more"
        for timing in timings
        if timing.psnr_db is not None and timing.psnr_db < limit
    ]
    problems += [
        f"{memory.case}: our transformers hold {memory.dit_ratio_of_bf16} of their "
        f"bytes in bf16, expected {MAX_DIT_RATIO} or less"
        for memory in memories
        if args.fp8_mode == "resident"
        and memory.side == "ours"
        and memory.dit_ratio_of_bf16 > MAX_DIT_RATIO
    ]
    return problems


def table(timings: list[Timing], memories: list[Memory], *, has_reference: bool) -> str:
    """Both lists for people; ratios are the side's time over ours."""
    ours = {
        (timing.case, timing.threads, timing.preset): timing
        for timing in timings
        if timing.side == "ours"
    }
    lines = [
        "| checkpoint | threads | preset | side | steps | median ms | p90 ms "
        "| fastest ms | CPU ms | median / ours | CPU / ours | PSNR with ours, dB |",
        f"|{'---|' * 12}",
    ]
    for timing in timings:
        base = ours[timing.case, timing.threads, timing.preset]
        lines.append(
            f"| {timing.case} {timing.size}x{timing.size} | {timing.threads or 'all'} "
            f"| {timing.preset} | {timing.side} | {timing.steps} "
            f"| {timing.median_ms:.2f} | {timing.p90_ms:.2f} "
            f"| {timing.fastest_ms:.2f} | {timing.cpu_ms:.2f} "
            f"| {timing.median_ms / base.median_ms:.2f} "
            f"| {timing.cpu_ms / base.cpu_ms:.2f} "
            f"| {'' if timing.psnr_db is None else timing.psnr_db} |"
        )
    lines += [
        "",
        "| checkpoint | side | peak RSS MiB | before loading | peak CUDA MiB "
        "| transformers MiB | of bf16 |",
        f"|{'---|' * 7}",
    ]
    for memory in memories:
        lines.append(
            f"| {memory.case} | {memory.side} | {memory.peak_rss_mib} "
            f"| {memory.rss_before_loading_mib} "
            f"| {memory.peak_cuda_mib or 'not measured'} | {memory.dit_mib} "
            f"| {memory.dit_ratio_of_bf16} |"
        )
    if not has_reference:
        lines += ["", "diffusers: not measured (no --reference-python)"]
    return "\n".join(lines)


def record(
    args: argparse.Namespace, timings: list[Timing], memories: list[Memory]
) -> Message:
    """Everything that was found and where, ready for JSON."""
    return {
        "benchmark": "denoise",
        "hardware": hardware(),
        "commit": commit(),
        "versions": {
            name: version(name) for name in ("sglang", "torch", "sglang-ext-gen")
        },
        "precision": args.precision,
        "fp8_mode": args.fp8_mode,
        "seed": SEED,
        "timings": [asdict(timing) for timing in timings],
        "memories": [asdict(memory) for memory in memories],
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tiny", action="store_true", help="one small case with few steps"
    )
    parser.add_argument(
        "--only", choices=[case.name for case in CASES], help="one of the full cases"
    )
    parser.add_argument("--model", type=Path, help="a checkpoint in place of ours")
    parser.add_argument("--size", type=int, default=1024, help="with --model")
    parser.add_argument(
        "--presets", choices=PRESETS, nargs="+", help="in place of the case's own"
    )
    parser.add_argument("--rounds", type=int, help="timed pictures per setting")
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        help="CPU threads to try; default 1 and all cores, on a GPU as they are",
    )
    parser.add_argument(
        "--precision",
        choices=MIN_PSNR_DB,
        default="bf16",
        help="of all sides (default: %(default)s)",
    )
    parser.add_argument(
        "--fp8-mode",
        choices=("resident", "expanded"),
        default="resident",
        help="what ours does with FP8 weights (default: %(default)s)",
    )
    parser.add_argument(
        "--reference-python", help="interpreter that has diffusers >= 0.40"
    )
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    args = parser.parse_args()
    args.cases = CI_CASES if args.tiny else CASES
    if args.only:
        args.cases = [case for case in CASES if case.name == args.only]
    if args.model:
        args.cases = [Case(args.model.name, args.size, LONG, rounds=3)]
    if args.presets:
        presets = tuple(args.presets)
        args.cases = [replace(case, presets=presets) for case in args.cases]
    if args.threads is None:
        args.threads = default_threads(args.tiny)
    return args


def default_threads(tiny: bool) -> list[int]:
    import torch

    if torch.cuda.is_available():
        return [0]
    return [1] if tiny else sorted({1, os.cpu_count() or 1})


if __name__ == "__main__":
    sys.exit(main())
