# SPDX-License-Identifier: Apache-2.0
"""How much memory does loading the thinker take beyond its parameters?

Method: a checkpoint in several shards is loaded by SGLang's own loader, with its
default of eight reading threads, in this process. While ``load_weights`` runs, the
resident memory of the process (anonymous and mapped files) is sampled every few
milliseconds. What is beyond the parameters at a sample is the resident memory, less
that before loading, less the bytes written into parameters so far. The peak must not
exceed one shard. SGLang maps the shards, so what is beyond is mostly file pages, which
the kernel can drop at any time.

Parameters start out without pages, so writing them is what makes them resident; that is
not so for the towers, which are therefore small here (``--tiny`` and not).
"""

import argparse
import json
import os
import platform
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from sglang_ext_gen.models.ming_omni.thinker.tiny import write_checkpoint
from sglang_ext_gen.models.ming_omni.thinker.weights import target_of

SEED = 0
SHARDS = 8
SAMPLE_SECONDS = 0.002
MIB = 1 << 20
# Sizes of the decoder; the rest stays tiny.
MID_SIZE = {
    "hidden_size": 1024,
    "num_hidden_layers": 9,
    "num_experts": 32,
    "moe_intermediate_size": 512,
    "vocab_size": 16384,  # SGLang's benchmark draws token ids up to 10,000
}
TINY = {**MID_SIZE, "num_hidden_layers": 3}


class Sampler:
    """Resident memory beyond the parameters, sampled in a thread."""

    def __init__(self) -> None:
        self.written = 0
        self.peak = 0
        self.peak_mapped = 0
        self._start = resident_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def counted(
        self, weights: Iterable[tuple[str, Tensor]]
    ) -> Iterator[tuple[str, Tensor]]:
        """Pass tensors on, each counted as written from now on.

        What is beyond grows until a shard is done, so its peak is seen after a write.
        """
        for name, tensor in weights:
            self.written += 0 if target_of(name) is None else tensor.nbytes
            yield name, tensor

    def _run(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            own, mapped = (
                now - start
                for now, start in zip(resident_bytes(), self._start, strict=True)
            )
            self.peak = max(self.peak, own + mapped - self.written)
            self.peak_mapped = max(self.peak_mapped, mapped)


def resident_bytes() -> tuple[int, int]:
    """Resident memory of this process: its own pages, and those of mapped files."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    pages = dict(line.split(":", 1) for line in lines)
    own, mapped = (int(pages[name].split()[0]) for name in ("RssAnon", "RssFile"))
    return own * 1024, mapped * 1024


def main() -> None:
    """Measure, print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a third of the size")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "ming"
        sizes = TINY if arguments.tiny else MID_SIZE
        write_checkpoint(checkpoint, seed=SEED, llm=sizes, shards=SHARDS)
        shard = max(f.stat().st_size for f in checkpoint.glob("model-*.safetensors"))
        sampler = load(checkpoint)
    print(f"{SHARDS} shards of up to {shard / MIB:.0f} MiB")
    print(f"written into parameters: {sampler.written / MIB:8.0f} MiB")
    print(f"peak beyond them:        {sampler.peak / MIB:8.0f} MiB")
    print(f"  in shards:             {sampler.peak / shard:8.2f}")
    print(f"  mapped shards alone:   {sampler.peak_mapped / shard:8.2f}")
    print(
        json.dumps(
            {
                "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
                "sglang": version("sglang"),
                "torch": version("torch"),
                "commit": _commit(),
                "seed": SEED,
                "shards": SHARDS,
                "shard_bytes": shard,
                "written_bytes": sampler.written,
                "peak_beyond_bytes": sampler.peak,
                "peak_mapped_bytes": sampler.peak_mapped,
            }
        )
    )


def load(checkpoint: Path) -> Sampler:
    """Load a checkpoint as SGLang's own one-process benchmark does, and sample."""
    from sglang.benchmark import one_batch
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import ServerArgs

    load_plugins()
    from sglang_ext_gen.models.ming_omni.thinker import model

    thinker = model.BailingMM2NativeForConditionalGeneration
    original = thinker.load_weights
    samplers: list[Sampler] = []

    def sampled(self: Any, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        with Sampler() as sampler:
            samplers.append(sampler)
            return original(self, sampler.counted(weights))

    thinker.load_weights = sampled
    arguments: dict[str, Any] = {
        "model_path": str(checkpoint),
        "dtype": "bfloat16",
        "max_total_tokens": 512,
        "mem_fraction_static": 0.2,
    }
    one_batch.main(
        ServerArgs(**arguments),
        one_batch.BenchArgs(
            batch_size=(1,), input_len=(8,), output_len=(2,), result_filename=""
        ),
    )
    [sampler] = samplers
    return sampler


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
