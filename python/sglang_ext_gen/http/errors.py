# SPDX-License-Identifier: Apache-2.0
"""Refusals and failures in OpenAI's error format.

    {"error": {"message": ..., "type": ..., "param": FIELD or null, "code": ...}}

Stock answers ``{"detail": text}``, ``{"detail": [pydantic errors]}``,
``{"error": text}``, ``{"object": "error", "message": text}`` or plain text: it depends
on which layer failed. ``OpenAIErrors`` restates each of them, and answers what is
raised.
"""

import json
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Message, Scope, Send

from sglang_ext_gen.errors import ExtGenError, RequestError, refusal_in
from sglang_ext_gen.media.limits import MAX_ECHOED_CHARACTERS

logger = logging.getLogger(__name__)

RawHeaders = tuple[tuple[bytes, bytes], ...]


class Refusal(ExtGenError):
    """A request that gets an error reply instead of an answer.

    Args:
        status: HTTP status of an error.
        message: What was given, what is allowed.
        param: The offending request field; ``None`` when no field is to blame.
        code: A word that a program can test for.
        headers: Further reply headers, such as ``Allow``.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str = "invalid_value",
        headers: RawHeaders = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """The body of the reply."""
        return error_object(self.status, self.message, self.param, self.code)


def method_not_allowed(given: str, allowed: str) -> Refusal:
    """The refusal of a method on a route that takes one other."""
    return Refusal(
        405,
        f"{given} given, expected {allowed}",
        code="method_not_allowed",
        headers=((b"allow", allowed.encode()),),
    )


def shorten(text: str) -> str:
    """``text`` cut to a length that is fit for a message."""
    if len(text) <= MAX_ECHOED_CHARACTERS:
        return text
    return text[: MAX_ECHOED_CHARACTERS - 3] + "..."


def error_object(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The body of an error reply."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": param, "code": code}
    return {"error": error}


def restate_error(
    status: int, body: bytes, names: Mapping[str, str]
) -> dict[str, Any] | None:
    """Say a stock error body in OpenAI's format.

    Args:
        status: HTTP status of the reply.
        body: Its body.
        names: Request fields -> what the client calls them. A ``RequestError`` that
            stock has turned into text starts with one of them.

    Returns:
        The new body, or ``None`` when the reply is best left as it is: it has the
        format already, or is a JSON object of another protocol.
    """
    try:
        reply = json.loads(body)
    except ValueError:
        text = body.decode("utf-8", "replace").strip()
        return error_object(status, text or f"HTTP {status}")
    if not isinstance(reply, dict):
        return error_object(status, json.dumps(reply))
    if reply.get("object") == "error":
        # The language model runtime: the same four keys, not wrapped.
        code = reply.get("code")
        code = None if code == status else code
        return error_object(status, reply["message"], reply.get("param"), code)
    detail = reply.get("detail", reply.get("error"))
    if isinstance(detail, str):
        name, _, reason = detail.partition(":")
        shown = names.get(name)
        if shown is None:
            return error_object(status, detail)
        return error_object(status, f"{shown}:{reason}", shown, "invalid_value")
    if isinstance(detail, list) and detail:
        return _restate_validation(status, detail[0])
    return None


def _restate_validation(status: int, problem: dict[str, Any]) -> dict[str, Any]:
    """One entry of a pydantic error list: ``{"loc": ["body", FIELD], "msg": ...}``."""
    path = [str(part) for part in problem["loc"][1:]]
    param = ".".join(path) or None
    message = f"{param}: {problem['msg']}" if param else problem["msg"]
    return error_object(status, message, param, "invalid_value")


class OpenAIErrors:
    """An ASGI ``send`` that holds back error replies until they can be restated.

    Args:
        send: Where replies go.
        names: Request fields -> what the client calls them.

    Attributes:
        status: HTTP status of the application's reply; 500 where there is none.
    """

    def __init__(self, send: Send, names: Mapping[str, str]) -> None:
        self._send = send
        self._names = names
        self._held: Message | None = None
        self._body = bytearray()
        self._has_sent = False
        self.status = 500

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status >= 400:
                self._held = message
                return
        if self._held is None:
            self._has_sent = True
            await self._send(message)
            return
        self._body += message.get("body", b"")
        if not message.get("more_body", False):
            await self._restate(self._held)

    @asynccontextmanager
    async def answered(self, scope: Scope) -> AsyncIterator[None]:
        """Answer what the block raises, unless the reply has begun or nobody waits."""
        try:
            yield
        except ClientDisconnect:
            logger.info("%s %s: the client left", scope["method"], scope["path"])
        except Exception as error:
            if self._has_sent:
                raise
            refusal = self._refusal_of(error)
            if refusal is None:
                logger.exception("%s %s failed", scope["method"], scope["path"])
                reason = str(error) or type(error).__name__
                refusal = Refusal(500, reason, code="internal_error")
            await self._reply(refusal.status, refusal.body(), refusal.headers)

    def _refusal_of(self, error: Exception) -> Refusal | None:
        """The refusal that an exception is or carries; None where the server failed."""
        if isinstance(error, Refusal):
            return error
        if isinstance(error, RequestError):
            return Refusal(400, str(error), param=error.field)
        refused = refusal_in(str(error), self._names)
        if refused is None:
            return None
        name = self._names[refused.field]
        return Refusal(400, f"{name}: {refused.message}", param=name)

    async def _restate(self, start: Message) -> None:
        body = restate_error(start["status"], bytes(self._body), self._names)
        if body is not None:
            kept = tuple(
                (name, value)
                for name, value in start["headers"]
                if name.lower() not in (b"content-length", b"content-type")
            )
            await self._reply(start["status"], body, kept)
            return
        self._has_sent = True
        await self._send(start)
        await self._send({"type": "http.response.body", "body": bytes(self._body)})

    async def _reply(
        self, status: int, body: dict[str, Any], headers: RawHeaders
    ) -> None:
        payload = json.dumps(body).encode("ascii")
        fields = [
            *headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(payload)),
        ]
        self._has_sent = True
        await self._send(
            {"type": "http.response.start", "status": status, "headers": fields}
        )
        await self._send({"type": "http.response.body", "body": payload})
