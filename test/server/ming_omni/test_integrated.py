# SPDX-License-Identifier: Apache-2.0
"""The thinker of a whole checkpoint, image generator beside it, in a real Engine.

In float32 against the official code's numbers; in bf16 against the official code's own
bf16 run, which is on record in ``golden.json``.
"""

import pytest
import torch
from torch import Tensor

from conftest import Golden
from server.ming import (
    ONE_TOKEN,
    THRESHOLD,
    engine_arguments,
    integrated_request,
    max_error,
    query_error,
    query_rows,
)

pytestmark = pytest.mark.slow
CHATS = ("chat_text", "chat_image_audio")
PICTURES = ("t2i", "t2i_text", "edit")
# Of the official code's own error in bf16, which is 0.07 to 0.10 of the rows' length.
BF16_FACTOR = 1.5


@pytest.fixture(scope="module")
def golden(golden_dir) -> Golden:
    return Golden(golden_dir("ming_omni"))


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def engine(request, golden):
    import sglang

    # One start per dtype: about a minute of CPU time each.
    arguments = engine_arguments(golden.checkpoint, dtype=request.param)
    running = sglang.Engine(**arguments)
    yield running
    running.shutdown()


def generate(engine, golden, case, **options):
    request = integrated_request(golden, case)
    request["prompt"] = request.pop("text")
    return engine.generate(**request, **options)


def relative_error(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    return float((got.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize("case", CHATS)
def test_answers(engine, golden, case):
    stored = golden.json["cases"][case]
    sampling = {
        "max_new_tokens": stored["max_new_tokens"],
        "temperature": 0,
        "ignore_eos": True,
    }
    output = generate(
        engine, golden, case, sampling_params=sampling, return_hidden_states=True
    )
    assert output["meta_info"]["prompt_tokens"] == stored["prompt_len"]
    got = torch.tensor(output["meta_info"]["hidden_states"][0])
    expected = golden.tensor(f"{case}.hidden")[output["meta_info"]["cached_tokens"] :]
    if engine.server_args.dtype == "float32":
        assert output["output_ids"] == stored["greedy_ids"]
        assert max_error(got, expected) < THRESHOLD
    else:
        assert relative_error(got, expected) < BF16_FACTOR * worst_bf16(golden)


@pytest.mark.parametrize("case", PICTURES)
def test_query_states(engine, golden, case):
    output = generate(engine, golden, case, sampling_params=ONE_TOKEN)
    if engine.server_args.dtype == "float32":
        assert query_error(golden, case, output["meta_info"]) < THRESHOLD
        return
    rows = query_rows(output["meta_info"])
    assert rows.dtype == torch.bfloat16
    error = relative_error(rows, golden.tensor(f"{case}.query_hidden"))
    assert error < BF16_FACTOR * worst_bf16(golden)


def worst_bf16(golden) -> float:
    """Largest relative error of query states in the official code's bf16 run."""
    floor = golden.json["precision_floor"]["PRECISION_thinker_bf16"]
    return max(case["query_hidden_rel"] for case in floor.values())
