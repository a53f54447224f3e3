# SPDX-License-Identifier: Apache-2.0
"""What does a denoising step of Qwen-Image cost here, in stock SGLang, in diffusers?

Question: is a batch of four cheaper than four pictures one after the other, which is
what stock does; is nothing lost for one picture; what do FP8 weights save in memory
and cost in time?

Method: every side (``ours``, ``ours fp8``, ``stock``, ``diffusers``) is a process that
holds the same random checkpoint, its transformer in shards. Each first makes the
pictures of every setting: this is the warm-up, and a picture that disagrees with ours
fails the run. Then the sides take turns, in reverse order every other round. A step is
the time from the first call of the transformer to the end of the last, divided by the
steps, the GPU's queue drained: the guided branches and all pictures of the batch are
in it, one after the other or together. Median and fastest by the wall clock; median of
CPU time, which means more than the wall clock where other programs are busy.

Stock is the same SGLang with our family switched off. On a CPU this package's two
kernels stay in force for it (``platforms/cpu_kernels.py``), without which it fails at
its first step; on a GPU no plugin is loaded.

Memory: resident memory before, at the highest point and after loading the pipeline
(imports are done before), and the bytes of the transformer's parameters as a ratio of
the same parameters in bf16. With FP8 the peak may be no more than two shards above the
end.

Regime: bound by arithmetic on a CPU but for the tiny checkpoint, which is bound by
operator overhead; on a CPU an FP8 linear dequantises its weight in every call.

    python benchmark/bench_qwen_image.py
    python benchmark/bench_qwen_image.py --model /path/to/Qwen-Image --sizes 512 1024
    python benchmark/bench_qwen_image.py --tiny
"""

import argparse
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

HERE = Path(__file__).parent
SEED = 42
PROMPT = "A red circle on the sand, seen from above, in the evening"
NEGATIVE_PROMPT = "blurry, dull"
# Lowest PSNR with our picture that rounding explains. The random weights lose about
# 32 dB as FP8, which guidance amplifies.
MIN_PSNR_DB = {"fp32": 48.0, "bf16": 28.0}
MIN_FP8_PSNR_DB = 20.0
# Relative to the transformer's bytes in bf16.
SHARD = 1 / 8


@dataclass(frozen=True)
class Case:
    """A checkpoint and what is asked of it.

    Args:
        name: For the table.
        sizes: Heights and widths of the pictures in pixels.
        batches: Pictures a request.
        steps: Denoising steps.
        rounds: Timed requests per side and setting.
        max_fp8_ratio: Most bytes of FP8 weights, of bf16. In the tiny checkpoint
            scales, biases and norms weigh more.
    """

    name: str
    sizes: tuple[int, ...]
    batches: tuple[int, ...] = (1, 4)
    steps: int = 3
    rounds: int = 3
    max_fp8_ratio: float = 0.55


FULL, TINY = (
    Case("mid-size", (256, 512)),
    Case("tiny", (128, 256), steps=2, rounds=1, max_fp8_ratio=0.6),
)


@dataclass(frozen=True)
class Timing:
    """One side in one setting: milliseconds a step, for the whole batch."""

    size: int
    batch: int
    side: str
    median_ms: float
    fastest_ms: float
    cpu_ms: float
    transformer_calls: int
    psnr_db: float | None


@dataclass(frozen=True)
class Memory:
    """What one side holds. MiB."""

    side: str
    before_loading_mib: float
    peak_loading_mib: float
    after_loading_mib: float
    shard_mib: float
    peak_rss_mib: float
    peak_cuda_mib: float
    dit_mib: float
    dit_ratio_of_bf16: float


def main() -> int:
    args = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        try:
            timings, memories = measure(args, Path(folder))
        except SideError as error:
            sys.exit(str(error))
    if not args.json:
        print(table(timings, memories))
    print(json.dumps(record(args, timings, memories)))
    problems = find_problems(args, timings, memories)
    for problem in problems:
        print(f"wrong: {problem}", file=sys.stderr)
    return 1 if problems else 0


def measure(
    args: argparse.Namespace, folder: Path
) -> tuple[list[Timing], list[Memory]]:
    """Run the case on all sides."""
    case: Case = args.case
    model = make_checkpoint(args, folder)
    settings = [(size, batch) for size in case.sizes for batch in case.batches]
    with ExitStack() as stack:
        sides = start_sides(model, args, folder, stack)
        loaded = {side.name: side.wait_until_loaded() for side in sides}
        tell(f"loaded by {', '.join(loaded)}; compares pictures")
        psnr = {}
        for setting in settings:
            ours, *others = (
                ask(side, case, setting, args.threads, folder)["pictures"]
                for side in sides
            )
            for side, pictures in zip(sides[1:], others, strict=True):
                psnr[(*setting, side.name)] = min(
                    decibels(Path(first), Path(second))
                    for first, second in zip(ours, pictures, strict=True)
                )
        answers: dict[tuple[int, int, str], list[Message]] = {}
        for round_ in range(case.rounds):
            tell(f"round {round_ + 1} of {case.rounds}")
            for setting in settings:
                for side in sides[:: -1 if round_ % 2 else 1]:
                    answer = ask(side, case, setting, args.threads, folder)
                    answers.setdefault((*setting, side.name), []).append(answer)
    shard_mib = max(f.stat().st_size for f in transformer_files(model)) / 2**20
    return (
        [timing_of(case, *key, found, psnr) for key, found in answers.items()],
        [memory_of(side.name, loaded[side.name], answers, shard_mib) for side in sides],
    )


def make_checkpoint(args: argparse.Namespace, folder: Path) -> Path:
    """A checkpoint in a folder whose name stock SGLang recognises."""
    path = folder / "Qwen-Image"
    if args.model is not None:
        path.symlink_to(args.model.resolve())
        return path
    # Imported here: they need PyTorch, which the measuring process does not.
    from sglang_ext_gen.checkpoint.tiny import split_into_shards
    from sglang_ext_gen.models.qwen_image import checkpoint
    from sglang_ext_gen.models.qwen_image.tiny import MID_SIZE, TRANSFORMER, write_tiny

    config = TRANSFORMER if args.tiny else MID_SIZE
    write_tiny(path, seed=SEED, transformer=config)
    weights = checkpoint.TRANSFORMER.at(path).file
    split_into_shards(weights, int(SHARD * weights.stat().st_size))
    return path


def transformer_files(model: Path) -> list[Path]:
    return sorted((model / "transformer").glob("*.safetensors"))


def start_sides(
    model: Path, args: argparse.Namespace, folder: Path, stack: ExitStack
) -> list[Side]:
    """Start every side; ours comes first."""
    import torch

    common = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(args.threads or os.cpu_count()),
    }
    off = {"SGLANG_EXT_GEN_DISABLE": "qwen_image,qwen_image_edit"}
    if torch.cuda.is_available():
        off = {"SGLANG_PLUGINS": ","}  # an empty string would mean all of them
    options = {
        **{"model": str(model), "precision": args.precision, "load_options": {}},
        "transformers": ["transformer"],
    }
    fp8 = {**options, "load_options": {"weight_format": "fp8"}}
    sglang, diffusers = "denoise_sglang.py", "denoise_qwen_diffusers.py"
    rows = (
        ("ours", sglang, options, {}),
        ("ours fp8", sglang, fp8, {}),
        ("stock", sglang, options, off),
        ("diffusers", diffusers, options, {}),
    )
    sides = [
        Side(
            name,
            [sys.executable, str(HERE / script)],
            arguments,
            common | environment,
            folder / f"{name}.log",
        )
        for name, script, arguments, environment in rows
    ]
    for side in sides:
        stack.callback(side.close)
    return sides


def ask(
    side: Side, case: Case, setting: tuple[int, int], threads: int, folder: Path
) -> Message:
    """One request to one side."""
    size, batch = setting
    name = f"{side.name.replace(' ', '-')}-{size}-{batch}.png"
    return side.ask(
        {
            "fields": {
                **{"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT},
                **{"true_cfg_scale": 4.0, "width": size, "height": size},
                **{"num_inference_steps": case.steps, "seed": SEED},
                "num_outputs_per_prompt": batch,
            },
            "threads": threads,
            "picture": str(folder / name),
        }
    )


def timing_of(
    case: Case,
    size: int,
    batch: int,
    name: str,
    answers: list[Message],
    psnr: dict[tuple[int, int, str], float],
) -> Timing:
    """Summary of a side in one setting."""
    wall = np.array([answer["loop_ms"] for answer in answers]) / case.steps
    cpu = np.array([answer["loop_cpu_ms"] for answer in answers]) / case.steps
    return Timing(
        size=size,
        batch=batch,
        side=name,
        median_ms=round(float(np.median(wall)), 2),
        fastest_ms=round(float(wall.min()), 2),
        cpu_ms=round(float(np.median(cpu)), 2),
        transformer_calls=answers[-1]["calls"],
        psnr_db=psnr.get((size, batch, name)),
    )


def memory_of(
    name: str,
    loaded: Message,
    answers: dict[tuple[int, int, str], list[Message]],
    shard_mib: float,
) -> Memory:
    """Summary of what a side holds."""
    own = [found[-1] for (_, _, side), found in answers.items() if side == name]
    loading = loaded["loading"]
    return Memory(
        side=name,
        before_loading_mib=round(loading["before_mib"], 1),
        peak_loading_mib=round(loading["peak_mib"], 1),
        after_loading_mib=round(loading["after_mib"], 1),
        shard_mib=round(shard_mib, 1),
        peak_rss_mib=round(max(answer["peak_rss_mib"] for answer in own)),
        peak_cuda_mib=round(max(answer["peak_cuda_mib"] for answer in own)),
        dit_mib=round(own[0]["dit_bytes"] / 2**20, 1),
        dit_ratio_of_bf16=round(own[0]["dit_bytes"] / own[0]["dit_bf16_bytes"], 3),
    )


def find_problems(
    args: argparse.Namespace, timings: list[Timing], memories: list[Memory]
) -> list[str]:
    """What makes the figures worthless, or breaks what the project promises."""
    problems = []
    for timing in timings:
        is_fp8 = timing.side == "ours fp8"
        limit = MIN_FP8_PSNR_DB if is_fp8 else MIN_PSNR_DB[args.precision]
        if timing.psnr_db is not None and timing.psnr_db < limit:
            problems.append(
                f"{timing.size}, batch {timing.batch}: {timing.side}'s picture is "
                f"{timing.psnr_db} dB from ours, expected {limit} dB or more"
            )
    (fp8,) = (memory for memory in memories if memory.side == "ours fp8")
    if fp8.dit_ratio_of_bf16 > args.case.max_fp8_ratio:
        problems.append(
            f"FP8 weights hold {fp8.dit_ratio_of_bf16} of their bytes in bf16, "
            f"expected {args.case.max_fp8_ratio} or less"
        )
    allowed = fp8.after_loading_mib + 2 * fp8.shard_mib
    # The tiny checkpoint is smaller than the runtime's own noise.
    if not args.tiny and fp8.peak_loading_mib > allowed:
        problems.append(
            f"loading FP8 took {fp8.peak_loading_mib} MiB, expected {allowed:.1f} or "
            "less: the end and two shards"
        )
    return problems


def table(timings: list[Timing], memories: list[Memory]) -> str:
    """Both lists for people; ratios are the side's time over ours."""
    ours = {(t.size, t.batch): t for t in timings if t.side == "ours"}
    lines = [
        "| size | batch | side | median ms | fastest ms | CPU ms | calls "
        "| median / ours | CPU / ours | PSNR with ours, dB |",
        f"|{'---|' * 10}",
    ]
    for timing in timings:
        base = ours[timing.size, timing.batch]
        lines.append(
            f"| {timing.size}x{timing.size} | {timing.batch} | {timing.side} "
            f"| {timing.median_ms} | {timing.fastest_ms} | {timing.cpu_ms} "
            f"| {timing.transformer_calls} "
            f"| {timing.median_ms / base.median_ms:.2f} "
            f"| {timing.cpu_ms / base.cpu_ms:.2f} "
            f"| {'' if timing.psnr_db is None else timing.psnr_db} |"
        )
    lines += [
        "",
        "| side | before loading MiB | peak | after | largest shard | peak RSS "
        "| peak CUDA | transformer MiB | of bf16 |",
        f"|{'---|' * 9}",
    ]
    for memory in memories:
        lines.append(
            f"| {memory.side} | {memory.before_loading_mib} "
            f"| {memory.peak_loading_mib} | {memory.after_loading_mib} "
            f"| {memory.shard_mib} | {memory.peak_rss_mib} "
            f"| {memory.peak_cuda_mib or 'not measured'} | {memory.dit_mib} "
            f"| {memory.dit_ratio_of_bf16} |"
        )
    return "\n".join(lines)


def record(
    args: argparse.Namespace, timings: list[Timing], memories: list[Memory]
) -> Message:
    """Everything that was found and where, ready for JSON."""
    names = ("sglang", "torch", "diffusers", "sglang-ext-gen")
    return {
        **{"benchmark": "qwen_image", "hardware": hardware(), "commit": commit()},
        "versions": {name: version(name) for name in names},
        **{"case": asdict(args.case), "precision": args.precision},
        **{"threads": args.threads, "seed": SEED},
        "timings": [asdict(timing) for timing in timings],
        "memories": [asdict(memory) for memory in memories],
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tiny", action="store_true", help="a small checkpoint and few steps"
    )
    parser.add_argument("--model", type=Path, help="a checkpoint in place of ours")
    parser.add_argument("--sizes", type=int, nargs="+", help="in place of the case's")
    parser.add_argument("--rounds", type=int, help="timed requests per setting")
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads, 0 for all (default: 1)"
    )
    parser.add_argument(
        "--precision",
        choices=MIN_PSNR_DB,
        help="of all sides (default: fp32 on a CPU, bf16 on a GPU)",
    )
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    args = parser.parse_args()
    args.case = TINY if args.tiny else FULL
    changes = {"sizes": tuple(args.sizes or ()), "rounds": args.rounds}
    if args.model:
        changes["name"] = args.model.name
    given = {name: value for name, value in changes.items() if value}
    if given:
        args.case = replace(args.case, **given)
    if args.precision is None:
        args.precision = default_precision()
    return args


def default_precision() -> str:
    import torch

    return "bf16" if torch.cuda.is_available() else "fp32"


if __name__ == "__main__":
    sys.exit(main())
