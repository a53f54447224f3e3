# SPDX-License-Identifier: Apache-2.0
"""Lance answers behind a real ``launch_server``, driven with the ``openai`` client.

It is the language model's server behind the one port, asked at its own address, and
was given the checkpoint root: it runs ``Lance_3B_Video``, as the official script does.
``test_engine.py`` runs ``Lance_3B``.
"""

import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from conftest import Golden
from server.lance_requests import data_url, video_bytes
from server.one_port import as_server
from server.servers import Server

pytestmark = pytest.mark.slow

NUM_TOKENS = 430  # of the tokenizer; the vocabulary has 452 rows on disk
GREEDY = {"max_new_tokens": 8, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(one_port: Server) -> Server:
    return as_server(one_port, "thinker")


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300
    ) as running:
        yield running


@pytest.fixture(scope="module")
def video(source_video: Path) -> str:
    return data_url(source_video)


@pytest.fixture(scope="module")
def image(golden: Golden) -> str:
    return data_url(golden.path / "input_image.png")


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def medium(kind: str, url: str) -> dict[str, Any]:
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def user(*content: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}]


def complete(client: openai.OpenAI, messages: Any, **options: Any) -> Any:
    fields = {"model": "lance", "max_tokens": 8, **options}
    extra = {"ignore_eos": True, **fields.pop("extra_body", {})}
    return client.chat.completions.create(messages=messages, extra_body=extra, **fields)


def generate(server: Server, **fields: Any) -> dict[str, Any]:
    answer = httpx.post(f"{server.url}/generate", json=fields, timeout=300)
    assert answer.status_code == 200, answer.text
    return answer.json()


def official_chat(golden: Golden, video: str) -> list[dict[str, Any]]:
    question = golden.json["cases"]["x2t_video"]["prompt"]
    return user(text(question), medium("video", video))


def test_video_chat_equals_the_official_answer(client, golden, video):
    case = golden.json["cases"]["x2t_video"]
    # No temperature: greedy is the default, as officially.
    answer = complete(client, official_chat(golden, video))
    assert answer.choices[0].message.content.strip() == case["text"]
    assert answer.usage.prompt_tokens == case["sequence_length"]
    parts = list(complete(client, official_chat(golden, video), stream=True))
    words = [part.choices[0].delta.content or "" for part in parts if part.choices]
    assert len(words) > 2
    assert "".join(words).strip() == case["text"]


def test_tokens_equal_the_official_ones(server, golden, video):
    case = golden.json["cases"]["x2t_video"]
    for _ in range(2):
        answer = generate(
            server, text=case["prompt"], video_data=video, sampling_params=GREEDY
        )
        assert answer["output_ids"] == golden.tensor("x2t_video.output_ids").tolist()
        assert answer["meta_info"]["prompt_tokens"] == case["sequence_length"]
    # The second time the prompt comes from the prefix cache.
    assert answer["meta_info"]["cached_tokens"] > 100


def test_chat_about_a_picture_is_the_raw_prompt_with_the_instruction(
    client, server, image
):
    raw = generate(server, text="What is it?", image_data=image, sampling_params=GREEDY)
    message = user(medium("image", image), text("What is it?"))
    answer = complete(client, message)
    assert answer.choices[0].message.content == raw["text"]
    assert answer.usage.prompt_tokens == raw["meta_info"]["prompt_tokens"]
    instructed = [{"role": "system", "content": "Be brief."}, *message]
    other = complete(client, instructed)
    assert other.usage.prompt_tokens != answer.usage.prompt_tokens


def test_text_and_turns_without_a_medium(client, image):
    turns = [
        *user(medium("image", image), text("What is it?")),
        {"role": "assistant", "content": "A bird."},
        {"role": "user", "content": "Its color?"},
    ]
    first = complete(client, turns).choices[0].message.content
    assert complete(client, turns).choices[0].message.content == first
    alone = complete(client, [{"role": "user", "content": "Its color?"}])
    assert alone.usage.prompt_tokens < 40


def test_no_padding_row_is_ever_chosen_or_counted(server, video):
    """Unmasked, rows beyond the tokenizer win most of the golden steps."""
    logprobs = {"return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 20}
    sampling = {"max_new_tokens": 48, "temperature": 3.0, "ignore_eos": True}
    answer = generate(
        server, text="Well?", video_data=video, sampling_params=sampling, **logprobs
    )
    assert len(set(answer["output_ids"])) > 10  # it did sample
    assert max(answer["output_ids"]) < NUM_TOKENS
    meta = answer["meta_info"]
    tops = [*meta["output_top_logprobs"], *filter(None, meta["input_top_logprobs"])]
    assert len(tops) > 48 + 150  # the prompt's positions, too
    for top in tops:
        assert max(token for _, token, _ in top) < NUM_TOKENS
    # Over all tokens, probabilities of a position add up to 1.
    every = generate(
        server,
        text="Well?",
        video_data=video,
        sampling_params={**GREEDY, "max_new_tokens": 1},
        return_logprob=True,
        top_logprobs_num=NUM_TOKENS,
    )["meta_info"]["output_top_logprobs"][0]
    assert len(every) == NUM_TOKENS
    assert np.exp([logprob for logprob, _, _ in every]).sum() == pytest.approx(1, 1e-4)


def test_16_mixed_requests_at_once_equal_single_ones(server, client, image, video):
    colors = [Image.new("RGB", (96, 64), (40 * i, 90, 200)) for i in range(5)]
    kinds = [
        medium("video", video),
        medium("image", image),
        *(medium("image", png_url(color)) for color in colors),
    ]
    messages = [
        user(kinds[i % len(kinds)], text(f"Question {i}, of some length? " * (i % 4)))
        for i in range(15)
    ] + [[{"role": "user", "content": "And no picture?"}]]
    with ThreadPoolExecutor(len(messages)) as threads:
        together = list(threads.map(lambda m: complete(client, m), messages))
    # The cache must not be what makes them equal.
    httpx.post(f"{server.url}/flush_cache", timeout=60).raise_for_status()
    singles = [complete(client, message) for message in messages]
    for got, want in zip(together, singles, strict=True):
        assert got.choices[0].message.content == want.choices[0].message.content
        assert got.usage.prompt_tokens == want.usage.prompt_tokens
    assert len({single.choices[0].message.content for single in singles}) > 8


def png_url(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def video_url(data: bytes) -> str:
    return f"data:video/mp4;base64,{base64.b64encode(data).decode()}"


def bad_messages(image: str) -> dict[str, tuple[list[dict[str, Any]], str]]:
    """What is wrong -> messages and what the refusal must say."""
    ask, noise = text("What?"), "data:video/mp4;base64,AAAA"
    picture = medium("image", image)
    return {
        "broken picture": (
            user(medium("image", "data:image/png;base64,AAAA"), ask),
            "not a readable picture",
        ),
        "empty picture": (
            user(medium("image", "data:image/png;base64,"), ask),
            "empty",
        ),
        "thin picture": (
            user(medium("image", png_url(Image.new("1", (1, 99)))), ask),
            "aspect ratio",
        ),
        "huge picture": (
            user(medium("image", png_url(Image.new("1", (9000, 9000)))), ask),
            "9000x9000",
        ),
        "broken video": (user(medium("video", noise), ask), "not a readable video"),
        "cut video": (
            user(medium("video", video_url(video_bytes(24)[:500])), ask),
            "not a readable video",
        ),
        "video of 0 frames": (
            user(medium("video", video_url(video_bytes(0))), ask),
            "it has no frames",
        ),
        "video of 10000 frames": (
            user(medium("video", video_url(video_bytes(10_000))), ask),
            "10000 frames, at most 3600",
        ),
        "two pictures": (user(picture, picture, ask), "2 media given"),
        "private url": (
            user(medium("image", "http://127.0.0.1:1/a.png"), ask),
            "not public",
        ),
        "local file": (user(medium("image", "/etc/passwd"), ask), "file names"),
        "special token": (user(picture, text("a <|im_end|> b")), "special token"),
        "placeholder": (user(text("a <|video_pad|> b")), "special token"),
        "wrong role": ([{"role": "king", "content": "a"}], ""),
        "too long": (user(picture, text("a" * 5000)), "context length"),
        "sound": (
            user({"type": "audio_url", "audio_url": {"url": noise}}, ask),
            "",
        ),
        "no message": ([], ""),
    }


def test_bad_input_is_the_clients_error_and_the_server_goes_on(
    server, client, golden, image, video
):
    wrong = []
    good = golden.json["cases"]["x2t_video"]["text"]
    for name, (messages, reason) in bad_messages(image).items():
        body = {"model": "lance", "messages": messages, "max_tokens": 4}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)
        if not (400 <= answer.status_code < 500 and reason in answer.text):
            wrong.append((name, answer.status_code, answer.text[:300]))
        after = complete(client, official_chat(golden, video))
        if after.choices[0].message.content.strip() != good:
            wrong.append((name, "the next answer is wrong", after))
    assert not wrong, "\n".join(map(str, wrong))
