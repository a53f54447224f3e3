# SPDX-License-Identifier: Apache-2.0
"""The hidden states of query tokens: collected over chunks, complete or an error."""

import base64
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from sglang_ext_gen.errors import ThinkerError
from sglang_ext_gen.models.ming_omni.thinker.query_states import SCALE, collect
from sglang_ext_gen.models.ming_omni.thinker_protocol import (
    QUERY_STATES_KEY,
    QueryStates,
)


@dataclass
class Item:
    offsets: list[tuple[int, int]]
    model_specific_data: dict[str, Any] = field(default_factory=dict)


@dataclass
class Inputs:
    mm_items: list[Item]


def block(start: int, side: int) -> Item:
    return Item([(start, start + side * side - 1)], {SCALE: side})


def picture(start: int, length: int) -> Item:
    return Item([(start, start + length - 1)])


ROWS = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))


def states(values, index: int) -> QueryStates:
    return QueryStates.from_meta_info(
        {QUERY_STATES_KEY: [values[QUERY_STATES_KEY][index]]}
    )


def numbers(got: QueryStates) -> torch.Tensor:
    dtype = getattr(torch, got.dtype)
    return torch.frombuffer(bytearray(got.data), dtype=dtype).view(-1, got.width)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_of_all_scales_come_in_order(dtype):
    rows = ROWS.to(dtype)
    inputs = Inputs([picture(1, 4), block(10, 2), block(16, 3)])
    got = states(collect(rows[:26], [inputs], [0], [26]), 0)
    assert (got.scales, got.width, got.rows) == ((2, 3), 8, 13)
    assert torch.equal(numbers(got), torch.cat((rows[10:14], rows[16:25])))
    last = torch.frombuffer(bytearray(got.last_scale), dtype=dtype).view(9, 8)
    assert torch.equal(last, rows[16:25])


@pytest.mark.parametrize("cut", range(1, 12))
def test_chunks_may_split_a_block_anywhere(cut):
    inputs = Inputs([block(2, 3)])
    first = collect(ROWS[:cut], [inputs], [0], [cut])
    if cut >= 11:
        assert first is not None
        return
    assert first is None
    got = states(collect(ROWS[cut:12], [inputs], [cut], [12 - cut]), 0)
    assert torch.equal(numbers(got), ROWS[2:11])


def test_a_cached_prefix_does_not_matter():
    inputs = Inputs([block(20, 2)])
    got = states(collect(ROWS[20:25], [inputs], [20], [5]), 0)
    assert torch.equal(numbers(got), ROWS[20:24])


def test_requests_of_one_batch_are_kept_apart():
    a, b = Inputs([block(1, 2)]), Inputs([block(3, 2)])
    chat = Inputs([picture(0, 5)])
    values = collect(ROWS[:23], [a, None, chat, b], [0, 0, 0, 2], [6, 3, 8, 6])
    assert [value is None for value in values[QUERY_STATES_KEY]] == [
        False,
        True,
        True,
        False,
    ]
    assert torch.equal(numbers(states(values, 0)), ROWS[1:5])
    assert torch.equal(numbers(states(values, 3)), ROWS[18:22])


def test_batches_without_blocks_carry_nothing():
    assert collect(ROWS[:8], [None, Inputs([picture(0, 2)])], [0, 0], [3, 5]) is None


def test_a_block_out_of_the_cache_is_an_error_and_never_zeros():
    inputs = Inputs([block(2, 3)])
    values = collect(ROWS[5:12], [inputs], [5], [7])
    with pytest.raises(ThinkerError, match="only 6 of 9 query tokens"):
        states(values, 0)


def test_a_computed_again_request_starts_anew():
    inputs = Inputs([block(2, 3)])
    collect(ROWS[:6], [inputs], [0], [6])  # taken back before its block was complete
    got = states(collect(-ROWS[:12], [inputs], [0], [12]), 0)
    assert torch.equal(numbers(got), -ROWS[2:11])


GOOD = QueryStates((1,), 2, "float32", bytes(8)).to_json()


@pytest.mark.parametrize(
    ("meta_info", "message"),
    [
        ({}, "has no ming_query_states"),
        ({QUERY_STATES_KEY: []}, "has no ming_query_states"),
        ({QUERY_STATES_KEY: [None]}, "is NoneType"),
        ({QUERY_STATES_KEY: [{"error": "why"}]}, "the thinker failed: why"),
        ({QUERY_STATES_KEY: [{**GOOD, "width": 3}]}, "has 8 bytes, expected 12"),
        ({QUERY_STATES_KEY: [{**GOOD, "dtype": "int8"}]}, "malformed"),
        ({QUERY_STATES_KEY: [{**GOOD, "data": "@"}]}, "malformed"),
        ({QUERY_STATES_KEY: [{**GOOD, "scales": []}]}, "expected 0|malformed"),
        ({QUERY_STATES_KEY: [{"data": ""}]}, "malformed"),
    ],
)
def test_bad_answers_are_errors(meta_info, message):
    with pytest.raises(ThinkerError, match=message):
        QueryStates.from_meta_info(meta_info)


def test_the_wire_form_is_small():
    rows = QueryStates((16,), 4096, "bfloat16", bytes(256 * 4096 * 2))
    assert len(base64.b64decode(rows.to_json()["data"])) == 2 << 20
    assert len(rows.to_json()["data"]) < 3e6
