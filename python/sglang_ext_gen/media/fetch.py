# SPDX-License-Identifier: Apache-2.0
"""Fetching what a client points at: by default only public addresses, and never much.

A client that can make a server fetch URLs can reach what only the server can reach
(metadata services, databases, the server itself). So every address that a name resolves
to must be public, the connection goes to the very address that was checked, and each
redirect is checked anew. Bytes and time are bounded while reading.

``SGLANG_EXT_GEN_MEDIA_HOSTS`` names hosts whose address is not looked at, for example a
file server inside the cluster.
"""

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import SplitResult, urljoin, urlsplit

from sglang_ext_gen import envs
from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.media import limits

_CHUNK = 64 << 10
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_HOST_NAME = 253
# Address forms that carry an IPv4 address, which could be a private one.
_TRANSLATED = tuple(
    ipaddress.ip_network(network)
    for network in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif any(ip in network for network in _TRANSLATED):
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def fetch(
    url: str,
    field: str,
    max_bytes: int = limits.MAX_MEDIA_BYTES,
    seconds: float = limits.FETCH_SECONDS,
) -> bytes:
    """The body behind an ``http(s)`` URL.

    Args:
        url: From the client.
        field: Request field, for messages.
        max_bytes: Largest body.
        seconds: For all of it, redirects included.

    Raises:
        RequestError: The URL is malformed or leads to a private address, the server
            answers an error, or a bound is exceeded.
    """
    deadline = time.monotonic() + seconds
    for _ in range(limits.MAX_REDIRECTS + 1):
        parts = _split(url, field)
        try:
            with (
                _connection(parts, field, deadline) as stream,
                _get(stream, parts) as answer,
            ):
                if answer.status not in _REDIRECTS:
                    return _read(answer, field, max_bytes, stream, deadline)
                location = answer.getheader("Location")
        except (OSError, http.client.HTTPException) as error:
            reason = type(error).__name__
            raise RequestError(
                field, f"cannot fetch {_shown(parts)}: {reason}"
            ) from error
        if not location:
            raise RequestError(field, f"{_shown(parts)} redirects to nowhere")
        url = urljoin(url, location)
    raise RequestError(field, f"more than {limits.MAX_REDIRECTS} redirects")


def _split(url: str, field: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # a bad port raises here
    except ValueError as error:
        raise RequestError(field, f"malformed URL: {error}") from error
    if parts.scheme not in ("http", "https"):
        raise RequestError(field, f"a URL must be http or https, not {parts.scheme!r}")
    if not host or len(host) > _MAX_HOST_NAME:
        raise RequestError(field, "the URL has no valid host name")
    if parts.username is not None or parts.password is not None:
        raise RequestError(field, "a URL must not contain a user name or password")
    if any(character <= " " or character == "\x7f" for character in url):
        raise RequestError(field, "a URL must not contain spaces or control characters")
    return parts


@contextmanager
def _connection(
    parts: SplitResult, field: str, deadline: float
) -> Iterator[socket.socket]:
    host = parts.hostname or ""  # never empty here
    port = parts.port or (443 if parts.scheme == "https" else 80)
    address = _resolve(host, port, field)
    stream = socket.create_connection((address, port), timeout=_left(deadline))
    try:
        if parts.scheme == "https":
            context = ssl.create_default_context()
            stream = context.wrap_socket(stream, server_hostname=host)
        yield stream
    finally:
        stream.close()


def _resolve(host: str, port: int, field: str) -> str:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise RequestError(field, f"the host name {host!r} does not resolve") from error
    addresses = [str(entry[4][0]) for entry in found]
    if host.lower() not in envs.media_hosts():
        # One private address is enough: the client could pick the order.
        for address in addresses:
            if not is_public(address):
                raise RequestError(
                    field,
                    f"{host!r} is or resolves to an address that is not public; "
                    f"{envs.MEDIA_HOSTS.name} can allow the host",
                )
    return addresses[0]


def _get(stream: socket.socket, parts: SplitResult) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(parts.netloc)
    connection.sock = stream
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = {"Accept-Encoding": "identity", "User-Agent": "sglang"}
    connection.request("GET", target, headers={"Host": parts.netloc, **headers})
    return connection.getresponse()


def _read(
    answer: http.client.HTTPResponse,
    field: str,
    max_bytes: int,
    stream: socket.socket,
    deadline: float,
) -> bytes:
    if answer.status != 200:
        raise RequestError(field, f"the URL answers HTTP {answer.status}")
    too_large = RequestError(field, f"the URL holds more than {max_bytes} bytes")
    length = answer.getheader("Content-Length", "")
    if length.isdigit() and int(length) > max_bytes:
        raise too_large
    body = bytearray()
    while True:
        stream.settimeout(_left(deadline))
        chunk = answer.read1(_CHUNK)
        if not chunk:
            return bytes(body)
        body += chunk
        if len(body) > max_bytes:
            raise too_large


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _shown(parts: SplitResult) -> str:
    return f"{parts.scheme}://{parts.hostname}"
