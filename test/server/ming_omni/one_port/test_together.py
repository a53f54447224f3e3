# SPDX-License-Identifier: Apache-2.0
"""Ming whole: the thinker answers and feeds the generator, both behind one port.

The last test kills the gateway's upstreams, so the order of this file matters.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from conftest import Golden
from images import psnr, read_rgb
from ming_drawing import CASES, FILE_DB, golden_png, golden_request
from server.ming import data_url
from server.one_port import (
    address_of,
    at_once,
    blank_png,
    client_of,
    failure_of,
    health_of,
    is_healthy,
    kill_when_busy,
    pictures,
    refused,
    serving_one_port,
    streamed,
    wait_until,
    worker_of,
)
from server.servers import Server

pytestmark = pytest.mark.slow

NAME = "ming"
SMALL: dict[str, Any] = {"num_inference_steps": 3, "output_format": "png"}
CHATS = ("chat_text", "chat_image_audio")
CHAT, IMAGES, EDITS = (
    *("/v1/chat/completions", "/v1/images/generations", "/v1/images/edits"),
)
USER = [{"role": "user", "content": "What is 2+2?"}]


@pytest.fixture(scope="module")
def golden(omni_golden: Golden) -> Golden:
    return omni_golden


@pytest.fixture(scope="module")
def server(one_port: Server) -> Server:
    return one_port


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with client_of(server) as client:
        yield client


def question(golden: Golden, name: str) -> dict[str, Any]:
    """A golden chat, as arguments of the client."""
    content = []
    for item in golden.json["cases"][name]["content"]:
        kind = item["type"]
        if kind == "text":
            content.append(item)
        else:
            url = data_url(golden.path / item[kind])
            content.append({"type": f"{kind}_url", f"{kind}_url": {"url": url}})
    messages = [{"role": "user", "content": content}]
    return {"model": NAME, "messages": messages, **greedy(12)}


def greedy(count: int) -> dict[str, Any]:
    extra = {"ignore_eos": True}
    return {"max_tokens": count, "temperature": 0, "extra_body": extra}


def draw(client: OpenAI, **fields: Any) -> list[bytes]:
    """Pictures of one request; a picture to edit is sent as a file."""
    fields = dict(fields)
    width, height = fields.pop("width", None), fields.pop("height", None)
    if width is not None:
        fields["size"] = f"{width}x{height}"
    path = fields.pop("image_path", None)
    common = {"model": NAME, "prompt": fields.pop("prompt"), "n": fields.pop("n", 1)}
    extra = {"output_format": "png", "response_format": "b64_json", **fields}
    if path is None:
        return pictures(client.images.generate(**common, extra_body=extra))
    with Path(path).open("rb") as file:
        return pictures(client.images.edit(image=file, **common, extra_body=extra))


def small(client: OpenAI, prompt: str = "a cat", **fields: Any) -> list[bytes]:
    fields = {"width": 64, "height": 96, **SMALL, **fields}
    return draw(client, prompt=prompt, **fields)


def test_it_is_one_healthy_model(server, client):
    assert [model.id for model in client.models.list()] == [NAME]
    for path in ("/health", "/health_generate"):
        assert httpx.get(server.url + path, timeout=60).status_code == 200


@pytest.mark.parametrize("name", CHATS)
def test_chat_equals_the_official_answer(name, client, golden):
    want = golden.json["cases"][name]["greedy_text"]
    answer = client.chat.completions.create(**question(golden, name))
    assert answer.choices[0].message.content == want
    assert answer.usage.prompt_tokens == golden.json["cases"][name]["prompt_len"]
    assert streamed(client, **question(golden, name)) == want


@pytest.mark.parametrize("name", CASES)
def test_picture_equals_the_official_one(name, client, golden):
    [picture] = draw(client, **golden_request(golden, name))
    assert psnr(picture, golden_png(golden, name)) >= FILE_DB


def test_seeds_decide_and_n_pictures_are_n_seeds(client):
    singles = [small(client, seed=seed)[0] for seed in (5, 6, 7)]
    assert small(client, seed=5) == singles[:1]
    assert len(set(singles)) == 3
    three = [read_rgb(picture) for picture in small(client, seed=5, n=3)]
    for got, want in zip(three, singles, strict=True):
        assert abs(got.astype(int) - read_rgb(want)).max() <= 1


def test_pictures_while_chats_stream_equal_their_single_answers(client, golden):
    def chat(index: int) -> str:
        words = f"Question {index}? " * (1 + index % 5)
        messages = [{"role": "user", "content": words}]
        return streamed(client, messages, model=NAME, **greedy(24))

    def picture(index: int) -> list[bytes]:
        fields: dict[str, Any] = {"seed": index}
        if index % 4 == 3:
            fields["image_path"] = golden.path / "reference.png"
        if index % 4 == 2:
            fields["negative_prompt"] = f"blurry, dark {index}"
        return small(client, f'a sign "{index}" ' * index, **fields)

    chats = [lambda i=i: chat(i) for i in range(16)]
    draws = [lambda i=i: picture(i) for i in range(1, 9)]
    together = at_once([*chats, *draws])
    assert together == [call() for call in (*chats, *draws)]
    assert len(set(together[:16])) > 8
    assert len({shown[0] for shown in together[16:]}) == 8


def with_medium(kind: str, url: str) -> list[dict[str, Any]]:
    part = {"type": f"{kind}_url", f"{kind}_url": {"url": url}}
    return [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        (IMAGES, {"prompt": ""}, "prompt: missing or empty"),
        (IMAGES, {"prompt": "long " * 3000}, "prompt: the thinker refuses it: "),
        (IMAGES, {"prompt": "<role>x"}, "prompt: the special token <role>"),
        (IMAGES, {"size": "65x64"}, "width 65 given"),
        (IMAGES, {"size": "4096x64"}, "width 4096 given"),
        (IMAGES, {"n": 0}, "n: 0 given"),
        (IMAGES, {"n": 1000}, "n: 1000 given"),
        (IMAGES, {"seed": -1}, "seed"),
        (IMAGES, {"num_inference_steps": 0}, "num_inference_steps"),
        (IMAGES, {"guidance_scale": "high"}, "guidance_scale"),
        (IMAGES, {"byt5_text": "x" * 60}, "byt5_text: it takes"),
        (IMAGES, {"highres": 512}, "highres"),
        (IMAGES, {"image_path": "/etc/passwd"}, "image_path: unknown field"),
        (IMAGES, {"thinker_url": "http://127.0.0.1/"}, "thinker_url: unknown field"),
        (IMAGES, {"surprise": 1}, "surprise: unknown field"),
        (CHAT, {"messages": []}, ""),
        (CHAT, {"messages": [{"role": "king", "content": "x"}]}, ""),
        (CHAT, {"messages": USER, "temperature": -1}, "temperature"),
        (CHAT, {"messages": USER, "max_tokens": 10**9}, ""),
        (CHAT, {"messages": with_medium("image", "/etc/passwd")}, "file names"),
        (CHAT, {"messages": with_medium("image", "http://127.0.0.1:1/a")}, "public"),
        (CHAT, {"messages": with_medium("audio", "data:audio/wav;base64,AAAA")}, ""),
    ],
    ids=str,
)
def test_bad_field_is_refused_by_name(server, path, body, word):
    given = {"prompt": "a cat"} if path == IMAGES else {"model": NAME}
    refused(server, path, 400, word, json={**given, **body})


def test_bad_references_are_refused(server, golden):
    picture = (golden.path / "reference.png").read_bytes()
    many = [("image[]", (f"{i}.png", picture)) for i in range(20)]
    for files, word in (
        ([("image", ("a.png", b"noise"))], "not a readable picture"),
        ([("image", ("a.png", picture[:200]))], "picture 1"),
        ([("image", ("a.png", b""))], "not a readable picture"),
        (many, "20 pictures given, at most 16"),
        (many[:11], "11 pictures given, at most 10"),
        ([("image", ("a.png", blank_png(20_000, 20_000)))], "64000000 pixels"),
    ):
        refused(server, EDITS, 400, word, data={"prompt": "x"}, files=files)
    # Small is not wrong.
    data = {"prompt": "x", "size": "64x96", "num_inference_steps": "2"}
    dot = {"image": ("a.png", blank_png(1, 1))}
    reply = httpx.post(server.url + EDITS, data=data, files=dot, timeout=120)
    assert reply.status_code == 200, reply.text


def test_a_client_that_leaves_does_no_harm(server, client, golden):
    want = small(client, seed=5)
    slow = {"prompt": "a slow cat", "size": "64x96", "num_inference_steps": 100}
    for path, body in (
        (IMAGES, slow),
        (CHAT, {"messages": USER, "max_tokens": 1000, "ignore_eos": True}),
    ):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + path, json={"model": NAME, **body}, timeout=0.2)
    assert small(client, seed=5) == want
    assert streamed(client, **question(golden, "chat_text"))
    assert is_healthy(server)


def test_upstreams_that_run_elsewhere_are_served_by_their_addresses(
    server, golden, tmp_path
):
    program = (sys.executable, "-m", "sglang_ext_gen", "serve")
    addresses = (
        *("--thinker-url", address_of(server, "thinker")),
        *("--generator-url", address_of(server, "generator")),
        *("--served-model-name", NAME),
    )
    command = (*program, str(golden.checkpoint))
    with (
        serving_one_port(command, tmp_path, *addresses) as gateway,
        client_of(gateway) as client,
    ):
        want = golden.json["cases"]["chat_text"]["greedy_text"]
        assert streamed(client, **question(golden, "chat_text")) == want
        [picture] = draw(client, **golden_request(golden, "t2i"))
        assert psnr(picture, golden_png(golden, "t2i")) >= FILE_DB
    assert is_healthy(server), "upstreams outlive a gateway that did not start them"


def test_upstreams_that_are_killed_are_named_and_come_back(server, client, golden):
    chat = golden.json["cases"]["chat_text"]["greedy_text"]
    [known] = small(client, "a fox in the snow", seed=4)
    # The generator's worker, during a request.
    slow: dict[str, Any] = {"num_inference_steps": 200}
    error, _ = at_once(
        [
            lambda: failure_of(lambda: small(client, **slow)),
            lambda: kill_when_busy(server, "generator"),
        ]
    )
    assert isinstance(error, openai.InternalServerError), error
    unwell = wait_until(lambda: not is_healthy(server) and health_of(server))
    assert unwell["generator"] != "is ready", unwell
    assert unwell["thinker"] == "is ready", unwell
    assert "the generator of this server" in str(failure_of(lambda: small(client)))
    assert streamed(client, **question(golden, "chat_text")) == chat

    # The thinker's worker, in the middle of a stream and of a picture's condition.
    wait_until(lambda: is_healthy(server))
    long = {"model": NAME, "messages": USER, **greedy(1500)}
    stream = client.chat.completions.create(stream=True, **long)
    next(stream)
    thinker = worker_of(server, "thinker")
    thinker.suspend()
    errors = at_once(
        [
            lambda: failure_of(lambda: list(stream)),
            lambda: failure_of(lambda: small(client, "never asked before")),
            lambda: (time.sleep(2), thinker.kill()),
        ]
    )
    assert "the thinker of this server" in str(errors[0])
    assert isinstance(errors[1], openai.InternalServerError), errors
    assert "thinker" in str(errors[1])
    for call in (
        lambda: client.chat.completions.create(**long),
        lambda: small(client, "never asked before"),
    ):
        assert "the thinker of this server" in str(failure_of(call))

    wait_until(lambda: is_healthy(server))
    assert small(client, "never asked before")
    # Nothing of what the first two said is remembered here: drawn anew, and equal but
    # for the rounding of sums, which a thinker's prefix cache changes.
    [anew] = small(client, "a fox in the snow", seed=4)
    assert psnr(anew, known) >= FILE_DB
    assert streamed(client, **question(golden, "chat_text")) == chat
    [picture] = draw(client, **golden_request(golden, "t2i"))
    assert psnr(picture, golden_png(golden, "t2i")) >= FILE_DB
