# SPDX-License-Identifier: Apache-2.0
"""``Lance_3B`` answers a question through ``sgl.Engine`` on the CPU.

Its feed-forward layers have sizes that SGLang would pad on a CPU. ``Lance_3B_Video``
answers in ``test_chat.py``, with the sizes of the golden checkpoint.
"""

import asyncio
from typing import Any

import pytest

from conftest import Golden
from server.lance_requests import PRESETS, data_url
from server.servers import started_engine
from uneven_sizes import write_uneven

pytestmark = pytest.mark.slow

SAMPLING = {"max_new_tokens": 8, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def answers(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The same question about a picture singly, then twice at once."""
    folder = tmp_path_factory.mktemp("uneven") / "lance"
    checkpoint = write_uneven(golden.path / "checkpoint", folder, extra=7)
    picture = data_url(golden.path / golden.json["cases"]["x2t_image"]["image"])
    request = {
        "prompt": golden.json["cases"]["x2t_image"]["prompt"],
        "image_data": picture,
        "sampling_params": SAMPLING,
    }
    with started_engine(
        checkpoint / "Lance_3B",
        mm_process_config=PRESETS,
        skip_server_warmup=True,
        max_total_tokens=4096,
        mem_fraction_static=0.2,
    ) as engine:

        async def at_once() -> list[Any]:
            return await asyncio.gather(
                *(engine.async_generate(**request) for _ in range(2))
            )

        single = engine.generate(**request)
        return [single, *engine.loop.run_until_complete(at_once())]


def test_answer_about_a_picture_equals_the_official_one(golden, answers):
    case = golden.json["cases"]["x2t_image"]
    for answer in answers:
        assert answer["output_ids"] == golden.tensor("x2t_image.output_ids").tolist()
        assert answer["text"].strip() == case["text"]
        assert answer["meta_info"]["prompt_tokens"] == case["sequence_length"]
    # The second time the prompt comes from the prefix cache.
    assert answers[1]["meta_info"]["cached_tokens"] > 100
