# SPDX-License-Identifier: Apache-2.0
"""The thinker behind a real ``launch_server``, driven with the ``openai`` client.

The server computes prompts in chunks of 48 tokens, so media and query blocks are split.
"""

import base64
import io
import json
import zlib
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import pytest
import soundfile
from PIL import Image

from conftest import Golden
from server.ming import (
    GENERATION_CASES,
    ONE_TOKEN,
    THRESHOLD,
    data_url,
    golden_request,
    query_error,
    thinker_server,
)
from sglang_ext_gen.models.ming_omni.thinker_protocol import QUERY_BLOCK

pytestmark = pytest.mark.slow
CHUNK = 48


@pytest.fixture(scope="module")
def golden(golden_dir) -> Golden:
    return Golden(golden_dir("ming_thinker"))


@pytest.fixture(scope="module")
def server(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("thinker")
    flags = ("--chunked-prefill-size", str(CHUNK))
    with thinker_server(golden.path, folder, *flags) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300
    ) as running:
        yield running


def text(words):
    return {"type": "text", "text": words}


def user(*content):
    return {"role": "user", "content": list(content)}


@pytest.fixture(scope="module")
def chats(golden):
    """Messages of golden cases that chat completions can express."""
    image0, image1 = (
        {"type": "image_url", "image_url": {"url": data_url(golden.path / name)}}
        for name in ("image0.png", "image1.png")
    )
    sound = golden.path / "audio0.wav"
    inline = {"data": base64.b64encode(sound.read_bytes()).decode(), "format": "wav"}
    audio0 = {"type": "input_audio", "input_audio": inline}
    audio_urls = [
        {"type": "audio_url", "audio_url": {"url": data_url(golden.path / name)}}
        for name in ("audio0.wav", "audio1.wav")
    ]
    return {
        "a_text": [user(text("What is 2+2?"))],
        "a_multiturn": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Bye"},
        ],
        "b_image": [user(image0, text("What is this?"))],
        "b_two_images": [user(image1, image0, text("Compare."))],
        "c_audio": [user(audio0, text("Transcribe."))],
        "c_two_audio_packed": [user(*audio_urls, text("Compare them."))],
    }


OPTIONS = {"model": "ming", "max_tokens": 8, "temperature": 0}
NO_STOP = {"extra_body": {"ignore_eos": True}}


def complete(client, messages, **options):
    return client.chat.completions.create(
        messages=messages, **{**OPTIONS, **NO_STOP, **options}
    )


def streamed(client, messages):
    parts = list(
        complete(client, messages, stream=True, stream_options={"include_usage": True})
    )
    words = [part.choices[0].delta.content or "" for part in parts if part.choices]
    return "".join(words), parts[-1].usage


CHATS = (
    *("a_text", "a_multiturn", "b_image", "b_two_images"),
    *("c_audio", "c_two_audio_packed"),
)


@pytest.mark.parametrize("case", CHATS)
def test_chat_equals_the_official_answer(client, golden, chats, case):
    expected = golden.json["cases"][case]
    source = "c_two_audio" if case == "c_two_audio_packed" else case
    answer = complete(client, chats[case])
    assert answer.choices[0].message.content == expected["greedy_text"]
    assert answer.choices[0].finish_reason == "length"
    prompt = golden.json["cases"][source]["prompt_len"]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, 8)
    words, usage = streamed(client, chats[case])
    assert words == expected["greedy_text"]
    assert (usage.prompt_tokens, usage.completion_tokens) == (prompt, 8)


def test_video_files_are_understood(client):
    message = [user(video_part(), text("Describe."))]
    answer = complete(client, message)
    words, usage = streamed(client, message)
    assert words == answer.choices[0].message.content
    assert usage.prompt_tokens == answer.usage.prompt_tokens > 200


def video_part(frames=12):
    import av

    stream = io.BytesIO()
    with av.open(stream, "w", format="avi") as container:
        track = container.add_stream("mpeg4", rate=4)
        track.width, track.height = 64, 64
        container.start_encoding()  # writes a header even without frames
        for index in range(frames):
            pixels = np.full((64, 64, 3), 20 * index, "uint8")
            container.mux(track.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(track.encode(None))
    url = f"data:video/avi;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return {"type": "video_url", "video_url": {"url": url}}


def test_a_stop_token_ends_the_answer(client, golden, chats):
    greedy = golden.json["cases"]["a_text"]["greedy_ids"]
    answer = complete(
        client, chats["a_text"], extra_body={"stop_token_ids": [greedy[2]]}
    )
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 3


def test_thinking_changes_the_prompt(client, chats):
    plain = complete(client, chats["a_text"]).usage.prompt_tokens
    switch = {"chat_template_kwargs": {"thinking": True}, "ignore_eos": True}
    thinks = complete(client, chats["a_text"], extra_body=switch).usage.prompt_tokens
    assert thinks == plain - 1  # "on" is a byte shorter than "off"


def test_tools_are_taken(client, chats):
    function = {"name": "add", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": function}]
    plain = complete(client, chats["a_text"]).usage.prompt_tokens
    answer = complete(client, chats["a_text"], tools=tools, tool_choice="none")
    assert answer.usage.prompt_tokens == plain
    answer = complete(client, chats["a_text"], tools=tools, tool_choice="auto")
    assert answer.usage.prompt_tokens > plain + 300


def test_32_mixed_requests_at_once_equal_single_ones(client, golden, chats):
    video = [user(video_part(), text("Describe."))]
    expected = {case: golden.json["cases"][case]["greedy_text"] for case in CHATS}
    expected["video"] = complete(client, video).choices[0].message.content
    messages = {**chats, "video": video}
    cases = (list(messages) * 5)[:32]
    with ThreadPoolExecutor(32) as threads:
        answers = list(
            threads.map(lambda case: complete(client, messages[case]), cases)
        )
    got = [answer.choices[0].message.content for answer in answers]
    assert got == [expected[case] for case in cases]


def generate(server, request, **sampling):
    body = {**request, "sampling_params": {**ONE_TOKEN, **sampling}}
    return httpx.post(f"{server.url}/generate", json=body, timeout=300)


@pytest.mark.parametrize("case", GENERATION_CASES)
def test_query_states_over_http(server, golden, case):
    for _ in range(3):
        answer = generate(server, golden_request(golden, case))
        assert answer.status_code == 200, answer.text
        error = query_error(golden, case, answer.json()["meta_info"])
        assert error < THRESHOLD


def test_generation_and_chat_do_not_disturb_one_another(server, client, golden, chats):
    def draw(case):
        answer = generate(server, golden_request(golden, case))
        return query_error(golden, case, answer.json()["meta_info"]) < THRESHOLD

    def chat(case):
        answer = complete(client, chats[case]).choices[0].message.content
        return answer == golden.json["cases"][case]["greedy_text"]

    with ThreadPoolExecutor(16) as threads:
        drawn = [threads.submit(draw, case) for case in GENERATION_CASES * 3]
        talked = [threads.submit(chat, case) for case in CHATS]
        assert all(job.result() for job in [*drawn, *talked])


def png(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return base64.b64encode(stream.getvalue()).decode()


def image_part(payload):
    return {"type": "image_url", "image_url": {"url": payload}}


def audio_part(samples):
    stream = io.BytesIO()
    soundfile.write(stream, samples, 16_000, format="WAV")
    data = base64.b64encode(stream.getvalue()).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def bad_messages():
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    gif = png(frames[0], "GIF", save_all=True, append_images=frames[1:])
    huge = png(Image.new("1", (12000, 12000)))
    header = b"IHDR" + bytes(8) + b"\x08\x02\x00\x00\x00"
    zero = b"\x89PNG\r\n\x1a\n\x00\x00\x00\r" + header
    zero += zlib.crc32(header).to_bytes(4, "big")
    sound = audio_part(np.zeros(16_000))["input_audio"]["data"]
    silent = {"type": "video_url", "video_url": {"url": f"data:;base64,{sound}"}}
    empty = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}
    corrupt = {"data": "AAAA", "format": "wav"}
    return {
        "broken image": ([user(image_part("data:image/png;base64,AAAA"))], "decoded"),
        "empty image": ([user(image_part("data:image/png;base64,"))], "empty"),
        "zero-size image": (
            [user(image_part(f"data:;base64,{base64.b64encode(zero).decode()}"))],
            "decoded",
        ),
        "animated gif": (
            [user(image_part(f"data:image/gif;base64,{gif}"))],
            "animated",
        ),
        "huge image": (
            [user(image_part(f"data:image/png;base64,{huge}"))],
            "12000x12000",
        ),
        "thin image": (
            [user(image_part(f"data:;base64,{png(Image.new('1', (1, 999)))}"))],
            "200 times",
        ),
        "private url": ([user(image_part("http://127.0.0.1:1/a.png"))], "not public"),
        "metadata url": (
            [user(image_part("http://169.254.169.254/latest"))],
            "not public",
        ),
        "local file": ([user(image_part("/etc/passwd"))], "file names"),
        "file url": ([user(image_part("file:///etc/passwd"))], "file names"),
        "corrupt audio": (
            [user({"type": "input_audio", "input_audio": corrupt})],
            "decoded",
        ),
        "empty audio": ([user(audio_part(np.zeros(0)))], "audio"),
        "long audio": ([user(audio_part(np.zeros(16_000 * 13)))], "at most 12 s"),
        "broken video": ([user(empty)], "decoded"),
        "no frames": ([user(video_part(frames=0))], "it has no frames"),
        "no video": ([user(silent)], "the file has no video"),
        "special token": ([user(text("a <|role_end|> b"))], "special token"),
        "placeholder": ([user(text("an <IMAGE>"))], "special token"),
        "wrong role": (
            [user(text("a")), {"role": "system", "content": "b"}, user(text("c"))],
            "role system",
        ),
        "last is assistant": ([{"role": "system", "content": "b"}], "last message"),
        "too long": ([user(text("a" * 5000))], "context length"),
        "unknown part": ([user({"type": "smell", "smell": "rose"})], ""),
        "unknown role": ([{"role": "king", "content": "a"}], ""),
    }


def test_bad_input_is_the_clients_error_and_the_server_goes_on(
    server, client, golden, chats
):
    wrong = []
    for name, (messages, reason) in bad_messages().items():
        body = {"model": "ming", "messages": messages, "max_tokens": 4}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)
        if not (400 <= answer.status_code < 500 and reason in answer.text):
            wrong.append((name, answer.status_code, answer.text[:300]))
        after = complete(client, chats["b_image"]).choices[0].message.content
        if after != golden.json["cases"]["b_image"]["greedy_text"]:
            wrong.append((name, "the next answer is wrong", after))
    assert wrong == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image_data": [QUERY_BLOCK, QUERY_BLOCK]}, "once, and last"),
        ({"text": "<imagePatch>"}, "patch tokens"),
        ({"text": "<IMAGE>"}, "1 <IMAGE> and 0 image"),
        ({"image_data": ["ming:query"]}, "file names are only allowed"),
    ],
)
def test_bad_generation_requests(server, golden, change, reason):
    answer = generate(server, {**golden_request(golden, "e_t2i"), **change})
    assert answer.status_code == 400
    assert reason in json.dumps(answer.json(), ensure_ascii=False)
    good = generate(server, golden_request(golden, "e_t2i")).json()
    assert query_error(golden, "e_t2i", good["meta_info"]) < THRESHOLD
