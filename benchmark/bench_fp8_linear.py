# SPDX-License-Identifier: Apache-2.0
"""How fast is a linear whose FP8 weights are dequantised inside the GEMM?

Question: what does keeping weights in FP8 cost or gain, against bf16 weights
(``plain``: ``F.linear``, twice the memory) and against dequantising the whole weight
for each call (``dequant``: what an FP8 weight costs without the kernel)?

Method: the linears of Ideogram 4's transformer, with 1 row (time embedding, adaLN),
256 (prompt) and 1024 to 16384 (image tokens of 512 to 2048 pixels square). The result
is checked against float64 before anything is timed; below 50 dB the run fails. Each
candidate is warmed up (which tunes the kernel), then timed call by call between
device events, with its operands out of the cache; median and 90th percentile.

Regime: few rows are bound by reading the weights (FP8 should be up to twice as fast
as bf16), many rows by arithmetic (FP8 can only tie: its products are bf16 products).
``bound`` is the roofline of the FP8 candidate: the larger of bytes moved / peak
bandwidth and operations / peak rate, each operand moved once.

``--tiny`` runs small shapes on any machine, so that this script does not rot. On a CPU
the torch reference is timed in place of the kernel, in float32, and no roofline is
known.

    python benchmark/bench_fp8_linear.py
    python benchmark/bench_fp8_linear.py --tiny
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang_ext_gen.kernels.fp8_gemm import (
    fp8_linear,
    fp8_linear_reference,
    has_fp8_kernel,
    quantize_rowwise,
)

MIN_SNR_DB = 50.0  # bf16 results rounded once reach about 56
SEED = 0
# Peak bandwidth in TB/s and dense bf16 rate in TFLOP/s, from NVIDIA's data sheets.
PEAKS = {
    "H200": (4.8, 989.0),
    "H100 PCIe": (2.0, 756.0),
    "H100": (3.35, 989.0),
    "L40S": (0.864, 362.0),
    "L4": (0.3, 121.0),
    "RTX 4090": (1.008, 165.2),
}


class Shape(NamedTuple):
    """A linear of the model: [out_features, in_features], called with ``rows``."""

    name: str
    out_features: int
    in_features: int
    bias: bool
    rows: tuple[int, ...]


TOKENS = (256, 1024, 4096, 16384)
SHAPES = (
    Shape("t_embedding", 4608, 4608, True, (1,)),
    Shape("adaln_modulation", 18432, 512, True, (1,)),
    Shape("llm_cond_proj", 4608, 53248, True, (256,)),
    Shape("qkv", 13824, 4608, False, (1, *TOKENS)),
    Shape("o", 4608, 4608, False, TOKENS),
    Shape("w1/w3", 12288, 4608, False, TOKENS),
    Shape("w2", 4608, 12288, False, (1, *TOKENS)),
)
TINY_SHAPES = (
    Shape("adaln_modulation", 256, 32, True, (1,)),
    Shape("qkv", 192, 64, False, (1, 33, 256)),
)


@dataclass(frozen=True)
class Row:
    """Measurements of one shape, in microseconds."""

    name: str
    m: int
    n: int
    k: int
    snr_db: float
    fp8_us: float
    fp8_p90_us: float
    plain_us: float
    plain_p90_us: float
    dequant_us: float
    dequant_p90_us: float
    bound_us: float | None
    bound_by: str | None


class Peaks(NamedTuple):
    """What the device can do at most: bytes and operations per second."""

    bandwidth: float
    flops: float


def main() -> int:
    args = parse_arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not args.tiny:
        print("No CUDA device: the kernel cannot be timed; use --tiny", file=sys.stderr)
        return 2
    uses_kernel = has_fp8_kernel(torch.device(device.type, 0), torch.bfloat16)
    peaks = device_peaks(device, args.bandwidth_tbs, args.bf16_tflops)
    candidate = "Triton kernel" if uses_kernel else "torch reference"
    print(f"{device_name(device)}: fp8 = {candidate}; seed {SEED}")
    if not uses_kernel:
        print("The Triton kernel is not timed here (CUDA capability 8.9 or newer).")
    rows = []
    for shape in TINY_SHAPES if args.tiny else SHAPES:
        for m in shape.rows:
            row = measure(shape, m, device, peaks, args.repeats)
            rows.append(row)
            print_row(row, is_first=len(rows) == 1)
    print(json.dumps(summary(rows, device, candidate, peaks, args.repeats)))
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time the FP8 linear.")
    parser.add_argument("--tiny", action="store_true", help="small shapes, any device")
    parser.add_argument("--repeats", type=int, default=50, help="timed calls")
    peaks = "peak of this device, overrides the table in this file"
    parser.add_argument("--bandwidth-tbs", type=float, help=f"{peaks} (TB/s)")
    parser.add_argument("--bf16-tflops", type=float, help=f"{peaks} (dense TFLOP/s)")
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error(f"--repeats must be 1 or more, got {args.repeats}")
    if (args.bandwidth_tbs is None) != (args.bf16_tflops is None):
        parser.error("--bandwidth-tbs and --bf16-tflops are given together")
    return args


def measure(
    shape: Shape, m: int, device: torch.device, peaks: Peaks | None, repeats: int
) -> Row:
    """Check one shape with ``m`` rows, then time the candidates."""
    n, k = shape.out_features, shape.in_features
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(SEED)
    x = torch.randn(m, k, generator=generator, device=device).to(dtype)
    full = torch.randn(n, k, generator=generator, device=device) * k**-0.5
    w8, scale = quantize_rowwise(full)
    bias = None
    if shape.bias:
        bias = torch.randn(n, generator=generator, device=device).to(dtype)
    weight = full.to(dtype)

    snr = snr_db(fp8_linear(x, w8, scale, bias), x, w8, scale, bias)
    if snr < MIN_SNR_DB:
        sys.exit(f"{shape.name} m={m}: {snr:.1f} dB, at least {MIN_SNR_DB} expected")

    def dequantize_then_linear() -> Tensor:
        return F.linear(x, w8.to(dtype) * scale.to(dtype)[:, None], bias)

    fp8 = time_calls(lambda: fp8_linear(x, w8, scale, bias), device, repeats)
    plain = time_calls(lambda: F.linear(x, weight, bias), device, repeats)
    dequant = time_calls(dequantize_then_linear, device, repeats)
    bound = (None, None) if peaks is None else roofline(m, n, k, dtype.itemsize, peaks)
    return Row(shape.name, m, n, k, snr, *fp8, *plain, *dequant, *bound)


def snr_db(
    got: Tensor, x: Tensor, w8: Tensor, scale: Tensor, bias: Tensor | None
) -> float:
    """Signal-to-noise ratio in dB against float64, on at most 256 of the rows."""
    step = max(1, x.shape[0] // 256)
    sample = x[::step].double()
    expected = fp8_linear_reference(sample, w8, scale, bias)
    noise = (got[::step].double() - expected).pow(2).mean()
    return float(10 * torch.log10(expected.pow(2).mean() / noise))


def time_calls(
    call: Callable[[], object], device: torch.device, repeats: int
) -> tuple[float, float]:
    """Median and 90th percentile of one call, in microseconds."""
    for _ in range(5):
        call()
    timer = time_on_gpu if device.type == "cuda" else time_on_cpu
    times = sorted(timer(call, repeats))
    return statistics.median(times), times[min(len(times) - 1, len(times) * 9 // 10)]


def time_on_gpu(call: Callable[[], object], repeats: int) -> list[float]:
    # Writing more than the L2 cache holds makes each call read from memory, as it
    # does in a model whose other layers ran in between.
    flush = torch.empty(256 * 2**20, dtype=torch.int8, device="cuda")
    events = []
    for _ in range(repeats):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) * 1e3 for start, end in events]


def time_on_cpu(call: Callable[[], object], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e6)
    return times


def roofline(m: int, n: int, k: int, itemsize: int, peaks: Peaks) -> tuple[float, str]:
    """Least time in microseconds of the FP8 linear, and what bounds it."""
    moved = n * k + 4 * n + itemsize * (m * k + m * n)
    memory, compute = moved / peaks.bandwidth, 2 * m * n * k / peaks.flops
    return max(memory, compute) * 1e6, "memory" if memory > compute else "compute"


def device_peaks(
    device: torch.device, bandwidth_tbs: float | None, bf16_tflops: float | None
) -> Peaks | None:
    """From the flags, else by the device's name; None where neither tells."""
    if bandwidth_tbs is not None and bf16_tflops is not None:
        return Peaks(bandwidth_tbs * 1e12, bf16_tflops * 1e12)
    name = device_name(device)
    for part, (bandwidth, flops) in PEAKS.items():
        if part in name:
            return Peaks(bandwidth * 1e12, flops * 1e12)
    return None


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {platform.machine()} ({torch.get_num_threads()} threads)"


def print_row(row: Row, is_first: bool) -> None:
    if is_first:
        print(
            f"{'linear':<18}{'m':>6}{'n':>7}{'k':>7}{'dB':>7}"
            f"{'fp8 us (p90)':>20}{'plain us (p90)':>20}{'dequant us (p90)':>20}"
            f"{'bound us':>18}"
        )
    bound = "unknown"
    if row.bound_us is not None:
        bound = f"{row.bound_us:.1f} {row.bound_by}"
    times = (
        (row.fp8_us, row.fp8_p90_us),
        (row.plain_us, row.plain_p90_us),
        (row.dequant_us, row.dequant_p90_us),
    )
    cells = "".join(f"{f'{median:.1f} ({p90:.1f})':>20}" for median, p90 in times)
    print(
        f"{row.name:<18}{row.m:>6}{row.n:>7}{row.k:>7}{row.snr_db:>7.1f}{cells}"
        f"{bound:>18}"
    )


def summary(
    rows: list[Row],
    device: torch.device,
    candidate: str,
    peaks: Peaks | None,
    repeats: int,
) -> dict[str, object]:
    """The final JSON line: all that is needed to compare with another run."""
    return {
        "benchmark": "fp8_linear",
        "hardware": device_name(device),
        "fp8": candidate,
        "dtype": "bfloat16" if device.type == "cuda" else "float32",
        "peaks": None if peaks is None else peaks._asdict(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton_version(),
        "cuda": torch.version.cuda,
        "commit": commit(),
        "seed": SEED,
        "repeats": repeats,
        "rows": [asdict(row) for row in rows],
    }


def triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__


def commit() -> str | None:
    """The checked-out commit, with ``-dirty`` for local changes; None outside git."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty"]
    done = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main())
