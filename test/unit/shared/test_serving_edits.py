# SPDX-License-Identifier: Apache-2.0
"""The form of an edit: what is read, what is refused, what stock gets."""

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from starlette.datastructures import Headers

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.request_fields import RequestField
from sglang_ext_gen.serving import edits
from sglang_ext_gen.serving.replies import Refusal
from sglang_ext_gen.serving.served_model import ServedModel

TABLE = (
    RequestField("prompt", "strs", "Text."),
    RequestField("seed", "int", "Seed.", minimum=0),
    RequestField("sigmas", "floats", "Levels.", minimum=0, maximum=1),
    RequestField("width", "int", "Width.", multiple_of=16),
    RequestField("height", "int", "Height.", multiple_of=16),
    RequestField("num_outputs_per_prompt", "int", "Outputs.", maximum=10),
)


def check(values: Mapping[str, Any]) -> dict[str, Any]:
    if "prompt" not in values:
        raise RequestError("prompt", "missing")
    return {
        field.name: field.check(values[field.name])
        for field in TABLE
        if values.get(field.name) is not None
    }


MODEL = ServedModel(
    title="Test",
    fields=frozenset(field.name for field in TABLE),
    routes=frozenset({edits.PATH}),
    check=check,
    table=TABLE,
)
PICTURE = ("image", ("a.png", b"\x89PNG", "image/png"))


def send(data: dict[str, Any], files: list[Any]) -> tuple[httpx.Request, dict]:
    """Check a form; returns what stock gets and the fields kept for the family."""
    given = httpx.Request("POST", "http://test", data=data, files=files)
    headers = Headers(dict(given.headers))

    async def run() -> tuple[tuple[str, bytes], dict]:
        form = await edits.checked_edit_form(headers, given.read(), MODEL)
        kept = edits.build_sampling_params(lambda request_id, **fields: fields, "id")
        return form, kept

    (kind, body), kept = asyncio.run(run())
    request = httpx.Request(
        "POST", "http://test", content=body, headers={"content-type": kind}
    )
    return request, kept


def test_fields_reach_the_family_in_their_types() -> None:
    data = {
        "prompt": "12",
        "seed": "3",
        "sigmas[]": ["1.0", "0.5"],
        "n": "2",
        "size": "64x32",
        "response_format": "b64_json",
        "model": "test-model",
    }
    request, kept = send(data, [PICTURE, PICTURE])
    assert kept == {
        "prompt": "12",
        "seed": 3,
        "sigmas": [1.0, 0.5],
        "num_outputs_per_prompt": 2,
        "width": 64,
        "height": 32,
    }
    body = request.read()
    assert body.count(b'name="image"; filename=') == 2
    assert b'name="response_format"\r\n\r\nb64_json' in body
    assert b"seed" not in body


def test_a_list_in_one_part() -> None:
    _, kept = send({"prompt": "a", "sigmas": "[1, 0.25]"}, [("image[]", PICTURE[1])])
    assert kept["sigmas"] == [1.0, 0.25]


def test_fields_of_one_task_are_not_seen_by_another() -> None:
    send({"prompt": "a", "seed": "3"}, [PICTURE])
    assert edits.build_sampling_params(lambda rid, **fields: fields, "id") == {}


@pytest.mark.parametrize(
    ("data", "files", "field"),
    [
        ({"prompt": "a"}, [("other", PICTURE[1])], "image"),
        ({"prompt": "a"}, [PICTURE] * 17, "image"),
        ({"prompt": "a", "seed": "many"}, [PICTURE], "seed"),
        ({"prompt": "a", "seed": ["1", "2"]}, [PICTURE], "seed"),
        ({"prompt": "a", "sigmas": "[2]"}, [PICTURE], "sigmas"),
        ({"seed": "1"}, [PICTURE], "prompt"),
        ({"prompt": "a"}, [PICTURE, ("mask", PICTURE[1])], "mask"),
        ({"prompt": "a", "url": "http://x"}, [PICTURE], "url"),
        ({"prompt": "a", "size": "64x33"}, [PICTURE], "size"),
    ],
)
def test_refused(data: dict[str, Any], files: list[Any], field: str) -> None:
    with pytest.raises(RequestError) as caught:
        send(data, files)
    assert caught.value.field == field


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(Refusal, match="what"):
        send({"prompt": "a", "what": "x"}, [PICTURE])


def test_no_form() -> None:
    with pytest.raises(Refusal, match="application/json"):
        edits.check_content_type(Headers({"content-type": "application/json"}))
    headers = Headers({"content-type": "multipart/form-data; boundary=x"})
    for body in (b"nonsense", b"--x\r\n\r\nno name\r\n--x--\r\n"):
        with pytest.raises((Refusal, RequestError)):
            asyncio.run(edits.checked_edit_form(headers, body, MODEL))
