# SPDX-License-Identifier: Apache-2.0
"""The one port: an application that hands each request to the part that serves it.

Bodies are read to their end, within the limits that hold for every request, and handed
over as they are; the parts check what is in them. Answers are passed on as they come.
Errors are restated in OpenAI's format.

    POST /v1/chat/completions, /v1/completions            thinker
    /v1/images/..., /v1/videos/...                        generator
    GET  /v1/models, /health, /health_generate            answered here

Everything else is closed. The operator's routes of a part are reached at the part's own
address, on the machine itself.
"""

import asyncio
import json
import logging
import socket
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import httpx
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.gateway.upstream import HANG_SECONDS, Part
from sglang_ext_gen.http import bodies
from sglang_ext_gen.http.errors import (
    OpenAIErrors,
    Refusal,
    error_object,
    shorten,
)
from sglang_ext_gen.media import limits

logger = logging.getLogger(__name__)

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
_NOT_PASSED_ON = frozenset(
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
    """A client for talking to the parts.

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
    thinker: Part,
    generator: Part,
    client: httpx.AsyncClient,
    *,
    needs_thinker: bool,
    lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]],
) -> Starlette:
    """The application of the one port.

    Args:
        model: Name under which both parts are served.
        thinker: Answers chats.
        generator: Makes pictures and videos.
        client: From ``new_client``.
        needs_thinker: Whether the generator can do nothing without the thinker.
        lifespan: Runs the parts while the application runs.
    """
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

    async def health(_: Request) -> Response:
        return _health_reply(
            {part.title: part.problem for part in (thinker, generator)}
        )

    async def health_generate(_: Request) -> Response:
        parts = (thinker, generator)
        problems = await asyncio.gather(*(_deep_problem(client, p) for p in parts))
        titles = (part.title for part in parts)
        return _health_reply(dict(zip(titles, problems, strict=True)))

    to_thinker = Forward(client, thinker, methods=("POST",), check=_check_json_object)
    needed = (thinker,) if needs_thinker else ()
    to_generator = Forward(client, generator, needed=needed)
    return Starlette(
        routes=[
            Route("/health", health),
            Route("/health_generate", health_generate),
            Route("/v1/models", list_models),
            Route("/v1/models/{name:path}", show_model),
            *(Route(path, to_thinker) for path in THINKER_ROUTES),
            *(Route(path, to_generator) for path in GENERATOR_ROUTES),
            *(Route(f"{path}/{{_:path}}", to_generator) for path in GENERATOR_ROUTES),
            Route("/{_:path}", NotServed()),
        ],
        middleware=[Middleware(RestatedErrors)],
        lifespan=lifespan,
    )


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
        try:
            await self._app(scope, receive, reply)
        except ClientDisconnect:
            logger.info("%s %s: the client left", scope["method"], scope["path"])
        except RequestError as error:
            await reply.refuse(Refusal(400, str(error), param=error.field))
        except Refusal as refusal:
            await reply.refuse(refusal)
        except Exception as error:
            if reply.has_sent:
                raise
            logger.exception("%s %s failed", scope["method"], scope["path"])
            await reply.fail(error)


class Forward:
    """ASGI application: hands a request to a part and its answer back.

    Args:
        client: From ``new_client``.
        part: Whose requests they are.
        methods: The only ones that are allowed; none means that the part decides.
        check: Raises for a body that the part would answer with a failure of its own.
        needed: Further parts without which the answer would only be an error.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        part: Part,
        *,
        methods: tuple[str, ...] = (),
        check: Callable[[Headers, bytes], None] | None = None,
        needed: tuple[Part, ...] = (),
    ) -> None:
        self._client = client
        self._part = part
        self._methods = methods
        self._check = check
        self._needed = (part, *needed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        body = await bodies.read_body(headers, receive, limits.MAX_UPLOAD_BODY_BYTES)
        method = scope["method"]
        if self._methods and method not in self._methods:
            allowed = ", ".join(self._methods)
            raise Refusal(
                405,
                f"{method} given, expected {allowed}",
                code="method_not_allowed",
                headers=(("allow", allowed),),
            )
        if self._check is not None:
            # In a thread, because a body of 60 MB takes a while.
            await asyncio.to_thread(self._check, headers, body)
        for part in self._needed:
            if part.problem is not None:
                raise _unavailable(part, part.problem)
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        raw_path: bytes = scope["raw_path"].partition(b"?")[0] + query
        request = httpx.Request(
            method,
            httpx.URL(self._part.url).copy_with(raw_path=raw_path),
            headers=[
                pair
                for pair in headers.items()
                if pair[0] not in _NOT_PASSED_ON and pair[0] != "content-length"
            ],
            content=body,
        )
        answer = asyncio.create_task(self._relay(request, send))
        departure = asyncio.create_task(_until_the_client_leaves(receive))
        try:
            await asyncio.wait({answer, departure}, return_when="FIRST_COMPLETED")
            if not answer.done():
                # The part sees the connection close, and stops its work if it can.
                raise ClientDisconnect
            answer.result()
        finally:
            for task in (answer, departure):
                task.cancel()
            await asyncio.gather(answer, departure, return_exceptions=True)

    async def _relay(self, request: httpx.Request, send: Send) -> None:
        try:
            reply = await self._client.send(request, stream=True)
        except httpx.TransportError as error:
            reason = await self._part.explain(error)
            raise _unavailable(self._part, reason) from error
        try:
            headers = [
                (name.lower(), value)
                for name, value in reply.headers.raw
                if name.decode("latin-1").lower() not in _NOT_PASSED_ON
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
            reason = await self._part.explain(error)
            refusal = _unavailable(self._part, reason)
            body = error_object(refusal.status, refusal.message, code=refusal.code)
            held = b"data: " + json.dumps(body).encode("ascii") + _END_OF_EVENT
        await _send_some(send, held)


_END_OF_EVENT = b"\n\n"


def _check_json_object(headers: Headers, body: bytes) -> None:
    """The language model runtime fails on JSON that is no object.

    Raises:
        Refusal: 400 or 415.
        RequestError: A name is given twice.
    """
    bodies.check_content_type(headers)
    bodies.parse_json_object(body)


async def _send_some(send: Send, chunk: bytes) -> None:
    await send({"type": "http.response.body", "body": chunk, "more_body": True})


async def _until_the_client_leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _unavailable(part: Part, problem: str) -> Refusal:
    return Refusal(
        503,
        f"the {part.title} of this server {problem}",
        code=f"{part.title}_unavailable",
        headers=(("retry-after", "5"),),
    )


async def _deep_problem(client: httpx.AsyncClient, part: Part) -> str | None:
    if part.problem is not None:
        return part.problem
    try:
        reply = await client.get(f"{part.url}/health_generate", timeout=HANG_SECONDS)
    except httpx.TransportError as error:
        return await part.explain(error)
    if reply.status_code != 200:
        return f"failed a request of one token: HTTP {reply.status_code}"
    return None


def _health_reply(problems: dict[str, str | None]) -> Response:
    is_well = not any(problems.values())
    parts = {title: problem or "is ready" for title, problem in problems.items()}
    body = {"status": "ok" if is_well else "unhealthy", "parts": parts}
    return JSONResponse(body, 200 if is_well else 503)
