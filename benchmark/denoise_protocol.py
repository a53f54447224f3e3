# SPDX-License-Identifier: Apache-2.0
"""How ``bench_denoise.py`` talks to the programs that it compares.

Each side is one process that holds the loaded model: one JSON object a line goes in on
stdin, one comes back. All sides are alive at once and answer in turns, so that a noisy
machine disturbs them alike. Needs the standard library only, because one side may run
under another interpreter.

Steps are timed alike on all sides: from one call of the conditional transformer, which
every side calls once a step, to the next. The last step of a picture is not counted.
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
        self._calls: list[tuple[float, float]] = []
        module.register_forward_pre_hook(self._note)

    def take(self) -> Message:
        """Milliseconds of each step since the last ``take``.

        ``step_ms`` by the wall clock; ``step_cpu_ms`` of CPU time in all threads, which
        other programs on the machine disturb less.
        """
        wall, cpu = (
            [1000 * (b - a) for a, b in itertools.pairwise(times)]
            for times in zip(*self._calls, strict=True)
        )
        self._calls.clear()
        return {"step_ms": wall, "step_cpu_ms": cpu}

    def _note(self, *_: object) -> None:
        self._synchronize()
        self._calls.append((time.perf_counter(), time.process_time()))


def peak_rss_mib() -> float:
    """Most memory that this process ever had in RAM."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
