# SPDX-License-Identifier: Apache-2.0
"""A server of SGLang as a child process: started, watched, and ended with its tree.

The child cannot outlive its parent, however that ends: the kernel kills it
(``die_with_parent.py``), and SGLang's own workers ask the same of the kernel.
"""

import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import IO

from sglang_ext_gen.errors import ServerError

# Of the child's output, for the message of an error.
_TAIL_LINES = 40
_POLL_SECONDS = 0.5
_HEALTH_SECONDS = 5.0
# A server that has requests to finish gets this long to end by itself.
_TERMINATE_SECONDS = 20.0
# After SIGKILL only the kernel is waited for.
_KILL_SECONDS = 10.0

# Below Linux's default range for outgoing connections, above the well-known servers.
_PORTS = range(12_000, 32_000, 2)

_candidates = itertools.cycle(random.SystemRandom().sample(_PORTS, len(_PORTS)))

_LAUNCHER = Path(__file__).with_name("die_with_parent.py")


class ChildServer:
    """One server process and everything that it starts, from start to end.

    An object lives as long as its process: for a restart, make a new one.

    Args:
        title: What the server is called in messages and before each line of its
            output, which goes to this process's stderr.
        arguments: The command after ``python``, such as ``["-m",
            "sglang.launch_server", "--model-path", PATH]``. ``--host`` and ``--port``
            are added.
        port: Where it shall listen, on 127.0.0.1; a free port when None.
        environment: Further environment variables.
    """

    def __init__(
        self,
        title: str,
        arguments: Sequence[str],
        *,
        port: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.title = title
        self.port = free_port() if port is None else port
        self._arguments = (
            *arguments,
            *("--host", "127.0.0.1", "--port", str(self.port)),
        )
        self._environment = dict(environment or {})
        self._started: Future[subprocess.Popen[bytes]] = Future()
        self._ended = threading.Event()
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)

    @property
    def url(self) -> str:
        """Its address, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id, once started."""
        return self._started.result().pid

    def start(self) -> None:
        """Start the process; returns at once.

        Raises:
            OSError: The process cannot be started.
        """
        # The kernel's promise is bound to the thread that starts the child, so that
        # thread waits for the child's end and does nothing else.
        name = f"{self.title} process"
        threading.Thread(target=self._own, name=name, daemon=True).start()
        self._started.result()

    def wait_until_healthy(self, timeout_s: float) -> None:
        """Return when ``/health`` answers 200.

        Raises:
            ServerError: The process ended, or time is up (it is then left running);
                carries the last lines of its output.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            reason = self.exit_reason()
            if reason is not None:
                raise ServerError(
                    f"{self.title} {reason} before it was ready; its last lines:\n"
                    f"{self.log_tail()}"
                )
            if self.is_healthy():
                return
            self._ended.wait(_POLL_SECONDS)
        raise ServerError(
            f"{self.title} was not ready after {timeout_s:g} s; its last lines:\n"
            f"{self.log_tail()}"
        )

    def is_healthy(self) -> bool:
        """Whether ``/health`` answers 200 within a few seconds."""
        try:
            with urllib.request.urlopen(
                f"{self.url}/health", timeout=_HEALTH_SECONDS
            ) as reply:
                return reply.status == 200
        except OSError:
            return False

    def exit_reason(self) -> str | None:
        """How the process ended, such as "exited with code 1"; None while it lives."""
        if not self._ended.is_set():
            return None
        code = self._started.result().returncode
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"exited with code {code}"

    def log_tail(self) -> str:
        """The last lines that it printed."""
        return "\n".join(self._tail)

    def stop(self) -> None:
        """End the process and all that it started; nothing is left at return.

        Does nothing where the process was not started or has ended.

        Raises:
            ServerError: The kernel did not end it.
        """
        if not self._started.done() or self._ended.is_set():
            return
        process = self._started.result()
        process.terminate()
        if not self._ended.wait(_TERMINATE_SECONDS):
            _kill_group(process.pid)
            if not self._ended.wait(_KILL_SECONDS):
                raise ServerError(f"{self.title}: process {process.pid} did not end")

    def _own(self) -> None:
        try:
            # A session of its own: Ctrl-C reaches the parent alone, which stops the
            # child in good order, and the group holds all that the child starts.
            process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid())),
                    *self._arguments,
                ],
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            self._ended.set()
            self._started.set_exception(error)
            return
        self._started.set_result(process)
        assert process.stdout is not None, "asked for a pipe"
        output = threading.Thread(
            target=self._forward,
            args=(process.stdout,),
            name=f"{self.title} output",
            daemon=True,
        )
        output.start()
        process.wait()
        _kill_group(process.pid)
        # With the group gone the pipe ends; only what left the group could hold it.
        output.join(timeout=_KILL_SECONDS)
        self._ended.set()

    def _forward(self, output: IO[bytes]) -> None:
        for raw in output:
            # Of a progress bar, which overwrites itself, the last state.
            line = raw.decode("utf-8", "replace").rstrip().rpartition("\r")[2]
            self._tail.append(line)
            print(f"[{self.title}] {line}", file=sys.stderr, flush=True)


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on at this moment, as on the next one.

    SGLang's diffusion server listens on the one after its HTTP port, too. A server may
    take a minute before it binds its ports, so they are not of those that the kernel
    gives to outgoing connections, and no two calls in a process give the same one.
    """
    while True:
        port = next(_candidates)
        with socket.socket() as probe, socket.socket() as next_probe:
            try:
                probe.bind(("127.0.0.1", port))
                next_probe.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return  # all of it has ended
