# SPDX-License-Identifier: Apache-2.0
"""From the bytes of a request to one JSON object.

Stricter than stock where leniency hides a mistake: a name given twice, a body that is
no object, an encoding that nobody declared. ``NaN`` and ``Infinity`` do parse, so that
the check of the field they were given for can name it.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.http.errors import Refusal, shorten
from sglang_ext_gen.media import limits

# Objects in which OpenAI-compatible clients wrap fields that OpenAI does not have.
_WRAPPERS = ("extra_body", "extra_json", "extra_args", "extra_params")


async def read_body(headers: Headers, receive: Receive, limit: int) -> bytes:
    """Read a request body of at most ``limit`` bytes.

    Raises:
        Refusal: 413 when it is longer, 408 when it does not arrive in time.
        ClientDisconnect: The client left before the end.
    """
    too_large = Refusal(
        413,
        f"the body is larger than the {limit} bytes that are allowed",
        code="request_too_large",
    )
    if _declared_length(headers) > limits.MAX_DISCARDED_BODY_BYTES:
        raise too_large
    try:
        async with asyncio.timeout(limits.MAX_BODY_SECONDS):
            body = await _read_or_discard(receive, limit)
    except TimeoutError as error:
        message = f"the body did not arrive within {limits.MAX_BODY_SECONDS:g} s"
        raise Refusal(408, message, code="request_timeout") from error
    if body is None:
        raise too_large
    return body


async def discard_body(headers: Headers, receive: Receive) -> None:
    """Read and throw away the body of a refused request; raises as ``read_body``."""
    await read_body(headers, receive, limits.MAX_DISCARDED_BODY_BYTES)


async def _read_or_discard(receive: Receive, limit: int) -> bytes | None:
    """The body, or ``None`` when it is longer than ``limit``."""
    body = bytearray()
    length = 0
    while length <= limits.MAX_DISCARDED_BODY_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        length += len(chunk)
        if length <= limit:
            body += chunk
        if not message.get("more_body", False):
            break
    return bytes(body) if length <= limit else None


def _declared_length(headers: Headers) -> int:
    text = headers.get("content-length", "0")
    return int(text) if text.isdecimal() else 0


def media_type(headers: Headers) -> str:
    """What a body is declared as, without parameters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def check_content_type(headers: Headers, expected: str = "application/json") -> None:
    """Raise unless the body is declared as ``expected``, with no encoding on top.

    Raises:
        Refusal: 415, naming the header.
    """
    encoding = headers.get("content-encoding", "identity")
    if media_type(headers) != expected:
        given = shorten(headers.get("content-type", ""))
        message = f"Content-Type: {given!r} given, expected {expected}"
    elif encoding.lower() != "identity":
        given = shorten(encoding)
        message = f"Content-Encoding: {given!r} given, expected no encoding"
    else:
        return
    raise Refusal(415, message, code="unsupported_media_type")


def read_json_object(headers: Headers, body: bytes) -> dict[str, Any]:
    """Parse a body that must be declared as JSON, and be one object in UTF-8.

    Raises:
        Refusal: 415; 400, the message says where the JSON ends to make sense.
        RequestError: A name is given twice.
    """
    check_content_type(headers)
    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=_unique_names)
    except RequestError:
        raise
    except RecursionError as error:
        raise _bad_json("it is nested too deeply") from error
    except ValueError as error:
        raise _bad_json(str(error)) from error
    if not isinstance(value, dict):
        raise _bad_json(f"a {type(value).__name__} given, expected an object")
    return value


def _bad_json(reason: str) -> Refusal:
    message = f"the body is not a JSON object: {reason}"
    return Refusal(400, message, code="invalid_json")


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise RequestError(shorten(name), "given twice, expected once")
        result[name] = value
    return result


def unwrap_fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """Lift the fields inside ``extra_body`` and its like to the top.

    ``null`` means not given, at the top and inside.

    Raises:
        RequestError: A wrapper is no object, or a field is given in two places.
    """
    fields = {
        name: value
        for name, value in body.items()
        if value is not None and name not in _WRAPPERS
    }
    for wrapper in _WRAPPERS:
        wrapped = body.get(wrapper)
        if wrapped is None:
            continue
        if not isinstance(wrapped, dict):
            kind = type(wrapped).__name__
            raise RequestError(wrapper, f"a {kind} given, expected an object")
        for name, value in wrapped.items():
            if value is None:
                continue
            if name in fields:
                place = f"given twice, the second time in {wrapper}; expected once"
                raise RequestError(shorten(name), place)
            fields[name] = value
    return fields
