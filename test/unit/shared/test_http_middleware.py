# SPDX-License-Identifier: Apache-2.0
"""The middleware alone: a small application stands in for stock's."""

import json
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException, Request, WebSocket
from fastapi.middleware.cors import CORSMiddleware
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from sglang_ext_gen.errors import ConfigError
from sglang_ext_gen.http import images
from sglang_ext_gen.http.middleware import CONTROL_ROUTES, RequestGuard, install
from sglang_ext_gen.http.served_model import ServedModel
from sglang_ext_gen.media import limits
from sglang_ext_gen.models.ideogram4 import request as ideogram4
from sglang_ext_gen.registry import find_family


def client(allows_control: bool = False) -> TestClient:
    model = ServedModel(
        title="Ideogram 4",
        table=ideogram4.REQUEST_FIELDS,
        routes=frozenset({images.PATH}),
        check=ideogram4.check_request,
        allows_control=allows_control,
    )
    app = stock_like_app()
    app.user_middleware.append(Middleware(RequestGuard, model=model))
    return TestClient(app, raise_server_exceptions=False)


def stock_like_app() -> FastAPI:
    app = FastAPI()
    app.add_middleware(CORSMiddleware, allow_origins=["*"])

    @app.post(images.PATH)
    async def generate(request: Request) -> Any:
        body = await request.json()
        if body["prompt"] == "fail in the worker":
            raise RuntimeError("Model generation failed. Error from scheduler: boom")
        if body["prompt"] == "be refused in the worker":
            raise RuntimeError(
                "Model generation failed. Error from scheduler: Error executing "
                "grouped request 8d-1: prompt: refused: too long"
            )
        return {"length": request.headers["content-length"], "body": body}

    @app.post("/v1/set_lora")
    async def set_lora() -> Any:
        return {"status": "ok"}

    @app.get("/health")
    async def health() -> Any:
        return {"status": "ok"}

    @app.get("/detail")
    async def detail() -> Any:
        raise HTTPException(409, "not now", headers={"x-kept": "yes"})

    @app.get("/request-error")
    async def request_error() -> Any:
        raise HTTPException(400, "preset: too late")

    @app.get("/typed")
    async def typed(count: int) -> Any:
        return count

    @app.get("/text")
    async def text() -> Any:
        return JSONResponse({"error": "worker exited"}, 503)

    @app.get("/own")
    async def own() -> Any:
        return JSONResponse({"success": False, "message": "no"}, 400)

    @app.websocket("/v1/realtime_video/generate")
    async def realtime(socket: WebSocket) -> None:
        await socket.accept()

    return app


class StubServerArgs:
    """What is read of server arguments; the config's class is a stand-in."""

    model_path = "/models/ideogram"
    served_model_name = "my-ideogram"
    pipeline_config: object

    def __init__(self, family: str) -> None:
        row = find_family(family)
        file, _, name = row.pipeline_config.partition(":")
        module = f"{row.package}.{file}"
        self.pipeline_config = type(name, (), {"__module__": module})()


def test_install_guards_our_families_and_no_other(monkeypatch: pytest.MonkeyPatch):
    args = StubServerArgs("ideogram4")
    app = stock_like_app()
    install(app, args, worker_pids=(), disagg_server=None)
    served = TestClient(app)
    assert served.post(images.PATH, json={"prompt": "a", "n": 0}).status_code == 400
    body = {"prompt": "a", "model": "my-ideogram"}
    assert served.post(images.PATH, json=body).status_code == 200

    monkeypatch.setenv("SGLANG_EXT_GEN_DISABLE", "ideogram4")
    untouched = stock_like_app()
    count = len(untouched.user_middleware)
    install(untouched, args)
    assert len(untouched.user_middleware) == count


def test_the_operator_opens_control_routes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SGLANG_EXT_GEN_ALLOW_CONTROL_ROUTES", "1")
    app = stock_like_app()
    install(app, StubServerArgs("ideogram4"))
    assert TestClient(app).post("/v1/set_lora").status_code == 200
    monkeypatch.setenv("SGLANG_EXT_GEN_ALLOW_CONTROL_ROUTES", "yes")
    with pytest.raises(ConfigError, match="expected 0 or 1"):
        install(app, StubServerArgs("ideogram4"))


def error_of(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert int(response.headers["content-length"]) == len(response.content)
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_stock_sees_only_what_was_checked():
    response = client().post(images.PATH, json={"prompt": "é", "n": 2, "user": "u"})
    assert response.status_code == 200
    reply = response.json()
    assert reply["body"] == {"size": None, "prompt": "é", "n": 2}
    assert int(reply["length"]) == len(json.dumps(reply["body"]))


def test_a_refusal_has_openais_format_and_cors_headers():
    response = client().post(
        images.PATH, json={"prompt": "a", "n": 0}, headers={"Origin": "http://x"}
    )
    error = error_of(response, 400)
    assert error == {
        "message": "n: 0 given, expected an integer from 1 to 10",
        "type": "invalid_request_error",
        "param": "n",
        "code": "invalid_value",
    }
    assert response.headers["access-control-allow-origin"] == "*"


def test_unknown_field_missing_model_and_bad_json():
    served = client()
    error = error_of(served.post(images.PATH, json={"prompt": "a", "x": 1}), 400)
    assert (error["param"], error["code"]) == ("x", "unknown_field")
    headers = {"content-type": "application/json"}
    error = error_of(served.post(images.PATH, content=b"{", headers=headers), 400)
    assert (error["param"], error["code"]) == (None, "invalid_json")


def test_nesting_never_reaches_a_500():
    for depth in range(200, 1200, 25):
        body = b'{"seed": ' + b"[" * depth + b"]" * depth + b', "prompt": "a"}'
        headers = {"content-type": "application/json"}
        error_of(client().post(images.PATH, content=body, headers=headers), 400)


def test_a_large_body_and_another_content_type():
    served = client()
    prompt = "x" * limits.MAX_JSON_BODY_BYTES
    error = error_of(served.post(images.PATH, json={"prompt": prompt}), 413)
    assert error["code"] == "request_too_large"
    error = error_of(served.post(images.PATH, data={"prompt": "a"}), 415)
    assert "application/json" in error["message"]


def test_a_failure_of_the_worker_carries_its_reason():
    response = client().post(images.PATH, json={"prompt": "fail in the worker"})
    error = error_of(response, 500)
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert error["message"].endswith("boom")


def test_a_refusal_of_the_worker_names_the_field():
    response = client().post(images.PATH, json={"prompt": "be refused in the worker"})
    error = error_of(response, 400)
    assert (error["type"], error["param"]) == ("invalid_request_error", "prompt")
    assert error["message"] == "prompt: refused: too long"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_other_methods_are_not_allowed(method: str):
    response = client().request(method, images.PATH)
    assert error_of(response, 405)["message"] == f"{method} given, expected POST"
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "path",
    ["/v1/images/edits", "/v1/videos", "/v1/chat/completions", "/vertex_generate"],
)
def test_routes_that_the_family_does_not_serve(path: str):
    error = error_of(client().post(path, files={"image": b"x" * 100}), 404)
    assert error["code"] == "route_not_served"
    assert path in error["message"]
    assert images.PATH in error["message"]


def test_control_routes_are_closed_unless_opened():
    for path in CONTROL_ROUTES:
        error = error_of(client().post(path, json={"lora_path": "/etc"}), 403)
        assert error["code"] == "route_closed"
    assert client(allows_control=True).post("/v1/set_lora").status_code == 200


def test_websockets_are_closed():
    with (
        pytest.raises(WebSocketDisconnect),
        client().websocket_connect("/v1/realtime_video/generate"),
    ):
        pass


def test_stock_errors_are_restated():
    served = client()
    response = served.get("/detail")
    assert error_of(response, 409)["message"] == "not now"
    assert response.headers["x-kept"] == "yes"
    error = error_of(served.get("/typed?count=x"), 422)
    assert error["param"] == "count"
    error = error_of(served.get("/request-error"), 400)
    assert (error["message"], error["param"]) == ("preset: too late", "preset")
    assert error["code"] == "invalid_value"
    assert error_of(served.get("/text"), 503)["message"] == "worker exited"
    assert error_of(served.get("/nowhere"), 404)["message"] == "Not Found"


def test_other_replies_pass_unchanged():
    served = client()
    assert served.get("/health").json() == {"status": "ok"}
    response = served.get("/own")
    assert response.status_code == 400
    assert response.json() == {"success": False, "message": "no"}
