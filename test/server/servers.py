# SPDX-License-Identifier: Apache-2.0
"""Real SGLang processes for tests: start, wait, stop, leave none behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil

from server.starts import count_start
from sglang_ext_gen.process.child_server import free_port

if TYPE_CHECKING:
    from sglang.multimodal_gen.runtime.entrypoints.diffusion_generator import (
        DiffGenerator,
    )

# Starting takes a minute of CPU time on two processes; the machine may be busy.
START_SECONDS = 900
STOP_SECONDS = 60
_LOG_TAIL_LINES = 60

FLOAT32 = (
    *("--dit-precision", "fp32"),
    *("--vae-precision", "fp32"),
    *("--text-encoder-precisions", "fp32"),
)


class ServerError(RuntimeError):
    """A server did not start, or did not stop as it should."""


@dataclass(frozen=True)
class Server:
    """A running server.

    Args:
        url: Its address, without a slash at the end.
        process: The process that was started; it has children.
        log: File with everything that it printed.
        folder: Its working directory.
    """

    url: str
    process: psutil.Popen
    log: Path
    folder: Path

    def processes(self) -> list[psutil.Process]:
        """The server's processes that are alive, the first one included."""
        try:
            return [self.process, *self.process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def workers(self) -> list[psutil.Process]:
        """The processes that run the model."""
        children = self.process.children(recursive=True)
        return [p for p in children if "resource_tracker" not in " ".join(p.cmdline())]

    def log_tail(self) -> str:
        lines = self.log.read_text("utf-8", "replace").splitlines()
        return "\n".join(lines[-_LOG_TAIL_LINES:])


@contextmanager
def serving(
    model: Path,
    folder: Path,
    *flags: str,
    program: str = "sglang",
    **environment: str,
) -> Iterator[Server]:
    """Run ``sglang serve MODEL`` in ``folder`` until the end of the block.

    Args:
        model: Checkpoint directory.
        folder: Working directory, made when missing; the log is kept in it.
        flags: Further arguments of ``sglang serve``.
        program: ``sglang``, or ours, whose ``serve`` takes the same arguments.
        environment: Further environment variables.

    Raises:
        ServerError: It did not become healthy, did not stop, or left processes; with
            the end of its log.
    """
    http_port, scheduler_port, master_port = free_ports()
    command = [
        *(sglang_command(program), "serve", str(model)),
        *("--host", "127.0.0.1", "--port", str(http_port), "--strict-ports", "true"),
        *("--scheduler-port", str(scheduler_port), "--master-port", str(master_port)),
        # The tests of a small machine need the core that an idle server would take.
        "--sleep-on-idle",
        *flags,
    ]
    with running(command, folder, http_port, environment) as server:
        yield server


def sglang_command(program: str = "sglang") -> str:
    """A console command of this environment: SGLang's, or ours."""
    return str(Path(sys.executable).with_name(program))


@contextmanager
def running(
    command: list[str], folder: Path, port: int, environment: dict[str, str]
) -> Iterator[Server]:
    """Run a command that listens on ``port`` until the end of the block.

    Raises:
        ServerError: As ``serving``.
    """
    count_start(shown(command))
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "server.log"
    with log.open("wb") as output:
        process = psutil.Popen(
            command,
            cwd=folder,
            env=server_environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = Server(f"http://127.0.0.1:{port}", process, log, folder)
    try:
        wait_until_healthy(server)
        yield server
    finally:
        stop(server)


def shown(command: Sequence[object]) -> str:
    """The beginning of a command, without folders."""
    return " ".join(Path(str(word)).name for word in command[:5])


def run_program(
    folder: Path,
    *command: object,
    timeout: float = 900,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run a Python program that starts SGLang, in ``folder``, to its end."""
    count_start(shown(command))
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=server_environment(environment),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def run_command(
    folder: Path, *words: str, ports: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run ``sglang-ext-gen WORDS`` in ``folder`` to its end.

    Args:
        folder: Working directory.
        words: The command, its flags, and those that it passes on to SGLang.
        ports: Whether to add ports of the diffusion runtime that nothing else uses.
    """
    if ports:
        _, scheduler, master = map(str, free_ports())
        words += ("--scheduler-port", scheduler, "--master-port", master)
    return run_program(folder, "-m", "sglang_ext_gen", *words)


def plain_generate(
    checkpoint: Path, picture: Path, request: dict[str, Any], *flags: str
) -> None:
    """Run SGLang's own ``sglang generate``, as somebody does who knows nothing of us.

    Args:
        checkpoint: The model.
        picture: The file to write.
        request: Fields that SGLang has a flag for.
        flags: Further flags.
    """
    _, scheduler, master = map(str, free_ports())
    command = [
        *(sglang_command(), "generate", "--model-path", str(checkpoint)),
        *(f"--{name.replace('_', '-')}={value}" for name, value in request.items()),
        *("--output-file-path", str(picture), "--output-compression", "100"),
        *("--scheduler-port", scheduler, "--master-port", master, *flags),
    ]
    count_start(shown(command))
    run = subprocess.run(
        command,
        cwd=picture.parent,
        env=server_environment({}),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]


@contextmanager
def float32_generator(model: Path, **server_args: Any) -> Iterator["DiffGenerator"]:
    """A ``DiffGenerator`` that computes in float32, with ports of its own."""
    from sglang.multimodal_gen import DiffGenerator

    count_start(f"DiffGenerator {model.name}")
    # Its children inherit it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _, scheduler_port, master_port = free_ports()
    generator = DiffGenerator.from_pretrained(
        model_path=str(model),
        backend="sglang",
        dit_precision="fp32",
        vae_precision="fp32",
        scheduler_port=scheduler_port,
        master_port=master_port,
        sleep_on_idle=True,  # as for servers
        **server_args,
    )
    try:
        yield generator
    finally:
        generator.shutdown()


@contextmanager
def started_engine(
    model: Path, *, dtype: str = "float32", **server_args: Any
) -> Iterator[Any]:
    """An ``sgl.Engine`` with ports of its own.

    Its shutdown kills every child of this process, so no server may run beside it.
    """
    import sglang

    count_start(f"Engine {model.name}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    port, nccl_port, _ = free_ports()
    engine = sglang.Engine(
        model_path=str(model),
        dtype=dtype,
        port=port,
        nccl_port=nccl_port,
        log_level="warning",
        **server_args,
    )
    try:
        yield engine
    finally:
        engine.shutdown()


def server_environment(extra: dict[str, str]) -> dict[str, str]:
    """The caller's environment, for a small model on a machine without a network."""
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **quiet, **extra}


def free_ports() -> tuple[int, int, int]:
    """Free ports for HTTP, scheduler and torch; the one after each is free too."""
    return free_port(), free_port(), free_port()


def wait_until_healthy(server: Server) -> None:
    """Return when ``/health`` answers 200, that is after SGLang's own warm-up.

    Raises:
        ServerError: The process ended, or time is up.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            code = server.process.returncode
            raise ServerError(f"the server ended with {code}:\n{server.log_tail()}")
        with suppress(httpx.TransportError):
            if httpx.get(f"{server.url}/health", timeout=5).status_code == 200:
                return
        time.sleep(1)
    raise ServerError(f"not healthy in {START_SECONDS} s:\n{server.log_tail()}")


def stop(server: Server) -> None:
    """End the server as an operator would, and prove that all of it is gone.

    Raises:
        ServerError: It had to be killed, or a child outlived it.
    """
    processes = server.processes()
    if server.process.poll() is None:
        server.process.send_signal(signal.SIGTERM)
    _, left = psutil.wait_procs(processes, timeout=STOP_SECONDS)
    for process in left:
        process.kill()
    if left:
        raise ServerError(f"had to kill {left}:\n{server.log_tail()}")
