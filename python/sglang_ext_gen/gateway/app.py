# SPDX-License-Identifier: Apache-2.0
"""The gateway's application: forwards each request to the server that answers it.

Bodies are read to their end, within the limits that hold for every request, and
forwarded as they are; the upstreams check what is in them. Answers are passed on as
they come. Errors are restated in OpenAI's format.

    POST /v1/chat/completions, /v1/completions            thinker
    /v1/images/..., /v1/videos/...                        generator
    GET  /v1/models, /health, /health_generate            answered here

Everything else is closed. The operator's routes of an upstream are reached at its own
address, on the machine itself.
"""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

import httpx
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sglang_ext_gen.gateway.upstream import Upstream
from sglang_ext_gen.http import bodies
from sglang_ext_gen.http.errors import (
    OpenAIErrors,
    Refusal,
    method_not_allowed,
    shorten,
)
from sglang_ext_gen.media import limits

# Of the language model runtime only what OpenAI's clients call to get text. Stock has
# many more routes; some load weights, and /generate takes what no guard has checked.
THINKER_ROUTES = ("/v1/chat/completions", "/v1/completions")
# The generator's own guard decides about everything below these.
GENERATOR_ROUTES = ("/v1/images", "/v1/videos")

# Asked after 15 silent seconds, and given up after three questions without an answer.
_NOTICE_A_DEAD_PEER = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]

# Headers that belong to one connection, and what each server says of itself.
_NOT_FORWARDED = frozenset(
    {
        "connection",
        "date",
        "expect",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "server",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


def new_client() -> httpx.AsyncClient:
    """A client for talking to the upstreams.

    An answer may take as long as it takes, but a machine that is gone is noticed. Each
    request has a connection of its own: a server may close an idle one at the moment it
    is used again.
    """
    transport = httpx.AsyncHTTPTransport(
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        socket_options=_NOTICE_A_DEAD_PEER,
        trust_env=False,
    )
    timeout = httpx.Timeout(None, connect=10.0)
    return httpx.AsyncClient(transport=transport, timeout=timeout, trust_env=False)


def make_app(
    model: str,
    thinker: Upstream,
    generator: Upstream,
    client: httpx.AsyncClient,
    *,
    needs_thinker: bool,
    lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]],
) -> Starlette:
    """The application of the gateway.

    Args:
        model: Name under which both upstreams are served.
        thinker: Answers chats.
        generator: Makes pictures and videos.
        client: From ``new_client``.
        needs_thinker: Whether the generator can do nothing without the thinker.
        lifespan: Runs the upstreams while the application runs.
    """
    to_thinker = Forward(client, thinker, takes_json=True)
    needed = (thinker,) if needs_thinker else ()
    to_generator = Forward(client, generator, needed=needed)
    return Starlette(
        routes=[
            *_health_routes((thinker, generator)),
            *_model_routes(model),
            *(Route(path, to_thinker) for path in THINKER_ROUTES),
            *(Route(path, to_generator) for path in GENERATOR_ROUTES),
            *(Route(f"{path}/{{_:path}}", to_generator) for path in GENERATOR_ROUTES),
            Route("/{_:path}", NotServed()),
        ],
        middleware=[Middleware(RestatedErrors)],
        lifespan=lifespan,
    )


def _model_routes(model: str) -> list[Route]:
    created = int(time.time())
    card = {"id": model, "object": "model", "created": created, "owned_by": "sglang"}

    async def list_models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [card]})

    async def show_model(request: Request) -> Response:
        name = request.path_params["name"]
        if name != model:
            message = f"model: {shorten(name)!r} given, this server has {model!r}"
            raise Refusal(404, message, param="model", code="model_not_found")
        return JSONResponse(card)

    return [
        Route("/v1/models", list_models),
        Route("/v1/models/{name:path}", show_model),
    ]


def _health_routes(upstreams: Sequence[Upstream]) -> list[Route]:
    async def health(_: Request) -> Response:
        return _health_reply(upstreams, [each.problem for each in upstreams])

    async def health_generate(_: Request) -> Response:
        asked = (each.deep_problem() for each in upstreams)
        return _health_reply(upstreams, await asyncio.gather(*asked))

    return [Route("/health", health), Route("/health_generate", health_generate)]


class NotServed:
    """ASGI application: refuses a request for a route that is not open here."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await bodies.discard_body(Headers(scope=scope), receive)
        served = ", ".join((*THINKER_ROUTES, *(f"{r}/..." for r in GENERATOR_ROUTES)))
        message = (
            f"{scope['method']} {shorten(scope['path'])} is not served here; use "
            f"{served}, /v1/models or /health"
        )
        raise Refusal(404, message, code="route_not_served")


class RestatedErrors:
    """ASGI middleware: every error in OpenAI's format."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        reply = OpenAIErrors(send, {})
        async with reply.answered(scope):
            await self._app(scope, receive, reply)


class Forward:
    """ASGI application: forwards a request to an upstream, and its answer back.

    Args:
        client: From ``new_client``.
        upstream: Whose requests they are.
        takes_json: Whether it takes nothing but a POST with one JSON object, and fails
            on anything else.
        needed: Further upstreams without which the answer would only be an error.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        upstream: Upstream,
        *,
        takes_json: bool = False,
        needed: tuple[Upstream, ...] = (),
    ) -> None:
        self._client = client
        self._upstream = upstream
        self._takes_json = takes_json
        self._needed = (upstream, *needed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        body = await bodies.read_body(headers, receive, limits.MAX_UPLOAD_BODY_BYTES)
        if self._takes_json:
            if scope["method"] != "POST":
                raise method_not_allowed(scope["method"], "POST")
            # In a thread, because a body of 60 MB takes a while.
            await asyncio.to_thread(bodies.read_json_object, headers, body)
        for upstream in self._needed:
            if upstream.problem is not None:
                raise _unavailable(upstream, upstream.problem)
        answer = asyncio.create_task(self._relay(self._request(scope, body), send))
        departure = asyncio.create_task(_until_the_client_leaves(receive))
        try:
            await asyncio.wait({answer, departure}, return_when="FIRST_COMPLETED")
            if not answer.done():
                # The upstream sees the connection close, and stops its work if it can.
                raise ClientDisconnect
            answer.result()
        finally:
            for task in (answer, departure):
                task.cancel()
            await asyncio.gather(answer, departure, return_exceptions=True)

    def _request(self, scope: Scope, body: bytes) -> httpx.Request:
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        raw_path: bytes = scope["raw_path"].partition(b"?")[0] + query
        headers = [
            (name, value)
            for name, value in Headers(scope=scope).items()
            if name not in _NOT_FORWARDED and name != "content-length"
        ]
        url = httpx.URL(self._upstream.url).copy_with(raw_path=raw_path)
        return httpx.Request(scope["method"], url, headers=headers, content=body)

    async def _relay(self, request: httpx.Request, send: Send) -> None:
        try:
            reply = await self._client.send(request, stream=True)
        except httpx.TransportError as error:
            reason = await self._upstream.explain(error)
            raise _unavailable(self._upstream, reason) from error
        try:
            headers = [
                (name.lower(), value)
                for name, value in reply.headers.raw
                if name.decode("latin-1").lower() not in _NOT_FORWARDED
            ]
            await send(
                {
                    "type": "http.response.start",
                    "status": reply.status_code,
                    "headers": headers,
                }
            )
            if reply.headers.get("content-type", "").startswith("text/event-stream"):
                await self._relay_events(reply, send)
            else:
                # Where this breaks, the connection to the client breaks, too: the
                # length that was announced is not reached.
                async for chunk in reply.aiter_raw():
                    await _send_some(send, chunk)
            await send({"type": "http.response.body", "body": b""})
        finally:
            await reply.aclose()

    async def _relay_events(self, reply: httpx.Response, send: Send) -> None:
        """Whole events only, so that an error can follow in the middle of a stream."""
        held = b""
        try:
            async for chunk in reply.aiter_raw():
                whole, _, held = (held + chunk).rpartition(_END_OF_EVENT)
                if whole:
                    await _send_some(send, whole + _END_OF_EVENT)
        except httpx.TransportError as error:
            reason = await self._upstream.explain(error)
            body = json.dumps(_unavailable(self._upstream, reason).body())
            held = b"data: " + body.encode("ascii") + _END_OF_EVENT
        await _send_some(send, held)


_END_OF_EVENT = b"\n\n"


async def _send_some(send: Send, chunk: bytes) -> None:
    await send({"type": "http.response.body", "body": chunk, "more_body": True})


async def _until_the_client_leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _unavailable(upstream: Upstream, problem: str) -> Refusal:
    return Refusal(
        503,
        f"the {upstream.title} of this server {problem}",
        code=f"{upstream.title}_unavailable",
        headers=((b"retry-after", b"5"),),
    )


def _health_reply(
    upstreams: Sequence[Upstream], problems: Sequence[str | None]
) -> Response:
    is_well = not any(problems)
    states = {
        upstream.title: problem or "is ready"
        for upstream, problem in zip(upstreams, problems, strict=True)
    }
    body = {"status": "ok" if is_well else "unhealthy", "parts": states}
    return JSONResponse(body, 200 if is_well else 503)
