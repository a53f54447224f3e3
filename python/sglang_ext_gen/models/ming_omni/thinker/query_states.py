# SPDX-License-Identifier: Apache-2.0
"""Hidden states of the query tokens, collected while the prompt is computed.

A query block is an IMAGE item of its own with a random hash: the prompt before it stays
in the prefix cache, the block is always computed. A long prompt may be computed in
chunks that split the block, so the rows are collected on the item, which SGLang keeps
with the request, and leave with the last chunk. A block that is not complete then is
answered with an error, never with zeros.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sglang_ext_gen.models.ming_omni.thinker_protocol import (
    QUERY_STATES_KEY,
    QueryStates,
)

SCALE = "ming_query_scale"
_ROWS, _FILLED = "ming_query_rows", "ming_query_filled"


def is_query_block(item: Any) -> bool:
    """Whether an SGLang multimodal item is a query block."""
    return SCALE in item.model_specific_data


def collect(
    hidden_states: Tensor,
    mm_inputs: Sequence[Any],
    prefix_lens: Sequence[int],
    extend_lens: Sequence[int],
) -> dict[str, list[dict[str, Any] | None]] | None:
    """Take the rows of this batch's query blocks; finish the complete requests.

    Args:
        hidden_states: [T, D] after the final norm, requests one after the other.
        mm_inputs: Multimodal inputs per request, None for text.
        prefix_lens: Tokens per request that were computed before.
        extend_lens: Tokens per request in this batch.

    Returns:
        For ``LogitsProcessorOutput.customized_info``: the states of each request whose
        block ends in this batch, None for the others; None if there is no such request.
    """
    values: list[dict[str, Any] | None] = []
    start = 0
    for inputs, prefix, length in zip(mm_inputs, prefix_lens, extend_lens, strict=True):
        blocks = (
            [item for item in inputs.mm_items if is_query_block(item)] if inputs else []
        )
        for item in blocks:
            _store(item, hidden_states[start : start + length], prefix)
        ends = bool(blocks) and prefix + length > blocks[-1].offsets[-1][1]
        values.append(_finish(blocks) if ends else None)
        start += length
    return {QUERY_STATES_KEY: list(values)} if any(values) else None


def _store(item: Any, rows: Tensor, prefix: int) -> None:
    """Copy the part of a block that is in this chunk, which starts at ``prefix``."""
    first, last = item.offsets[0]
    begin, end = max(first, prefix), min(last + 1, prefix + len(rows))
    if begin >= end:
        return
    store = item.model_specific_data
    if _ROWS not in store:
        count = last - first + 1
        store[_ROWS] = torch.empty(count, rows.shape[1], dtype=rows.dtype)
        store[_FILLED] = torch.zeros(count, dtype=torch.bool)
    store[_ROWS][begin - first : end - first] = rows[
        begin - prefix : end - prefix
    ].cpu()
    store[_FILLED][begin - first : end - first] = True


def _finish(blocks: Sequence[Any]) -> dict[str, Any]:
    scales = tuple(int(item.model_specific_data[SCALE]) for item in blocks)
    rows = [item.model_specific_data.pop(_ROWS, None) for item in blocks]
    filled = [item.model_specific_data.pop(_FILLED, None) for item in blocks]
    found = sum(int(part.sum()) for part in filled if part is not None)
    wanted = sum(scale * scale for scale in scales)
    complete = [part for part in rows if part is not None]
    if found != wanted or len(complete) != len(rows):
        return {
            "error": f"only {found} of {wanted} query tokens were computed; part of "
            "the block came from the prefix cache"
        }
    states = torch.cat(complete)
    return QueryStates(
        scales=scales,
        width=states.shape[1],
        dtype=str(states.dtype).removeprefix("torch."),
        data=states.contiguous().view(torch.uint8).numpy().tobytes(),
    ).to_json()
