# SPDX-License-Identifier: Apache-2.0
"""The middleware in front of stock's routes, and which routes stay open.

It sits innermost, next to the router: CORS headers, metrics and the wait for the
warm-up apply to refusals as to everything else. It lets reading requests pass, checks
those routes that the family serves, and refuses every other route that runs or changes
something, because stock's other routes would go round the checks.
"""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sglang_ext_gen import envs
from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.http import bodies, edits, images, uploads, videos
from sglang_ext_gen.http.errors import (
    OpenAIErrors,
    Refusal,
    method_not_allowed,
    shorten,
)
from sglang_ext_gen.http.served_model import ServedModel, served_model
from sglang_ext_gen.media import limits, upload_folders
from sglang_ext_gen.media.images import as_paths, check_references
from sglang_ext_gen.request.fields import Kind

logger = logging.getLogger(__name__)

_READING = ("GET", "HEAD", "OPTIONS")
# Route -> the family's name of a field -> the client's.
_SPELLINGS = {edits.PATH: edits.SPELLING, videos.PATH: videos.SPELLING}
# A control route's fields that an error may name.
_LORA_FIELDS = ("lora_alpha", "lora_nickname", "lora_path", "strength", "target")

# Stock routes for the operator. Some load weights, adapters or pictures from a path
# that the client names, one unpickles what the client sends.
CONTROL_ROUTES = frozenset(
    {
        "/get_weights_checksum",
        "/release_memory_occupation",
        "/resume_memory_occupation",
        "/rollout/generate",
        "/update_weights_from_disk",
        "/update_weights_from_tensor",
        "/update_weights_from_tensor_checker",
        "/v1/merge_lora_weights",
        "/v1/set_lora",
        "/v1/unmerge_lora_weights",
    }
)


def install(app: Starlette, server_args: Any, **_: Any) -> None:
    """Put the guard into stock's application if it serves one of our families.

    A hook that runs after ``create_app``, with its result and its arguments.
    """
    model = served_model(server_args)
    if model is None:
        return
    # add_middleware would put it outermost, where CORS does not reach its refusals.
    app.user_middleware.append(Middleware(RequestGuard, model=model))
    logger.info("Requests for %s are checked before they are queued", model.title)


class RequestGuard:
    """ASGI middleware: checks requests, restates errors.

    Args:
        app: What runs a request that passes.
        model: The model behind this server.
    """

    def __init__(self, app: ASGIApp, model: ServedModel) -> None:
        self._app = app
        self._model = model
        self._names = {name: name for name in (*model.fields, *_LORA_FIELDS)}
        known = (*images.FIELDS, *edits.FIELDS, *model.table)
        self._kinds: dict[str, Kind] = {field.name: field.kind for field in known}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            # Closing before accepting is answered with HTTP 403.
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        reply = OpenAIErrors(send, self._names | _SPELLINGS.get(scope["path"], {}))
        folders: list[Path] = []
        try:
            async with reply.answered(scope):
                admitted = await self._admit(scope, receive, folders)
                await self._app(*admitted, reply)
        finally:
            # A video job that was accepted reads its source later and deletes it.
            if scope["path"] != videos.PATH or reply.status >= 400:
                for folder in folders:
                    upload_folders.release(folder / "any")

    async def _admit(
        self, scope: Scope, receive: Receive, folders: list[Path]
    ) -> tuple[Scope, Receive]:
        """Check a request; returns it in the form that stock shall see."""
        method, path = scope["method"], scope["path"]
        if method == "POST" and path in self._model.routes:
            return await self._checked(scope, receive, folders)
        refusal = self._refusal(method, path)
        if refusal is None:
            return scope, receive
        await bodies.discard_body(Headers(scope=scope), receive)
        raise refusal

    def _refusal(self, method: str, path: str) -> Refusal | None:
        """Why a request that is not checked may not pass; None where it may."""
        is_reading = method in _READING
        if path in self._model.routes:
            is_job_list = path == videos.PATH and is_reading
            if method == "OPTIONS" or is_job_list:
                return None
            return method_not_allowed(method, "POST")
        if is_reading or (method == "DELETE" and self._is_video_job(path)):
            return None
        if path not in CONTROL_ROUTES:
            message = (
                f"{method} {shorten(path)} is not served for {self._model.title}; "
                f"use POST {', '.join(sorted(self._model.routes))}"
            )
            return Refusal(404, message, code="route_not_served")
        if self._model.allows_control:
            return None
        message = (
            f"{path} is closed on this server; its operator can open it with "
            f"{envs.ALLOW_CONTROL_ROUTES.name}=1"
        )
        return Refusal(403, message, code="route_closed")

    def _is_video_job(self, path: str) -> bool:
        is_served = videos.PATH in self._model.routes
        return is_served and path.startswith(f"{videos.PATH}/")

    async def _checked(
        self, scope: Scope, receive: Receive, folders: list[Path]
    ) -> tuple[Scope, Receive]:
        """The request with a body of checked fields; an edit becomes a generation."""
        path = scope["path"]
        form = await self._read(scope, receive, folders)
        if path == edits.PATH:
            checked = await edits.checked_edit_body(form, self._model, folders[0])
            await _check_pictures(checked["image_path"], edits.SPELLING["image_path"])
            scope = {**scope, "path": images.PATH, "raw_path": images.PATH.encode()}
        elif path == videos.PATH:
            checked = videos.checked_video_body(form, self._model)
            field = videos.SPELLING["image_path"]
            await _check_pictures(checked.get(field), field)
        else:
            checked = images.checked_image_body(form.fields, self._model)
        return _with_body(scope, receive, json.dumps(checked).encode("ascii"))

    async def _read(
        self, scope: Scope, receive: Receive, folders: list[Path]
    ) -> uploads.Form:
        """The body: a form for an edit, for a video a form or JSON, else JSON."""
        path, headers = scope["path"], Headers(scope=scope)
        is_form = bodies.media_type(headers) == uploads.MEDIA_TYPE
        is_form = is_form and path != images.PATH
        limit = limits.MAX_UPLOAD_BODY_BYTES if is_form else limits.MAX_JSON_BODY_BYTES
        body = await bodies.read_body(headers, receive, limit)
        if not is_form and path != edits.PATH:
            given = bodies.read_json_object(headers, body)
            return uploads.Form(bodies.unwrap_fields(given))
        bodies.check_content_type(headers, uploads.MEDIA_TYPE)
        folders.append(upload_folders.new_folder())
        return await uploads.read_form(headers, body, self._kinds, folders[0])


async def _check_pictures(paths: str | list[str] | None, field: str) -> None:
    """Decode pictures in a thread: the request's own check then knows them.

    Raises:
        RequestError: One cannot be used; for ``field``.
    """
    try:
        await asyncio.to_thread(check_references, as_paths(paths), limits.MAX_IMAGES)
    except RequestError as error:
        raise RequestError(field, error.message) from error


def _with_body(scope: Scope, receive: Receive, body: bytes) -> tuple[Scope, Receive]:
    """The same request with another body."""
    scope = {**scope, "headers": list(scope["headers"])}
    headers = MutableHeaders(scope=scope)
    del headers["transfer-encoding"]
    headers["content-length"] = str(len(body))
    headers["content-type"] = "application/json"
    is_read = False

    async def replay() -> Message:
        nonlocal is_read
        if is_read:
            # Only the end of the connection is left to hear of.
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return scope, replay
