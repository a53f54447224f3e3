# SPDX-License-Identifier: Apache-2.0
"""The thinker of a whole checkpoint, image generator beside it.

In bf16, in a real Engine, against the official code's own bf16 run, which is on record
in ``golden.json``. In float32 it is tested behind the one port.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import Golden
from server.ming import (
    ENGINE,
    ONE_TOKEN,
    golden_sampling,
    hidden_states,
    integrated_request,
    query_rows,
)
from server.servers import started_engine

pytestmark = pytest.mark.slow
HIDDEN = {"return_hidden_states": True}
CHATS = ("chat_text", "chat_image_audio")
PICTURES = ("t2i", "t2i_text", "edit")
# Of the official code's own error in bf16, which is 0.07 to 0.10 of the rows' length.
BF16_FACTOR = 1.5


@pytest.fixture(scope="module")
def golden(omni_golden: Golden) -> Golden:
    return omni_golden


def test_bfloat16(golden):
    """Every case in one engine of its own."""
    with started_engine(golden.checkpoint, dtype="bfloat16", **ENGINE) as engine:

        def ask(case: str, **options: Any) -> Any:
            request = integrated_request(golden, case)
            request["prompt"] = request.pop("text")
            return engine.generate(**request, **options)

        answers = {
            case: ask(case, sampling_params=golden_sampling(golden, case), **HIDDEN)
            for case in CHATS
        }
        states = {case: ask(case, sampling_params=ONE_TOKEN) for case in PICTURES}
    worst = worst_bf16(golden)
    for case, output in answers.items():
        error = relative_error(*hidden_states(golden, case, output))
        assert error < BF16_FACTOR * worst, case
    for case, output in states.items():
        rows = query_rows(output["meta_info"])
        assert rows.dtype == torch.bfloat16
        error = relative_error(rows, golden.tensor(f"{case}.query_hidden"))
        assert error < BF16_FACTOR * worst, case


def relative_error(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    return float((got.float() - expected).norm() / expected.norm())


def worst_bf16(golden) -> float:
    """Largest relative error of query states in the official code's bf16 run."""
    floor = golden.json["precision_floor"]["PRECISION_thinker_bf16"]
    return max(case["query_hidden_rel"] for case in floor.values())
