# SPDX-License-Identifier: Apache-2.0
"""What a client's URL may reach, against real sockets on this machine."""

import inspect
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sglang_ext_gen import envs
from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.media import limits
from sglang_ext_gen.media.fetch import fetch, is_public

BODY = b"media" * 1000


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path, _, argument = self.path[1:].partition("?")
        if path == "redirect":
            self._head(302, {"Location": argument})
        elif path == "missing":
            self._head(404)
        elif path == "nowhere":
            self._head(302)
        elif path == "stream":  # no length, more than the limit
            self._head(200)
            for _ in range(100):
                self.wfile.write(BODY)
        elif path == "slow":
            self._head(200)
            for _ in range(100):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.1)
        else:
            self._head(200, {"Content-Length": str(len(BODY))})
            self.wfile.write(BODY)

    def _head(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        pass  # clients hang up on purpose


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    httpd = _Server(("127.0.0.1", 0), _Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def allowed(monkeypatch):
    monkeypatch.setenv(envs.MEDIA_HOSTS.name, "other.example, 127.0.0.1")


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
        *("0.0.0.0", "100.64.0.1", "224.0.0.1", "255.255.255.255", "198.18.0.1"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"),
    ],
)
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1", "::ffff:8.8.8.8"])
def test_public_addresses(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "127.1", "0x7f000001", "[::1]"]
)
def test_private_addresses_are_refused_in_every_spelling(server, host):
    port = server.rpartition(":")[2]
    with pytest.raises(RequestError, match=r"not public|does not resolve"):
        fetch(f"http://{host}:{port}/", "image")


def test_a_name_with_one_private_address_is_refused(monkeypatch):
    def resolve(*_, **__):
        return [(2, 1, 6, "", ("8.8.8.8", 80)), (2, 1, 6, "", ("10.0.0.1", 80))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(RequestError, match="not public"):
        fetch("http://rebinding.example/", "image")


def test_a_redirect_to_a_private_address_is_refused(server, monkeypatch):
    monkeypatch.setenv(envs.MEDIA_HOSTS.name, "localhost")
    port = server.rpartition(":")[2]
    with pytest.raises(RequestError, match=r"'127\.0\.0\.1' is or resolves to"):
        fetch(f"http://localhost:{port}/redirect?{server}/", "image")


@pytest.mark.usefixtures("allowed")
class TestAllowedHost:
    def test_the_body_comes(self, server):
        assert fetch(f"{server}/", "image") == BODY

    def test_redirects_are_followed(self, server):
        assert fetch(f"{server}/redirect?{server}/", "image") == BODY
        assert fetch(f"{server}/redirect?/relative", "image") == BODY

    def test_endless_redirects_end(self, server):
        loop = f"{server}/redirect?/redirect"
        with pytest.raises(RequestError, match="redirects"):
            fetch(loop.replace("?/redirect", f"?{server}/redirect?{loop}"), "image")

    def test_a_redirect_to_a_file_is_refused(self, server):
        with pytest.raises(RequestError, match="http or https"):
            fetch(f"{server}/redirect?file:///etc/passwd", "image")

    @pytest.mark.parametrize(
        ("path", "message"), [("missing", "HTTP 404"), ("nowhere", "redirects to")]
    )
    def test_errors_are_named(self, server, path, message):
        with pytest.raises(RequestError, match=message):
            fetch(f"{server}/{path}", "image")

    @pytest.mark.parametrize("path", ["", "stream"])
    def test_large_bodies_are_cut_off(self, server, path):
        with pytest.raises(RequestError, match="more than 4999 bytes"):
            fetch(f"{server}/{path}", "image", max_bytes=len(BODY) - 1)

    def test_slow_bodies_are_cut_off(self, server):
        start = time.monotonic()
        with pytest.raises(RequestError, match="TimeoutError"):
            fetch(f"{server}/slow", "image", seconds=0.5)
        assert time.monotonic() - start < 5

    def test_a_closed_port_is_an_error(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with pytest.raises(RequestError, match="ConnectionRefusedError"):
            fetch(f"http://127.0.0.1:{port}/", "image")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://example.com/", "http or https"),
        ("file:///etc/passwd", "http or https"),
        ("http:///path", "no valid host"),
        ("http://user:secret@example.com/", "user name or password"),
        ("http://example.com:99999999/", "malformed"),
        ("http://example.com/a b", "spaces or control"),
        ("http://example.com/a\r\nHost: b", "spaces or control"),
        ("http://[::1/", "malformed"),
    ],
)
def test_malformed_urls_are_refused(url, message):
    with pytest.raises(RequestError, match=message):
        fetch(url, "image")


def test_limits_are_those_of_the_house():
    bounds = inspect.signature(fetch).parameters
    assert bounds["max_bytes"].default == limits.MAX_MEDIA_BYTES
    assert bounds["seconds"].default == limits.FETCH_SECONDS
