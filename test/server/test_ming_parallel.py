# SPDX-License-Identifier: Apache-2.0
"""The thinker over two tensor-parallel processes on CPU, against the same data."""

import os

import pytest
import torch

from conftest import Golden
from server.ming import (
    CHAT_CASES,
    GENERATION_CASES,
    GREEDY,
    ONE_TOKEN,
    THRESHOLD,
    engine_arguments,
    golden_request,
    max_error,
    query_error,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def golden(golden_dir) -> Golden:
    return Golden(golden_dir("ming_thinker"))


@pytest.fixture(scope="module")
def engine(golden):
    import sglang

    # SGLang asks for one core list per rank; without it it counts NUMA nodes.
    os.environ["SGLANG_CPU_OMP_THREADS_BIND"] = "0|0"
    try:
        running = sglang.Engine(**engine_arguments(golden.path, tp_size=2))
        yield running
        running.shutdown()
    finally:
        del os.environ["SGLANG_CPU_OMP_THREADS_BIND"]


def generate(engine, request, **options):
    arguments = {**request, "prompt": request["text"]}
    del arguments["text"]
    return engine.generate(**arguments, **options)


@pytest.mark.parametrize("case", CHAT_CASES)
def test_two_ranks_equal_the_official_model(engine, golden, case):
    output = generate(
        engine,
        golden_request(golden, case),
        sampling_params=GREEDY,
        return_hidden_states=True,
    )
    assert output["output_ids"] == golden.json["cases"][case]["greedy_ids"]
    got = torch.tensor(output["meta_info"]["hidden_states"][0])
    expected = golden.tensor(f"{case}.hidden")[-len(got) :]
    assert max_error(got, expected) < THRESHOLD


@pytest.mark.parametrize("case", GENERATION_CASES)
def test_query_states_of_two_ranks(engine, golden, case):
    for _ in range(2):
        output = generate(
            engine, golden_request(golden, case), sampling_params=ONE_TOKEN
        )
        assert query_error(golden, case, output["meta_info"]) < THRESHOLD
