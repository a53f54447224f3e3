# SPDX-License-Identifier: Apache-2.0
"""Requests that a server must refuse, as one table a family.

``IDEOGRAM4`` and ``QWEN_IMAGE`` hold every case for ``POST /v1/images/generations`` and
the routes beside it; what is wrong for any family is in both. A case says what is sent
and which field the answer must name. All are sent to stock's application without a
model (``test/unit/shared/test_bad_requests.py``), ``LIVE`` also to real servers.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sglang_ext_gen.media.limits import MAX_JSON_BODY_BYTES

IMAGES = "/v1/images/generations"
JSON = {"content-type": "application/json"}

# Two steps without guidance: the cheapest request, sent between the bad ones.
GOOD: dict[str, Any] = {
    "prompt": "ok",
    "size": "256x256",
    "seed": 7,
    "preset": "V4_INSTANT_8",
    "num_inference_steps": 2,
    "output_format": "png",
    "response_format": "b64_json",
}
QWEN_IMAGE_GOOD: dict[str, Any] = {
    **{name: value for name, value in GOOD.items() if name != "preset"},
    "size": "128x128",
}


@dataclass(frozen=True)
class BadRequest:
    """One request and the refusal that it must get.

    Args:
        name: Identifier of the case.
        content: Body bytes.
        param: Field that the error must name; ``None`` when it is no field's fault.
        word: What the message must contain.
        status: Expected HTTP status.
        method: HTTP method.
        path: Path of the request.
        headers: Request headers.
    """

    name: str
    content: bytes
    param: str | None = None
    word: str = ""
    status: int = 400
    method: str = "POST"
    path: str = IMAGES
    headers: dict[str, str] = field(default_factory=lambda: JSON)


def changed(good: dict[str, Any], param: str, **fields: Any) -> BadRequest:
    """The good request with other values; ``...`` takes a field away."""
    body = {k: v for k, v in {**good, **fields}.items() if v is not ...}
    shown = ", ".join(f"{name}={_brief(value)}" for name, value in fields.items())
    return BadRequest(shown, json.dumps(body).encode(), param, param)


def _brief(value: Any) -> str:
    text = "missing" if value is ... else json.dumps(value)
    return text if len(text) <= 30 else f"{text[:20]}...({len(text)})"


def raw(name: str, content: bytes, word: str, status: int = 400, **other: Any):
    """A request that is no JSON object, or not the right kind of request."""
    return BadRequest(name, content, word=word, status=status, **other)


# Values that no family takes, to be refused in that field's name.
VALUES: dict[str, tuple[Any, ...]] = {
    "prompt": (
        *(..., None, "", "   ", 3, True, ["ok"], {"text": "ok"}),
        *("x" * 70_000, "\udcff"),
    ),
    "size": (
        *("0", "-1", "17", "4096", "abc", "256x", "x256", "256x256x256", "0x0"),
        *("-256x256", "255x256", "256.5x256", "16x16", 256, [256, 256]),
    ),
    "n": (0, -1, 11, 10**6, 1.5, "2", True, [1]),
    "seed": (-1, 1.5, 2**80, 10**400, "7", True, [1, 2], float("inf")),
    "num_inference_steps": (0, -1, 10**9, 1.5, "many", True, float("nan"), [4]),
    "guidance_scale": (
        *(float("nan"), float("inf"), float("-inf"), -1, 1e9, "high", [7.0], {}),
    ),
    "model": (3, ["a"], "m" * 1000),
    "generator_device": ("../etc", 0),
    "response_format": ("png", "B64_JSON", 1),
    "output_format": ("gif", "tiff", 1),
    "output_compression": (-1, 101, "low"),
    "background": ("transparent",),
    "quality": ("hd",),
    "user": (5,),
    "extra_body": ("text", [1]),
}
IDEOGRAM4_VALUES: dict[str, tuple[Any, ...]] = {
    "prompt": ("many words " * 2500,),
    "size": ("3000x256", "4096x4096", "2048x256"),
    "guidance_schedule": (
        *([], [1.0], [1.0] * 3, [1.0] * 500, 7.0, "7,7", [1.0, "x"], [1.0, -2]),
        *([1.0, float("nan")], [[1.0, 1.0]]),
    ),
    "preset": ("V5", "", "v4_default_20", 4, ["V4_FAST_20"]),
    "mu": ("x", float("nan"), 1e6),
    "std": (0, -1, "x", float("inf")),
    "negative_prompt": ("blurry", 3),
    "true_cfg_scale": (3,),
}
QWEN_IMAGE_VALUES: dict[str, tuple[Any, ...]] = {
    "size": ("8192x128", "129x128", "112x128"),
    "num_inference_steps": (1, 201),
    "guidance_scale": (0.5,),
    "true_cfg_scale": (0.5, 101, float("nan"), "high", [4.0], True),
    "negative_prompt": (3, ["a"], "x" * 70_000),
    "sigmas": (
        *([], [0.5], [0.5, 1.0], [1.0, 1.0], [1.0, 0.5, 0.2], [1.0, 0.0], [2.0, 1.0]),
        *("fast", 1.0, [1.0, "x"], [1.0, float("nan")], [[1.0, 0.5]], [0.5] * 300),
    ),
    "max_sequence_length": (0, 1025, 1.5, "long"),
    # Of edits, and of Python.
    "reference_pixels": (65536,),
    "latents": ([0.0],),
    "image": ("http://127.0.0.1/a.png",),
    "url": ("http://127.0.0.1/a.png",),
    "preset": ("V4_FAST_20",),
}

# Names that mean nothing here. Stock takes or ignores each of them.
UNKNOWN: dict[str, Any] = {
    "guidance": 7,
    "steps": 4,
    "num_outputs_per_prompt": 1,
    "stream": True,
    "style": "vivid",
    "task_type": "T2I",
    "perf_dump_path": "/tmp/dump.json",
    "output_path": "/tmp",
    "output_file_name": "../../escape.png",
    "image_path": "/etc/hostname",
    "prompt_path": "/etc/hostname.txt",
    "lora_path": "/tmp/lora",
    "enable_upscaling": True,
    "upscaling_model_path": "/tmp/model.pth",
    "diffusers_kwargs": {"output_type": "latent"},
    "profile": True,
    "__class__": "x",
}

_MULTIPART = {"content-type": "multipart/form-data; boundary=b"}
_EDIT = (
    b'--b\r\ncontent-disposition: form-data; name="prompt"\r\n\r\nok\r\n'
    b'--b\r\ncontent-disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    b"not a picture\r\n--b--\r\n"
)


def refused_fields(
    good: dict[str, Any], *tables: dict[str, tuple[Any, ...]]
) -> Iterator[BadRequest]:
    """Every value of the tables, and what is unknown or contradicts itself."""
    for table in tables:
        for name, values in table.items():
            yield from (changed(good, name, **{name: value}) for value in values)
    for name, value in UNKNOWN.items():
        yield changed(good, name, **{name: value})
    yield changed(good, "width", size=..., width=256)
    yield changed(good, "height", size=..., width=256, height=17)
    yield changed(good, "size", width=256, height=256)
    yield changed(good, "seed", extra_body={"seed": 8})
    yield changed(good, "steps", extra_body={"steps": 8})
    yield changed(good, "perf_dump_path", extra_args={"perf_dump_path": "/tmp/a"})
    yield changed(good, "preset", preset=..., extra_params={"preset": "V5"})


_GOOD_BYTES = json.dumps(GOOD).encode()

# What is no image request at all.
RAW: tuple[BadRequest, ...] = (
    raw("empty body", b"", "JSON"),
    raw("truncated", _GOOD_BYTES[:-20], "JSON"),
    raw("two objects", _GOOD_BYTES * 2, "JSON"),
    raw("list", b"[" + _GOOD_BYTES + b"]", "object"),
    raw("text", b'"ok"', "object"),
    raw("number", b"NaN", "object"),
    raw("deep", b'{"seed": ' + b"[" * 100_000, "nested"),
    raw("not UTF-8", b'{"prompt": "\xff\xfe"}', "utf-8"),
    raw("UTF-16", '{"prompt": "ok"}'.encode("utf-16"), "utf-8"),
    BadRequest("name twice", b'{"n": 1, "prompt": "ok", "n": 9}', "n", "twice"),
    raw("too long", b" " * (MAX_JSON_BODY_BYTES + 1), "larger", 413),
    raw("no content type", _GOOD_BYTES, "Content-Type", 415, headers={}),
    raw(
        "plain text",
        _GOOD_BYTES,
        "Content-Type",
        415,
        headers={"content-type": "text/plain"},
    ),
    raw("form", b"prompt=ok", "Content-Type", 415, headers=_MULTIPART),
    raw(
        "compressed",
        _GOOD_BYTES,
        "Content-Encoding",
        415,
        headers={**JSON, "content-encoding": "gzip"},
    ),
    raw("GET", b"", "POST", 405, method="GET"),
    raw("PUT", _GOOD_BYTES, "POST", 405, method="PUT"),
    raw("DELETE", b"", "POST", 405, method="DELETE"),
    raw("edits", _EDIT, "edits", 404, path="/v1/images/edits", headers=_MULTIPART),
    raw("videos", _GOOD_BYTES, "videos", 404, path="/v1/videos"),
    raw("chat", b"{}", "chat", 404, path="/v1/chat/completions"),
    raw("vertex", b'{"instances": []}', "vertex", 404, path="/vertex_generate"),
    raw("doubled slash", _GOOD_BYTES, "images", 404, path="//v1/images/generations"),
    raw(
        "adapter path",
        b'{"lora_nickname": "a", "lora_path": "/tmp"}',
        "set_lora",
        403,
        path="/v1/set_lora",
    ),
    raw(
        "weights path",
        b'{"model_path": "/tmp"}',
        "update_weights",
        403,
        path="/update_weights_from_disk",
    ),
    raw(
        "no such picture",
        b"",
        "not found",
        404,
        method="GET",
        path="/v1/images/x/content",
    ),
    raw(
        "no such model",
        b"",
        "does not exist",
        404,
        param="model",
        method="GET",
        path="/v1/models/other",
    ),
)

IDEOGRAM4: tuple[BadRequest, ...] = (
    *refused_fields(GOOD, VALUES, IDEOGRAM4_VALUES),
    changed(GOOD, "guidance_schedule", guidance_scale=2, guidance_schedule=[1.0, 1.0]),
    *RAW,
)
QWEN_IMAGE: tuple[BadRequest, ...] = (
    *refused_fields(QWEN_IMAGE_GOOD, VALUES, QWEN_IMAGE_VALUES),
    changed(QWEN_IMAGE_GOOD, "guidance_scale", guidance_scale=3, true_cfg_scale=4),
    *RAW,
)

# One of each kind.
LIVE = (
    *("prompt=missing", 'size="255x256"', "n=11", "seed=-1", "guidance_scale=NaN"),
    *('output_file_name="../../escape.png"', 'extra_body={"seed": 8}'),
    *("truncated", "deep", "not UTF-8", "too long", "plain text", "GET", "edits"),
    *("adapter path", "no such picture", "no such model"),
)


def live(table: tuple[BadRequest, ...]) -> list[BadRequest]:
    """The cases of a family's table that a real server is sent."""
    return [case for case in table if case.name in LIVE]
