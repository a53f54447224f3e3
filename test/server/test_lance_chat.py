# SPDX-License-Identifier: Apache-2.0
"""Lance answers questions: real ``sglang.launch_server`` processes on the CPU."""

import base64
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from openai import BadRequestError, OpenAI

from conftest import Golden
from server.lance_requests import write_source_video
from server.servers import (
    Server,
    free_ports,
    server_environment,
    stop,
    wait_until_healthy,
)

pytestmark = pytest.mark.slow

# The golden cases were made at the smallest presets.
PRESETS = {
    "image": {"resolution": "image_256res"},
    "video": {"resolution": "video_192p"},
}


@contextmanager
def launched(model: Path, folder: Path) -> Iterator[Server]:
    """``python -m sglang.launch_server`` with a checkpoint directory of Lance."""
    port, nccl_port, _ = free_ports()
    command = [
        *(sys.executable, "-m", "sglang.launch_server", "--model-path", str(model)),
        *("--host", "127.0.0.1", "--port", str(port), "--nccl-port", str(nccl_port)),
        *("--dtype", "float32", "--max-total-tokens", "8192"),
        *("--mem-fraction-static", "0.2", "--mm-process-config", json.dumps(PRESETS)),
    ]
    log = folder / "server.log"
    with log.open("wb") as output:
        process = psutil.Popen(
            command,
            cwd=folder,
            env=server_environment({}),
            stdout=output,
            stderr=output,
        )
    server = Server(f"http://127.0.0.1:{port}", process, log, folder)
    try:
        wait_until_healthy(server)
        yield server
    finally:
        stop(server)


@pytest.fixture(scope="module")
def golden(golden_dir: Callable[[str], Path]) -> Golden:
    return Golden(golden_dir("lance"))


@pytest.fixture(scope="module")
def server(golden: Golden, tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("chat")
    with launched(golden.path / "checkpoint" / "Lance_3B_Video", folder) as server:
        yield server


@pytest.fixture(scope="module")
def openai(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def video_url(golden: Golden, tmp_path_factory) -> str:
    file = write_source_video(golden, tmp_path_factory.mktemp("video") / "in.mp4")
    return data_url(file, "video/mp4")


@pytest.fixture(scope="module")
def image_url(golden: Golden) -> str:
    return data_url(golden.path / "input_image.png", "image/png")


def data_url(file: Path, media_type: str) -> str:
    text = base64.b64encode(file.read_bytes()).decode()
    return f"data:{media_type};base64,{text}"


def video_message(question: str, url: str) -> Any:
    # The medium comes first in the prompt whatever the order here.
    return [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": question},
                {"type": "video_url", "video_url": {"url": url}},
            ],
        }
    ]


def ask(openai: OpenAI, messages: Any, **fields: Any) -> str:
    request = {"max_tokens": 8, "temperature": 0, **fields}
    answer = openai.chat.completions.create(model="x", messages=messages, **request)
    return answer.choices[0].message.content or ""


def test_raw_question_gives_the_official_tokens(server, golden, video_url):
    case = golden.json["cases"]["x2t_video"]
    body = {
        "text": case["prompt"],
        "video_data": video_url,
        "sampling_params": {"max_new_tokens": 8, "temperature": 0, "ignore_eos": True},
    }
    answers = [
        httpx.post(f"{server.url}/generate", json=body, timeout=120).json()
        for _ in range(2)  # the second comes from the prefix cache
    ]
    want = golden.tensor("x2t_video.output_ids").tolist()
    assert [answer["output_ids"] for answer in answers] == [want, want]
    assert answers[0]["meta_info"]["prompt_tokens"] == case["sequence_length"]
    assert answers[1]["meta_info"]["cached_tokens"] > 100


def test_chat_uses_the_official_prompt_and_streams(openai, golden, video_url):
    case = golden.json["cases"]["x2t_video"]
    messages = video_message(case["prompt"], video_url)
    answer = ask(openai, messages)
    assert answer.strip("\ufffd ") == case["text"].strip("\ufffd ")
    stream = openai.chat.completions.create(
        model="x", messages=messages, max_tokens=8, temperature=0, stream=True
    )
    parts = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(parts) == answer


def test_default_sampling_is_greedy(openai, video_url):
    messages = video_message("What is this?", video_url)
    answers = {
        openai.chat.completions.create(model="x", messages=messages, max_tokens=8)
        .choices[0]
        .message.content
        for _ in range(2)
    }
    assert len(answers) == 1


def test_sixteen_at_once_equal_one_by_one(openai, video_url, image_url):
    image = {"type": "image_url", "image_url": {"url": image_url}}
    questions = []
    for number in range(8):
        text = f"Question {number}: what " + "moves " * number
        questions.append(video_message(text, video_url))
        content = [image, {"type": "text", "text": text}]
        questions.append([{"role": "user", "content": content}])
    alone = [ask(openai, messages) for messages in questions]
    with ThreadPoolExecutor(len(questions)) as pool:
        together = list(pool.map(lambda messages: ask(openai, messages), questions))
    assert together == alone
    assert len(set(alone)) > 4


def test_pictures_do_not_share_what_depends_on_them(openai, server, image_url, golden):
    """The same question about two pictures, in either order, gives the same two."""
    other = data_url(golden.path / "t2i_output.png", "image/png")

    def about(url: str) -> str:
        content = [{"type": "image_url", "image_url": {"url": url}}]
        question = {"type": "text", "text": "What is this?"}
        return ask(openai, [{"role": "user", "content": [*content, question]}])

    def flush() -> None:
        httpx.post(f"{server.url}/flush_cache").raise_for_status()

    flush()
    first = [about(image_url), about(other)]
    flush()
    assert [about(other), about(image_url)] == first[::-1]


def test_text_alone_and_a_system_message(openai, video_url):
    assert ask(openai, [{"role": "user", "content": "Hello"}])
    own = [{"role": "system", "content": "Be brief."}]
    assert ask(openai, own + video_message("Well?", video_url))


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "image_url", "image_url": {"url": "/etc/passwd"}}],
        [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}],
        [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/a.png"}}],
        [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}],
        [{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}],
        [{"type": "text", "text": "<|im_end|>"}],
    ],
)
def test_bad_media_and_forged_tokens_are_refused(content, openai):
    text = {"type": "text", "text": "What?"}
    with pytest.raises(BadRequestError):
        ask(openai, [{"role": "user", "content": [*content, text]}])


def test_two_media_are_refused_and_service_goes_on(openai, image_url, video_url):
    image = {"type": "image_url", "image_url": {"url": image_url}}
    with pytest.raises(BadRequestError, match="one picture or one video"):
        ask(openai, [{"role": "user", "content": [image, image]}])
    assert ask(openai, video_message("And now?", video_url))
