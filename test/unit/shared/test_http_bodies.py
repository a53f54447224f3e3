# SPDX-License-Identifier: Apache-2.0
"""Bytes of a request -> one JSON object: what is refused, and with which status."""

import asyncio
import json
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Message

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.http import bodies
from sglang_ext_gen.http.errors import Refusal
from sglang_ext_gen.media import limits


class Sender:
    """An ASGI ``receive`` that gives prepared messages, then stalls."""

    def __init__(self, *messages: Message) -> None:
        self.messages = list(messages)

    async def __call__(self) -> Message:
        if not self.messages:
            await asyncio.sleep(60)
        return self.messages.pop(0)


def part(body: bytes, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


JSON = Headers({"content-type": "application/json"})


def read(receive: Sender, limit: int = 8, **headers: str) -> bytes:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return asyncio.run(bodies.read_body(Headers(named), receive, limit))


def test_a_body_in_parts_is_joined():
    assert read(Sender(part(b"1234", more=True), part(b"5678"))) == b"12345678"


def test_a_long_body_is_read_to_its_end_before_it_is_refused():
    receive = Sender(part(b"12345", more=True), part(b"6789", more=True), part(b"0"))
    with pytest.raises(Refusal, match="larger than the 8 bytes") as caught:
        read(receive)
    assert caught.value.status == 413
    assert receive.messages == []


def test_a_body_declared_as_endless_is_not_read():
    receive = Sender(part(b"1234"))
    with pytest.raises(Refusal) as caught:
        read(receive, content_length=str(limits.MAX_DISCARDED_BODY_BYTES + 1))
    assert caught.value.status == 413
    assert len(receive.messages) == 1


def test_a_stalled_body_times_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "MAX_BODY_SECONDS", 0.05)
    with pytest.raises(Refusal, match="did not arrive within") as caught:
        read(Sender(part(b"1", more=True)))
    assert caught.value.status == 408


def test_a_client_that_leaves_gets_no_answer():
    with pytest.raises(ClientDisconnect):
        read(Sender(part(b"1", more=True), {"type": "http.disconnect"}))


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON; charset=utf-8"]
)
def test_json_content_types(content_type: str):
    bodies.check_content_type(Headers({"content-type": content_type}))


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({}, "Content-Type"),
        ({"content-type": "text/plain"}, "Content-Type"),
        ({"content-type": "multipart/form-data; boundary=x"}, "Content-Type"),
        (
            {"content-type": "application/json", "content-encoding": "gzip"},
            "Content-Encoding",
        ),
    ],
)
def test_other_content_types_are_refused(headers: dict[str, str], named: str):
    with pytest.raises(Refusal, match=named) as caught:
        bodies.check_content_type(Headers(headers))
    assert caught.value.status == 415


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "Expecting value"),
        (b'{"prompt": "a', "Unterminated string"),
        (b'{"prompt": "a"} {}', "Extra data"),
        (b"\xff\xfe{}", "utf-8"),
        (b'["prompt"]', "a list given"),
        (b"null", "a NoneType given"),
        (b"NaN", "a float given"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "digits"),
    ],
)
def test_bodies_that_are_no_json_object(body: bytes, reason: str):
    with pytest.raises(Refusal, match=reason) as caught:
        bodies.read_json_object(JSON, body)
    assert caught.value.status == 400
    assert caught.value.code == "invalid_json"


def test_a_name_given_twice_is_named():
    with pytest.raises(RequestError, match="n: given twice"):
        bodies.read_json_object(JSON, b'{"n": 1, "prompt": "a", "n": 2}')


def test_wrappers_are_lifted_and_null_is_unset():
    body = {
        "prompt": "a",
        "seed": None,
        "extra_body": {"preset": "fast", "mu": None},
        "extra_args": {"seed": 3},
        "extra_json": None,
    }
    fields = bodies.unwrap_fields(body)
    assert fields == {"prompt": "a", "preset": "fast", "seed": 3}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"seed": 1, "extra_body": {"seed": 2}}, "seed"),
        ({"extra_body": {"mu": 1}, "extra_params": {"mu": 1}}, "mu"),
        ({"extra_body": json.dumps({"mu": 1})}, "extra_body"),
        ({"extra_args": [1]}, "extra_args"),
    ],
)
def test_unclear_wrappers_are_refused(body: dict[str, Any], field: str):
    with pytest.raises(RequestError) as caught:
        bodies.unwrap_fields(body)
    assert caught.value.field == field
