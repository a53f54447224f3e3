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
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sglang_ext_gen import envs
from sglang_ext_gen.errors import RequestError, refusal_in
from sglang_ext_gen.http import bodies, edits, images, uploads, videos
from sglang_ext_gen.http.errors import OpenAIErrors, Refusal, shorten
from sglang_ext_gen.http.served_model import ServedModel, ServerArgs, served_model
from sglang_ext_gen.media import limits, upload_folders
from sglang_ext_gen.media.images import as_paths, check_references

logger = logging.getLogger(__name__)

_READING = ("GET", "HEAD", "OPTIONS")
# Route -> the family's name of a field -> the client's.
_SPELLINGS = {edits.PATH: edits.SPELLING, videos.PATH: videos.SPELLING}
# A control route's fields that an error may name.
_LORA_FIELDS = ("lora_alpha", "lora_nickname", "lora_path", "strength", "target")

# Stock routes for the operator. Some load weights or adapters from a path that the
# client names, one unpickles what the client sends.
CONTROL_ROUTES = frozenset(
    {
        "/get_weights_checksum",
        "/release_memory_occupation",
        "/resume_memory_occupation",
        "/update_weights_from_disk",
        "/update_weights_from_tensor",
        "/update_weights_from_tensor_checker",
        "/v1/merge_lora_weights",
        "/v1/set_lora",
        "/v1/unmerge_lora_weights",
    }
)


def install(app: Starlette, server_args: ServerArgs, **_: Any) -> None:
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
        self._kinds = images.field_kinds(model)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            # Closing before accepting is answered with HTTP 403.
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        names = {name: name for name in (*self._model.fields, *_LORA_FIELDS)}
        reply = OpenAIErrors(send, names | _SPELLINGS.get(scope["path"], {}))
        folders: list[Path] = []
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await reply(message)

        asked_for = scope["path"]
        try:
            scope, receive = await self._admit(scope, receive, folders)
            await self._app(scope, receive, watched)
        except ClientDisconnect:
            logger.info("%s %s: the client left", scope["method"], scope["path"])
        except RequestError as error:
            await reply.refuse(Refusal(400, str(error), param=error.field))
        except Refusal as refusal:
            await reply.refuse(refusal)
        except Exception as error:
            if reply.has_sent:
                raise
            refused = refusal_in(str(error), self._model.fields)
            if refused is not None:
                name = names[refused.field]
                text = f"{name}: {refused.message}"
                await reply.refuse(Refusal(400, text, param=name))
                return
            logger.exception("%s %s failed", scope["method"], scope["path"])
            await reply.fail(error)
        finally:
            # A video job that was accepted reads its source later and deletes it.
            if asked_for != videos.PATH or status >= 400:
                for folder in folders:
                    upload_folders.release(folder / "any")

    async def _admit(
        self, scope: Scope, receive: Receive, folders: list[Path]
    ) -> tuple[Scope, Receive]:
        """Check a request; returns it in the form that stock shall see."""
        method, path = scope["method"], scope["path"]
        headers = Headers(scope=scope)
        if path in self._model.routes and method == "POST":
            if path == images.PATH:
                return await self._checked_image_request(scope, receive)
            return await self._checked_source_request(scope, receive, folders)
        is_job_list = path == videos.PATH and method in _READING
        if path in self._model.routes and method != "OPTIONS" and not is_job_list:
            await bodies.discard_body(headers, receive)
            raise Refusal(
                405,
                f"{method} given, expected POST",
                code="method_not_allowed",
                headers=(("allow", "POST"),),
            )
        if method in _READING:
            return scope, receive
        if method == "DELETE" and self._is_video_job(path):
            return scope, receive
        if path in CONTROL_ROUTES and self._model.allows_control:
            return scope, receive
        await bodies.discard_body(headers, receive)
        raise self._closed_route(method, path)

    async def _checked_image_request(
        self, scope: Scope, receive: Receive
    ) -> tuple[Scope, Receive]:
        headers = Headers(scope=scope)
        body = await bodies.read_body(headers, receive, limits.MAX_JSON_BODY_BYTES)
        bodies.check_content_type(headers)
        given = bodies.parse_json_object(body)
        checked = images.checked_image_body(given, self._model)
        return _with_body(scope, receive, json.dumps(checked).encode("ascii"))

    def _is_video_job(self, path: str) -> bool:
        is_served = videos.PATH in self._model.routes
        return is_served and path.startswith(f"{videos.PATH}/")

    async def _checked_source_request(
        self, scope: Scope, receive: Receive, folders: list[Path]
    ) -> tuple[Scope, Receive]:
        """An edit or a video: a form with sources, for a video also plain JSON."""
        headers = Headers(scope=scope)
        is_edit, is_form = scope["path"] == edits.PATH, uploads.is_form(headers)
        limit = limits.MAX_UPLOAD_BODY_BYTES if is_form else limits.MAX_JSON_BODY_BYTES
        body = await bodies.read_body(headers, receive, limit)
        if is_edit or is_form:
            bodies.check_content_type(headers, "multipart/form-data")
            folders.append(upload_folders.new_folder())
            form = await uploads.read_form(headers, body, self._kinds, folders[0])
        else:
            bodies.check_content_type(headers)
            form = uploads.Form(bodies.unwrap_fields(bodies.parse_json_object(body)))
        if is_edit:
            checked = await edits.checked_edit_body(form, self._model, folders[0])
            await _check_pictures(checked["image_path"], edits.SPELLING["image_path"])
            scope = {**scope, "path": images.PATH, "raw_path": images.PATH.encode()}
        else:
            checked = videos.checked_video_body(form, self._model)
            field = videos.SPELLING["image_path"]
            await _check_pictures(checked.get(field), field)
        return _with_body(scope, receive, json.dumps(checked).encode("ascii"))

    def _closed_route(self, method: str, path: str) -> Refusal:
        if path in CONTROL_ROUTES:
            message = (
                f"{path} is closed on this server; its operator can open it with "
                f"{envs.ALLOW_CONTROL_ROUTES.name}=1"
            )
            return Refusal(403, message, code="route_closed")
        served = ", ".join(sorted(self._model.routes))
        message = (
            f"{method} {shorten(path)} is not served for {self._model.title}; "
            f"use POST {served}"
        )
        return Refusal(404, message, code="route_not_served")


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
