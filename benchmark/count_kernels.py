# SPDX-License-Identifier: Apache-2.0
"""What one denoising step would ask of a GPU, counted without one.

Each transformer runs at its released size, in bfloat16, on a pretended GPU
(``pretend_gpu.py``), with what its stage does around it in a step.

    python benchmark/count_kernels.py
    python benchmark/count_kernels.py --family lance --size 1024x1024 --json
    python benchmark/count_kernels.py --capability 8.9
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pretend_gpu

sys.path.append(str(Path(__file__).parents[1] / "test"))
FAMILIES = ("ideogram4", "ming_omni", "lance")
# Of a prompt of usual length.
TEXT_TOKENS = 160
_DESCRIPTIONS = {
    "ideogram4": "ideo_fp8",
    "ming_omni": "ming_full",
    "lance": "lance_bf16",
}


@dataclass(frozen=True)
class Step:
    """A transformer with a call of what happens in one step."""

    transformer: Any
    run: Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Count what one denoising step would ask of a GPU."
    )
    parser.add_argument("--family", choices=FAMILIES, help="only this one")
    parser.add_argument("--size", default="1024x1024", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--capability", default="9.0", help="of the GPU, like 8.9")
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    args = parser.parse_args()
    major, minor = map(int, args.capability.split("."))
    pretend_gpu.install((major, minor))
    import torch  # noqa: F401  (SGLang's imports come after the pretence)

    pretend_gpu.start_runtime()
    width, height = map(int, args.size.split("x"))
    found = {
        family: measure(family, width, height)
        for family in ([args.family] if args.family else FAMILIES)
    }
    print(json.dumps(found, indent=1) if args.json else table(found))


def measure(family: str, width: int, height: int) -> dict[str, Any]:
    """The figures of one step of a family."""
    import counted_steps
    from torch._subclasses.fake_tensor import FakeTensorMode

    sparse = import_module("full_size.sparse")  # of the tests
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = sparse.write(_DESCRIPTIONS[family], Path(folder))
        mode = FakeTensorMode()
        make = getattr(counted_steps, family)
        return count(make(checkpoint, mode, width, height), mode)


def count(step: Step, mode: Any) -> dict[str, Any]:
    """Run one step and count."""
    counter = pretend_gpu.KernelCounter()
    marks: list[int] = []

    def mark(*_: Any) -> None:
        marks.append(counter.counts.kernels.total())

    # The second block: what the first one prepares for all is not counted as its.
    block = step.transformer.layers[1]
    block.register_forward_pre_hook(mark)
    block.register_forward_hook(mark)
    with mode, counter, _no_grad():
        step.run()
    counts = counter.counts
    return {
        "kernels_per_step": counts.kernels.total(),
        "kernels_per_block": marks[1] - marks[0],
        "elementwise_gb": round(counts.elementwise_bytes.total() / 1e9, 1),
        "syncs": dict(counts.syncs),
        "host_copies": dict(counts.host_copies),
        "mixed_devices": dict(counts.mixed_devices),
        "attention": dict(counts.attention),
        "attention_dtypes": sorted(
            {
                str(part.dtype)
                for part in step.transformer.modules()
                if type(part).__name__ == "USPAttention"
            }
        ),
        "elementwise_by_line": {
            line: round(size / 1e9, 2)
            for line, size in counts.elementwise_bytes.most_common(12)
        },
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """The figures as lines for people."""
    keys = ("kernels_per_step", "kernels_per_block", "elementwise_gb")
    lines = [f"{'':18}" + "".join(f"{key:>20}" for key in keys) + "  attention"]
    for family, row in found.items():
        cells = "".join(f"{row[key]:>20}" for key in keys)
        lines.append(f"{family:18}{cells}  {row['attention']}")
        lines += [
            f"    {kind}: {where}"
            for kind in ("syncs", "host_copies", "mixed_devices")
            for where in row[kind].items()
        ]
    return "\n".join(lines)


def _no_grad() -> Any:
    import torch

    return torch.no_grad()


if __name__ == "__main__":
    main()
