# SPDX-License-Identifier: Apache-2.0
"""The thinker of a whole checkpoint, image generator beside it.

It is the server behind the one port, asked at its own address, against the official
code's numbers in float32. In bf16 ``test_bfloat16.py`` runs it.
"""

from typing import Any

import httpx
import pytest

from conftest import Golden
from server.ming import (
    ONE_TOKEN,
    THRESHOLD,
    golden_sampling,
    hidden_states,
    integrated_request,
    max_error,
    query_error,
)
from server.one_port import as_server
from server.servers import Server

pytestmark = pytest.mark.slow
HIDDEN = {"return_hidden_states": True}
CHATS = ("chat_text", "chat_image_audio")
PICTURES = ("t2i", "t2i_text", "edit")


@pytest.fixture(scope="module")
def golden(omni_golden: Golden) -> Golden:
    return omni_golden


@pytest.fixture(scope="module")
def thinker(one_port: Server) -> Server:
    return as_server(one_port, "thinker")


def generate(thinker: Server, golden: Golden, case: str, **options: Any) -> Any:
    body = {**integrated_request(golden, case), **options}
    answer = httpx.post(f"{thinker.url}/generate", json=body, timeout=300)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("case", CHATS)
def test_answers(thinker, golden, case):
    output = generate(
        thinker, golden, case, sampling_params=golden_sampling(golden, case), **HIDDEN
    )
    assert output["output_ids"] == golden.json["cases"][case]["greedy_ids"]
    assert max_error(*hidden_states(golden, case, output)) < THRESHOLD


@pytest.mark.parametrize("case", PICTURES)
def test_query_states(thinker, golden, case):
    output = generate(thinker, golden, case, sampling_params=ONE_TOKEN)
    assert query_error(golden, case, output["meta_info"]) < THRESHOLD
