# SPDX-License-Identifier: Apache-2.0
"""Child servers, with a real process that answers ``/health`` and has a child."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from sglang_ext_gen.errors import ServerError
from sglang_ext_gen.process import child_server
from sglang_ext_gen.process.child_server import ChildServer, free_port

# Nothing here is slow; this only keeps a defect from hanging the run.
LIMIT = 60.0

SERVER = """
import os, signal, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

way, port = sys.argv[1], int(sys.argv[sys.argv.index("--port") + 1])
assert sys.argv[sys.argv.index("--host") + 1] == "127.0.0.1"
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("grandchild", grandchild.pid)
print("word", os.environ.get("WORD"))
if way == "fails":
    print("no weights", file=sys.stderr)
    sys.exit(3)
if way == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if way == "sick" else 200)
        self.end_headers()
    def log_message(self, *arguments): pass

HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Callable[..., ChildServer]]:
    """Makes and starts child servers, which are stopped at the end."""
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    made: list[ChildServer] = []

    def start(way: str = "well", **options) -> ChildServer:
        made.append(ChildServer("part", [str(script), way], **options))
        made[-1].start()
        return made[-1]

    yield start
    for server in made:
        server.stop()


def grandchild(server: ChildServer) -> psutil.Process:
    word = "grandchild "
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        for line in server.log_tail().splitlines():
            if line.startswith(word):
                return psutil.Process(int(line.removeprefix(word)))
        time.sleep(0.02)
    raise AssertionError(server.log_tail())


def assert_ends(*processes: psutil.Process) -> None:
    # Who adopts an orphan may be slow to collect it; a zombie runs nothing.
    deadline = time.monotonic() + LIMIT
    for process in processes:
        while time.monotonic() < deadline:
            try:
                if process.status() == psutil.STATUS_ZOMBIE:
                    break
            except psutil.NoSuchProcess:
                break
            time.sleep(0.02)
        else:
            raise AssertionError(f"{process} still runs")


def test_start_wait_and_stop(child, capfd):
    port = free_port()
    server = child(port=port, environment={"WORD": "hello"})
    server.wait_until_healthy(LIMIT)
    assert server.url == f"http://127.0.0.1:{port}"
    assert server.is_healthy()
    assert server.exit_reason() is None
    below = grandchild(server)
    server.stop()
    assert server.exit_reason() == "was killed by SIGTERM"
    assert not server.is_healthy()
    assert_ends(below)
    assert "word hello" in server.log_tail()
    assert "[part] word hello\n" in capfd.readouterr().err
    server.stop()  # once more does nothing


def test_a_child_that_fails_to_start_is_reported_with_its_last_lines(child):
    server = child("fails")
    with pytest.raises(ServerError, match=r"part exited with code 3.*\n(.*\n)*no wei"):
        server.wait_until_healthy(LIMIT)
    assert server.exit_reason() == "exited with code 3"
    assert_ends(grandchild(server))


def test_a_child_that_stays_unhealthy_is_reported(child):
    server = child("sick")
    grandchild(server)
    with pytest.raises(ServerError, match=r"part was not ready after 0\.1 s"):
        server.wait_until_healthy(0.1)
    assert server.exit_reason() is None


def test_a_killed_child_is_noticed_and_its_tree_is_ended(child):
    server = child()
    server.wait_until_healthy(LIMIT)
    below = grandchild(server)
    os.kill(server.pid, signal.SIGKILL)
    deadline = time.monotonic() + LIMIT
    while server.exit_reason() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.exit_reason() == "was killed by SIGKILL"
    assert_ends(below)


def test_a_child_that_ignores_sigterm_is_killed(child, monkeypatch):
    monkeypatch.setattr("sglang_ext_gen.process.child_server._TERMINATE_SECONDS", 0.2)
    server = child("stubborn")
    server.wait_until_healthy(LIMIT)
    server.stop()
    assert server.exit_reason() == "was killed by SIGKILL"


def test_the_child_dies_with_its_parent(tmp_path):
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    program = (
        "import sys, time\n"
        "from sglang_ext_gen.process.child_server import ChildServer\n"
        "server = ChildServer('part', [sys.argv[1], 'stubborn'])\n"
        "server.start()\n"
        "server.wait_until_healthy(60)\n"
        "print(server.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", program, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    assert_ends(server)


def test_nothing_to_stop_before_the_start():
    ChildServer("part", ["-c", "pass"]).stop()


def test_ports_are_free_distinct_and_not_for_outgoing_connections():
    bounds = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    ports = [free_port() for _ in range(50)]
    assert len({port + next_ for port in ports for next_ in (0, 1)}) == 100
    assert all(port + 1 < int(bounds[0]) for port in ports)
    with socket.socket() as taken:
        # The port that would come next, and is skipped when something listens on it.
        ahead = next(child_server._candidates)
        taken.bind(("127.0.0.1", ahead))
        assert ahead not in [free_port() for _ in range(len(child_server._PORTS))]
