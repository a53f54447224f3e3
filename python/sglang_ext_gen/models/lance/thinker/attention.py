# SPDX-License-Identifier: Apache-2.0
"""Attention that is bidirectional inside a visual block, on any backend.

SGLang's backends attend causally. Their result stands for text; the rows of a visual
block are computed again here, against keys and values from the cache: all that comes
before the block and the whole block. That costs one more attention for those rows, in
the prefill that contains them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.model_executor.forward_context import (
    get_req_to_token_pool,
    get_token_to_kv_pool,
)
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class VisualBlock:
    """Rows of a batch that lie inside one visual block.

    Args:
        rows: Slice of the batch's tokens.
        request: Row of the request in SGLang's table of cache slots.
        end: Tokens of the request up to the end of the block.
    """

    rows: slice
    request: int
    end: int


_BLOCKS: ContextVar[tuple[VisualBlock, ...]] = ContextVar("visual_blocks", default=())


@contextmanager
def attending(blocks: tuple[VisualBlock, ...]) -> Iterator[None]:
    """Attend bidirectionally inside ``blocks`` in the forward pass that follows."""
    token = _BLOCKS.set(blocks)
    try:
        yield
    finally:
        _BLOCKS.reset(token)


def find_blocks(forward_batch: ForwardBatch, mm_inputs: list[Any]) -> list[VisualBlock]:
    """The visual blocks of a prefill batch.

    Args:
        forward_batch: Of the model's forward.
        mm_inputs: Its media, one entry a request, None without.
    """
    if not forward_batch.forward_mode.is_extend() or not any(mm_inputs or ()):
        return []
    requests = forward_batch.req_pool_indices.tolist()
    blocks, offset = [], 0
    prefixes = forward_batch.extend_prefix_lens_cpu
    lengths = forward_batch.extend_seq_lens_cpu
    assert prefixes is not None, "a prefill has them"
    assert lengths is not None, "a prefill has them"
    for index, (prefix, length) in enumerate(zip(prefixes, lengths, strict=True)):
        items = mm_inputs[index].mm_items if mm_inputs[index] is not None else ()
        for first, last in (span for item in items for span in item.offsets):
            begin, end = max(first, prefix), last + 1
            if begin < end:
                # Chunked prefill is off, so the block ends in this batch.
                assert end <= prefix + length, "a visual block was cut"
                rows = slice(offset + begin - prefix, offset + end - prefix)
                blocks.append(VisualBlock(rows, requests[index], end))
        offset += length
    return blocks


class BlockAttention(RadixAttention):
    """SGLang's attention, with the rows of visual blocks done over."""

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        forward_batch: ForwardBatch,
        **kwargs: Any,
    ) -> Tensor:
        """q: [S, H * d]; k, v: [S, K * d] -> [S, H * d]."""
        attended: Any = super().forward(q, k, v, forward_batch, **kwargs)
        for block in _BLOCKS.get():
            attended[block.rows] = self._attend(q[block.rows], block)
        return attended

    def _attend(self, q: Tensor, block: VisualBlock) -> Tensor:
        slots = get_req_to_token_pool().req_to_token[block.request, : block.end].long()
        keys, values = get_token_to_kv_pool().get_kv_buffer(self.layer_id)
        heads = q.view(len(q), -1, self.head_dim).transpose(0, 1)
        out = F.scaled_dot_product_attention(
            heads[None],
            keys[slots].transpose(0, 1)[None].to(q.dtype),
            values[slots].transpose(0, 1)[None].to(q.dtype),
            scale=self.scaling,
            enable_gqa=True,
        )
        return out[0].transpose(0, 1).flatten(1)
