# SPDX-License-Identifier: Apache-2.0
"""The thinker in a real ``sgl.Engine``, float32, against the official code.

With SGLang's prefix cache, empty and full, and with feed-forward layers of sizes that
SGLang would pad on a CPU; ``test_serve.py`` runs it with neither.
"""

import asyncio
import json

import pytest
import torch

from conftest import Golden
from server.ming import (
    CHAT_CASES,
    ENGINE,
    GENERATION_CASES,
    GREEDY,
    ONE_TOKEN,
    THRESHOLD,
    golden_request,
    max_error,
    query_error,
)
from server.servers import started_engine
from uneven_sizes import write_uneven

pytestmark = pytest.mark.slow
CASES = ("a_raw", *CHAT_CASES)


@pytest.fixture(scope="session")
def golden(golden_dir) -> Golden:
    return Golden(golden_dir("ming_thinker"))


@pytest.fixture(scope="module")
def engine(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uneven") / "thinker"
    checkpoint = write_uneven(golden.path, folder, extra=7)
    config = checkpoint / "config.json"
    values = json.loads(config.read_text("utf-8"))
    # By this name SGLang would pad the tower, too.
    values["vision_config"]["model_type"] = "qwen3_vl_moe"
    config.write_text(json.dumps(values), "utf-8")
    with started_engine(checkpoint, **ENGINE) as running:
        yield running


def generate(engine, request, **options):
    arguments = {**request}
    if "text" in arguments:
        arguments["prompt"] = arguments.pop("text")
    return engine.generate(**arguments, **options)


def check_chat(golden, case, output):
    """Tokens identical; every hidden state that was computed within the threshold.

    Returns:
        How many tokens of the prompt came from the cache.
    """
    assert output["output_ids"] == golden.json["cases"][case]["greedy_ids"]
    got = torch.tensor(output["meta_info"]["hidden_states"][0])
    expected = golden.tensor(f"{case}.hidden")
    cached = output["meta_info"]["cached_tokens"]
    assert len(got) == len(expected) - cached
    assert max_error(got, expected[cached:]) < THRESHOLD
    return cached


@pytest.mark.parametrize("case", CASES)
def test_each_case_alone(engine, golden, case):
    def ask():
        return generate(
            engine,
            golden_request(golden, case),
            sampling_params=GREEDY,
            return_hidden_states=True,
        )

    engine.flush_cache()
    assert check_chat(golden, case, ask()) == 0
    assert check_chat(golden, case, ask()) > 0


@pytest.mark.parametrize("case", GENERATION_CASES)
def test_query_states_come_complete_every_time(engine, golden, case):
    request = golden_request(golden, case)
    engine.flush_cache()
    cached = []
    for _ in range(3):
        output = generate(engine, request, sampling_params=ONE_TOKEN)
        assert query_error(golden, case, output["meta_info"]) < THRESHOLD
        cached.append(output["meta_info"]["cached_tokens"])
    prompt = golden.json["cases"][case]["prompt_len"]
    # The prompt and the block's start marker are found in the cache, the block is not.
    assert cached == [0, prompt + 1, prompt + 1]


def test_all_cases_together(engine, golden):
    cases = [*CASES, *GENERATION_CASES] * 2

    async def together():
        def start(case):
            request = golden_request(golden, case)
            if "text" in request:
                request["prompt"] = request.pop("text")
            is_chat = case in CASES
            return engine.async_generate(
                **request,
                sampling_params=GREEDY if is_chat else ONE_TOKEN,
                return_hidden_states=is_chat,
            )

        return await asyncio.gather(*(start(case) for case in cases))

    outputs = engine.loop.run_until_complete(together())
    for case, output in zip(cases, outputs, strict=True):
        if case in CASES:
            check_chat(golden, case, output)
        else:
            assert query_error(golden, case, output["meta_info"]) < THRESHOLD


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_data": [b"broken"]}, "image: cannot be decoded"),
        ({"image_data": []}, "1 <IMAGE> and 0 image"),
    ],
)
def test_bad_requests_are_errors_and_the_engine_goes_on(
    engine, golden, changes, message
):
    request = {**golden_request(golden, "b_image"), **changes}
    if not changes["image_data"]:
        request["audio_data"] = golden_request(golden, "c_audio")["audio_data"]
    with pytest.raises(ValueError, match=message):
        generate(engine, request, sampling_params=GREEDY)
    output = generate(
        engine,
        golden_request(golden, "b_image"),
        sampling_params=GREEDY,
        return_hidden_states=True,
    )
    check_chat(golden, "b_image", output)
