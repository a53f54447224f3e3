# SPDX-License-Identifier: Apache-2.0
"""A field that a family declares passes every route, with nothing said of it in http/.

The family is made up: one field that no other has, one that the protocol knows under
the same name, and no task types.
"""

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import pytest
from fastapi import FastAPI, Request
from PIL import Image
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from sglang_ext_gen.http import edits, images, videos
from sglang_ext_gen.http.middleware import RequestGuard
from sglang_ext_gen.http.served_model import ServedModel
from sglang_ext_gen.request.fields import RequestField, check_given

TABLE = (
    RequestField("prompt", "strs", "Text."),
    RequestField("swirl", "floats", "Invented.", minimum=0, maximum=1),
    RequestField("motto", "str", "Invented.", max_length=5),
    RequestField("background", "str", "The family's own.", choices=("sea", "sky")),
)
SOURCES = (RequestField("image_path", "strs", "Pictures.", interfaces="cli"),)


def check(values: Mapping[str, Any]) -> dict[str, Any]:
    return check_given((*TABLE, *SOURCES), values)


@pytest.fixture(scope="module")
def client() -> TestClient:
    model = ServedModel(
        title="Made up",
        table=TABLE,
        routes=frozenset({images.PATH, edits.PATH, videos.PATH}),
        check=check,
    )
    app = FastAPI(middleware=[Middleware(RequestGuard, model=model)])

    # An edit arrives as a generation.
    @app.post(images.PATH)
    @app.post(videos.PATH)
    async def echo(request: Request) -> Any:
        body = await request.json()
        if body["prompt"] == "be refused in the worker":
            raise RuntimeError("Error executing request 8d-1: image_path: too dark")
        return body

    return TestClient(app)


def picture() -> bytes:
    stream = BytesIO()
    Image.new("RGB", (4, 2)).save(stream, "PNG")
    return stream.getvalue()


def post(client: TestClient, path: str, as_form: bool, **fields: Any) -> Any:
    body = {"prompt": "a cat", **fields}
    if not as_form:
        return client.post(path, json=body)
    name = "image" if path == edits.PATH else "input_reference"
    return client.post(path, data=body, files={name: ("a.png", picture())})


ROUTES = pytest.mark.parametrize(
    ("path", "as_form"),
    [
        (images.PATH, False),
        (edits.PATH, True),
        (videos.PATH, False),
        (videos.PATH, True),
    ],
)


@ROUTES
def test_a_familys_field_passes_in_its_type(client, path, as_form):
    given = {"swirl": [0, 0.5], "motto": "12", "background": "sea"}
    sent = {**given, "swirl": ["0", "0.5"]} if as_form else given
    reply = post(client, path, as_form, **sent)
    assert reply.status_code == 200, reply.text
    assert reply.json().items() >= {"prompt": "a cat", **given}.items()
    assert "task_type" not in reply.json()


@ROUTES
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("swirl", [2], "a list of finite numbers from 0 to 1"),
        ("motto", "too long", "8 characters given, at most 5 allowed"),
        ("background", "auto", "one of sea, sky"),
        ("whirl", "1", "known fields: background, "),
    ],
)
def test_a_familys_field_is_checked(client, path, as_form, name, value, message):
    reply = post(client, path, as_form, **{name: value})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["param"] == name
    assert message in error["message"]


@pytest.mark.parametrize(
    ("path", "name"), [(edits.PATH, "image"), (videos.PATH, "input_reference")]
)
def test_a_refusal_of_the_worker_has_the_clients_name(client, path, name):
    reply = post(client, path, True, prompt="be refused in the worker")
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["message"], error["param"]) == (f"{name}: too dark", name)
