# SPDX-License-Identifier: Apache-2.0
"""A program: benchmarks at their tiny size, each in a fork of this process.

    python benchmarks_in_turn.py FOLDER SCRIPT ...

The fork has what takes longest, the imports of SGLang and diffusers, and nothing else.
What a script printed is in ``FOLDER/SCRIPT.out`` and ``.err``, its exit code in
``.code``.
"""

import os
import runpy
import sys
from multiprocessing import get_context
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmark"


def main(folder: Path, scripts: list[str]) -> None:
    import diffusers  # noqa: F401
    import sglang.benchmark.one_batch
    import sglang.multimodal_gen  # noqa: F401

    for script in scripts:
        process = get_context("fork").Process(target=run, args=(folder, script))
        process.start()
        process.join()
        (folder / f"{script}.code").write_text(str(process.exitcode), "utf-8")


def run(folder: Path, script: str) -> None:
    """As ``python benchmark/SCRIPT --tiny`` would."""
    for descriptor, suffix in ((1, "out"), (2, "err")):
        with (folder / f"{script}.{suffix}").open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    path = str(BENCHMARKS / script)
    sys.argv = [path, "--tiny"]
    sys.path[0] = str(BENCHMARKS)
    runpy.run_path(path, run_name="__main__")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
