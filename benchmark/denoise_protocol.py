# SPDX-License-Identifier: Apache-2.0
"""How a benchmark of denoising talks to the programs that it compares.

Each side is one process that holds the loaded model: one JSON object a line goes in on
stdin, one comes back. All sides are alive at once and answer in turns, so that a noisy
machine disturbs them alike. Needs the standard library only, because one side may run
under another interpreter.

Steps are timed alike on all sides, by the calls of the transformer: see ``StepClock``.
"""

import itertools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Message = dict[str, Any]
_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_LOG_TAIL = 3000  # characters of a failed side's log to show


class SideError(RuntimeError):
    """A side ended before it answered."""


class Side:
    """The benchmark's end: a program that is starting or waits for requests.

    Args:
        name: For tables and messages.
        command: Interpreter and script.
        options: Handed to the script's ``load``.
        environment: Added to this process's environment.
        log: File for what the program prints.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        options: Message,
        environment: Mapping[str, str],
        log: Path,
    ) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, json.dumps(options)],
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
            )

    def wait_until_loaded(self) -> Message:
        """What ``load`` said about itself.

        Raises:
            SideError: Loading failed; with the end of the log.
        """
        return self._read()

    def ask(self, request: Message) -> Message:
        """The answer to one request.

        Raises:
            SideError: The program ended; with the end of its log.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the program."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _read(self) -> Message:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            tail = self.log.read_text("utf-8", "replace")[-_LOG_TAIL:]
            raise SideError(f"{self.name} ended with {self._process.wait()}:\n{tail}")
        return json.loads(line)


def serve(load: Callable[[Message], tuple[Message, Callable[[Message], Message]]]):
    """The program's end: load, then answer requests until stdin closes.

    Args:
        load: From options to a description and the function that answers.
    """
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print to stdout
    description, answer = load(json.loads(sys.argv[1]))
    print(json.dumps(description), file=replies)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=replies)


class StepClock:
    """Notes when a module is called.

    Args:
        module: The conditional transformer, a ``torch.nn.Module``.
        synchronize: Drains the queue of the GPU; does nothing without one.
    """

    def __init__(self, module: Any, synchronize: Callable[[], object]) -> None:
        self._synchronize = synchronize
        self._starts: list[tuple[float, float]] = []
        self._end = (0.0, 0.0)
        module.register_forward_pre_hook(self._note_start)
        module.register_forward_hook(self._note_end)

    def take(self) -> Message:
        """Milliseconds since the last ``take``.

        ``step_ms`` of each step but the last, from one call to the next, where a step
        is one call; ``loop_ms`` from the start of the first call to the end of the
        last, however many a step takes. By the wall clock; ``..._cpu_ms`` in CPU time
        of all threads, which other programs on the machine disturb less.
        """
        wall, cpu = (
            [1000 * (b - a) for a, b in itertools.pairwise(times)]
            for times in zip(*self._starts, strict=True)
        )
        loop, loop_cpu = (
            1000 * (end - start)
            for start, end in zip(self._starts[0], self._end, strict=True)
        )
        calls = len(self._starts)
        self._starts.clear()
        return {
            **{"step_ms": wall, "step_cpu_ms": cpu, "calls": calls},
            **{"loop_ms": loop, "loop_cpu_ms": loop_cpu},
        }

    def _note_start(self, *_: object) -> None:
        self._starts.append(self._now())

    def _note_end(self, *_: object) -> None:
        self._end = self._now()

    def _now(self) -> tuple[float, float]:
        self._synchronize()
        return time.perf_counter(), time.process_time()


class LoadingMemory:
    """Resident memory of this process while something is loaded, MiB.

    Linux forgets a process's highest RSS when it is told to, so that imports before do
    not hide what loading takes.
    """

    def __init__(self) -> None:
        _CLEAR_REFS.write_text("5")
        self.before_mib = _status_mib("VmRSS")

    def finish(self) -> Message:
        """``before_mib``, ``peak_mib`` and ``after_mib``."""
        return {
            "before_mib": self.before_mib,
            "peak_mib": _status_mib("VmHWM"),
            "after_mib": _status_mib("VmRSS"),
        }


def _status_mib(name: str) -> float:
    """A figure of ``/proc/self/status``."""
    for line in _STATUS.read_text("ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"{_STATUS} has no {name}")


def peak_rss_mib() -> float:
    """Most memory that this process ever had in RAM."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
