# SPDX-License-Identifier: Apache-2.0
"""A small real HTTP server that does what a request tells it, for tests of the gateway.

    python small_server.py TITLE --host HOST --port PORT

Run as a child process, in place of a server that takes a minute to start. A POST body
``{"do": ACTION}`` chooses what happens; a GET is echoed.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

TITLE = sys.argv[1]
state = {"sick": False, "left": 0}


async def health(_: Request) -> Response:
    if state["sick"]:
        return JSONResponse({"error": "worker exited"}, 503)
    return JSONResponse({"status": "ok", "left": state["left"]})


async def events(count: int, dies: bool) -> AsyncIterator[bytes]:
    for index in range(count):
        yield b'data: {"index": %d}\n\n' % index
        await asyncio.sleep(0.05)
    if dies:
        yield b'data: {"ind'
        await asyncio.sleep(0.05)
        os._exit(5)
    yield b"data: [DONE]\n\n"


async def act(request: Request) -> Response:
    body = await request.body()
    action = (await request.json())["do"] if body else "echo"
    if action in ("stream", "die in a stream"):
        media = "text/event-stream"
        dies = action == "die in a stream"
        return StreamingResponse(events(3, dies), media_type=media)
    if action == "die":
        os._exit(5)
    if action == "get sick":
        state["sick"] = True
    if action == "wait":
        while not await request.is_disconnected():
            await asyncio.sleep(0.02)
        state["left"] += 1
    if action == "fail like the language model runtime":
        fields = {"object": "error", "message": "no such thing", "param": "top_p"}
        return JSONResponse({**fields, "type": "BadRequestError", "code": 400}, 400)
    if action == "fail like the diffusion runtime":
        return JSONResponse({"detail": "size: 7 given"}, 400)
    return JSONResponse(
        {
            "title": TITLE,
            "pid": os.getpid(),
            "method": request.method,
            "target": request.scope["raw_path"].decode(),
            "query": request.scope["query_string"].decode(),
            "headers": dict(request.headers),
            "length": len(body),
        },
        headers={"x-upstream": TITLE},
    )


if __name__ == "__main__":
    port = int(sys.argv[sys.argv.index("--port") + 1])
    methods = ["GET", "POST", "DELETE"]
    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/health_generate", health),
            Route("/{path:path}", act, methods=methods),
        ]
    )
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
