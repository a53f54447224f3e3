# SPDX-License-Identifier: Apache-2.0
"""Lance answers questions through ``sgl.Engine`` on the CPU."""

import asyncio
from typing import Any

import pytest

from conftest import Golden
from server.lance_requests import PRESETS, data_url, write_source_video
from server.servers import free_ports

pytestmark = pytest.mark.slow

SAMPLING = {"max_new_tokens": 8, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def golden(golden_dir) -> Golden:
    return Golden(golden_dir("lance"))


def run(variant: str, golden: Golden, requests: list[dict[str, Any]]) -> list[Any]:
    """Answers of an engine that lives for these requests: first singly, then at once.

    Returns:
        Two answers a request, in the requests' order.
    """
    import sglang

    port, nccl_port, _ = free_ports()
    engine = sglang.Engine(
        model_path=str(golden.path / "checkpoint" / variant),
        dtype="float32",
        mm_process_config=PRESETS,
        port=port,
        nccl_port=nccl_port,
        skip_server_warmup=True,
        max_total_tokens=4096,
        mem_fraction_static=0.2,
        log_level="warning",
    )

    async def at_once() -> list[Any]:
        return await asyncio.gather(
            *(engine.async_generate(**r, sampling_params=SAMPLING) for r in requests)
        )

    try:
        singles = [engine.generate(**r, sampling_params=SAMPLING) for r in requests]
        together = engine.loop.run_until_complete(at_once())
    finally:
        engine.shutdown()
    return list(zip(singles, together, strict=True))


def check(golden: Golden, name: str, answers: tuple[Any, Any]) -> None:
    case, want = golden.json["cases"][name], golden.tensor(f"{name}.output_ids")
    for answer in answers:
        assert answer["output_ids"] == want.tolist()
        assert answer["text"].strip() == case["text"]
        assert answer["meta_info"]["prompt_tokens"] == case["sequence_length"]
    # The second time the prompt comes from the prefix cache.
    assert answers[1]["meta_info"]["cached_tokens"] > 100


def test_answer_about_a_picture_equals_the_official_one(golden):
    case = golden.json["cases"]["x2t_image"]
    picture = data_url(golden.path / case["image"])
    request = {"prompt": case["prompt"], "image_data": picture}
    [answers] = run("Lance_3B", golden, [request])
    check(golden, "x2t_image", answers)


def test_answer_about_a_video_equals_the_official_one(golden, tmp_path):
    case = golden.json["cases"]["x2t_video"]
    video = data_url(write_source_video(golden, tmp_path / "source.mp4"))
    picture = data_url(golden.path / "input_image.png")
    requests = [
        {"prompt": case["prompt"], "video_data": video},
        {"prompt": "And this?", "image_data": picture},
        {"prompt": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"},
    ]
    official, *others = run("Lance_3B_Video", golden, requests)
    check(golden, "x2t_video", official)
    for single, together in others:
        assert single["output_ids"] == together["output_ids"]
