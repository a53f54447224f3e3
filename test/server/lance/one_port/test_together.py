# SPDX-License-Identifier: Apache-2.0
"""``sglang serve`` of a whole Lance checkpoint: chats and pictures behind one port.

The last tests kill the gateway's upstreams, so the order of this file matters.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import openai
import pytest
from openai import OpenAI

from conftest import Golden
from images import read_rgb
from server.lance_requests import (
    MIN_PSNR,
    data_url,
    request_of,
    worst_psnr,
)
from server.one_port import (
    at_once,
    blank_png,
    client_of,
    failure_of,
    health_of,
    is_healthy,
    kill_when_busy,
    pictures,
    refused,
    streamed,
    wait_until,
    worker_of,
)
from server.servers import Server

pytestmark = pytest.mark.slow

NAME = "lance"

SMALL = {"num_inference_steps": 3, "output_format": "png"}
# A request that is still running when somebody leaves or is killed.
LONG = {"size": "512x384", "num_inference_steps": 200}


@pytest.fixture(scope="module")
def server(one_port: Server) -> Server:
    return one_port


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with client_of(server) as client:
        yield client


@pytest.fixture(scope="module")
def video(source_video: Path) -> Path:
    return source_video


def question(golden: Golden, video: Path) -> dict[str, Any]:
    """The golden chat, as arguments of the client."""
    content = [
        {"type": "text", "text": golden.json["cases"]["x2t_video"]["prompt"]},
        {"type": "video_url", "video_url": {"url": data_url(video)}},
    ]
    messages = [{"role": "user", "content": content}]
    return {"model": NAME, "messages": messages, **tokens(8)}


def tokens(count: int) -> dict[str, Any]:
    return {"max_tokens": count, "extra_body": {"ignore_eos": True}}


def draw_golden(client: OpenAI, golden: Golden) -> float:
    """PSNR in dB of the golden picture, drawn again."""
    case = golden.json["cases"]["t2i"]
    fields = request_of(golden, "t2i", Path())
    width, height = fields.pop("width"), fields.pop("height")
    response = client.images.generate(
        model=NAME,
        prompt=fields.pop("prompt"),
        size=cast(Any, f"{width}x{height}"),
        output_format="png",
        response_format="b64_json",
        extra_body=fields,
    )
    [picture] = pictures(response)
    assert case["output_files"]
    return worst_psnr(golden, "t2i", [read_rgb(picture)])


def draw(client: OpenAI, **fields: Any) -> list[bytes]:
    """Small pictures."""
    n, size = fields.pop("n", 1), fields.pop("size", "64x48")
    response = client.images.generate(
        model=NAME,
        prompt=fields.pop("prompt", "a cat"),
        n=n,
        size=size,
        response_format="b64_json",
        extra_body={**SMALL, **fields},
    )
    return pictures(response)


def test_it_is_one_healthy_model(server, client):
    assert [model.id for model in client.models.list()] == [NAME]
    for path in ("/health", "/health_generate"):
        assert httpx.get(server.url + path, timeout=60).status_code == 200


def test_chat_equals_the_official_answer(client, golden, video):
    want = golden.json["cases"]["x2t_video"]["text"]
    answer = client.chat.completions.create(**question(golden, video))
    assert answer.choices[0].message.content.strip() == want
    assert answer.model == NAME
    assert streamed(client, **question(golden, video)).strip() == want


def test_completion_is_the_bare_text(client):
    answers = [
        client.completions.create(
            model=NAME, prompt="Hello", temperature=0, **tokens(8)
        )
        for _ in range(2)
    ]
    assert answers[0].choices[0].text == answers[1].choices[0].text
    assert answers[0].usage.prompt_tokens < 8


def test_picture_equals_the_official_one(client, golden):
    assert draw_golden(client, golden) >= MIN_PSNR


def test_edit_equals_the_official_one(client, golden):
    case = golden.json["cases"]["image_edit"]
    fields = request_of(golden, "image_edit", Path())
    response = client.images.edit(
        model=NAME,
        image=Path(fields.pop("image_path")).open("rb"),
        prompt=fields.pop("prompt"),
        output_format="png",
        extra_body=fields,
    )
    [picture] = pictures(response)
    assert case["image"]
    assert worst_psnr(golden, "image_edit", [read_rgb(picture)]) >= MIN_PSNR


def test_video_job_runs_to_its_end(client):
    fields = {"num_frames": 5, "num_inference_steps": 2, "seed": 1}
    job = client.videos.create(prompt="waves", size="64x48", extra_body=fields)
    ended = ("completed", "failed")
    job = wait_until(
        lambda: (j := client.videos.retrieve(job.id)).status in ended and j
    )
    assert job.status == "completed"
    assert b"ftyp" in client.videos.download_content(job.id).read()[:16]
    assert job.id in [listed.id for listed in client.videos.list()]
    client.videos.delete(job.id)
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(job.id)


def test_seeds_decide_and_n_pictures_are_n_seeds(client):
    singles = [draw(client, seed=seed)[0] for seed in (5, 6, 7)]
    assert draw(client, seed=5) == singles[:1]
    assert len(set(singles)) == 3
    three = [read_rgb(picture) for picture in draw(client, seed=5, n=3)]
    for got, want in zip(three, singles, strict=True):
        assert abs(got.astype(int) - read_rgb(want)).max() <= 1


def test_pictures_while_chats_stream_equal_their_single_answers(client):
    def chat(index: int) -> str:
        messages = [
            {"role": "user", "content": f"Question {index}? " * (1 + index % 5)}
        ]
        return streamed(client, messages, model=NAME, **tokens(24))

    chats = [lambda i=i: chat(i) for i in range(16)]
    draws = [lambda i=i: draw(client, seed=i, prompt="a cat " * i) for i in range(1, 9)]
    together = at_once([*chats, *draws])
    assert together == [call() for call in (*chats, *draws)]
    assert len(set(together[:16])) > 8


CHAT = "/v1/chat/completions"
IMAGES, EDITS, VIDEOS = "/v1/images/generations", "/v1/images/edits", "/v1/videos"
USER = [{"role": "user", "content": "Hello?"}]


def with_picture(url: str) -> list[dict[str, Any]]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        (IMAGES, {"prompt": ""}, "prompt: missing or empty"),
        (IMAGES, {"prompt": 7}, "prompt"),
        (IMAGES, {"size": "65x64"}, "size: width 65 given"),
        (IMAGES, {"n": 0}, "n: 0 given"),
        (IMAGES, {"n": 1000}, "n: 1000 given"),
        (IMAGES, {"seed": -1}, "seed"),
        (IMAGES, {"num_inference_steps": 0}, "num_inference_steps"),
        (IMAGES, {"guidance_scale": "high"}, "guidance_scale"),
        (IMAGES, {"image_path": "/etc/passwd"}, "image_path: unknown field"),
        (IMAGES, {"surprise": 1}, "surprise: unknown field"),
        (VIDEOS, {"num_frames": 10_000}, "num_frames: 10000 given"),
        (VIDEOS, {"video_url": "http://127.0.0.1/"}, "video_url: unknown field"),
        (CHAT, {"messages": []}, ""),
        (CHAT, {"messages": "x"}, "messages"),
        (CHAT, {"messages": [{"role": "king", "content": "x"}]}, ""),
        (CHAT, {"messages": USER, "temperature": -1}, "temperature"),
        (CHAT, {"messages": USER, "max_tokens": -5}, "max_"),
        (CHAT, {"messages": USER, "max_tokens": 10**9}, ""),
        (CHAT, {"messages": with_picture("/etc/passwd")}, "file names"),
        (CHAT, {"messages": with_picture("http://127.0.0.1:1/a.png")}, "not public"),
        (CHAT, {"messages": with_picture("data:image/png;base64,AAAA")}, "readable"),
    ],
    ids=str,
)
def test_bad_field_is_refused_by_name(server, path, body, word):
    given = {"prompt": "a cat"} if path in (IMAGES, VIDEOS) else {"model": NAME}
    refused(server, path, 400, word, json={**given, **body})


def test_bad_references_are_refused(server, golden):
    picture = (golden.path / "input_image.png").read_bytes()
    many = [("image[]", (f"{i}.png", picture)) for i in range(20)]
    for files, word in (
        ([("image", ("a.png", b"noise"))], "not a readable picture"),
        ([("image", ("a.png", picture[:200]))], "not a readable picture"),
        ([("image", ("a.png", b""))], ""),
        (many, "20 pictures given, at most 16"),
        ([("image", ("a.png", blank_png(20_000, 20_000)))], "over 64000000 pixels"),
    ):
        refused(server, EDITS, 400, word, data={"prompt": "x"}, files=files)
    # Small is not wrong.
    dot = {"image": ("a.png", blank_png(1, 1))}
    data = {"prompt": "x", "num_inference_steps": "2"}
    reply = httpx.post(server.url + EDITS, data=data, files=dot, timeout=120)
    assert reply.status_code == 200, reply.text


def test_bodies_that_are_no_request_are_refused(server):
    json_type = {"content-type": "application/json"}
    for path in (CHAT, IMAGES):
        refused(server, path, 400, "", content=b"{", headers=json_type)
        refused(server, path, 400, "", content=b"[1]", headers=json_type)
    refused(server, EDITS, 415, "multipart", json={"prompt": "x"})
    refused(server, "/generate", 404, "is not served here", json={"text": "x"})


def test_right_answers_after_all_that(client, golden, video):
    want = golden.json["cases"]["x2t_video"]["text"]
    assert streamed(client, **question(golden, video)).strip() == want
    assert draw_golden(client, golden) >= MIN_PSNR


def test_a_client_that_leaves_does_no_harm(server, client, golden, video):
    want = draw(client, seed=5)
    for path, body in (
        (IMAGES, {"prompt": "a cat", **LONG}),
        (CHAT, {"messages": USER, "max_tokens": 1000, "ignore_eos": True}),
    ):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + path, json={"model": NAME, **body}, timeout=0.2)
    assert draw(client, seed=5) == want
    assert streamed(client, **question(golden, video)).strip()
    assert is_healthy(server)


def test_upstreams_that_are_killed_are_named_and_come_back(
    server, client, golden, video
):
    want = golden.json["cases"]["x2t_video"]["text"]
    # The generator's worker, during a request.
    error, _ = at_once(
        [
            lambda: failure_of(lambda: draw(client, seed=1, **LONG)),
            lambda: kill_when_busy(server, "generator"),
        ]
    )
    assert isinstance(error, openai.InternalServerError), error
    unwell = wait_until(lambda: not is_healthy(server) and health_of(server))
    assert unwell["generator"] != "is ready", unwell
    assert unwell["thinker"] == "is ready", unwell
    refusal = failure_of(lambda: draw(client, seed=1))
    assert "the generator of this server" in str(refusal)
    answer = client.chat.completions.create(**question(golden, video))
    assert answer.choices[0].message.content.strip() == want

    # The thinker's worker, in the middle of a stream.
    long = {"model": NAME, "messages": USER, **tokens(1500)}
    stream = client.chat.completions.create(stream=True, **long)
    next(stream)
    worker_of(server, "thinker").kill()
    error = failure_of(lambda: list(stream))
    assert "the thinker of this server" in str(error)
    assert "the thinker of this server" in str(
        failure_of(lambda: client.chat.completions.create(**long))
    )

    wait_until(lambda: is_healthy(server))
    assert streamed(client, **question(golden, video)).strip() == want
    assert draw_golden(client, golden) >= MIN_PSNR
