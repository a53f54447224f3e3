# SPDX-License-Identifier: Apache-2.0
"""Two processes draw what one draws: CFG-parallel, Ulysses and tensor parallel.

The ranks talk over gloo on the CPU, in float32. The stored query states are known to
the first rank only, which must hand them on; an edit has a second frame, and 48 image
tokens that are padded to 64.
"""

import multiprocessing
from queue import Empty
from time import monotonic

import pytest

from ming_ranks import MODES, draw_in_every_mode
from server.servers import free_ports

pytestmark = pytest.mark.slow

# Of silence; each rank imports SGLang first.
SECONDS = 900


def test_two_processes_draw_what_one_draws(golden_dir) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    ports = {mode: free_ports()[2] for mode in MODES}
    folder = golden_dir("ming_omni")
    processes = [
        context.Process(target=draw_in_every_mode, args=(rank, ports, folder, queue))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    try:
        deadline = monotonic() + SECONDS
        results = []
        while len(results) < 2 * len(MODES):
            assert monotonic() < deadline, results
            try:
                results.append(queue.get(timeout=1))
            except Empty:
                assert not any(process.exitcode for process in processes), results
        for rank, mode, result in results:
            assert mode != "failed", result
            assert result > 80, f"{mode} on rank {rank}"
    finally:
        for process in processes:
            process.join(timeout=30)
            if process.is_alive():
                process.kill()
