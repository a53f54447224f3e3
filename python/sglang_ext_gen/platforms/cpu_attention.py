# SPDX-License-Identifier: Apache-2.0
"""Decoding attention of a whole batch at once, in plain torch.

SGLang's ``torch_native`` attention takes one request after the other: a dozen torch
calls a request and layer, which for small models cost more than the arithmetic. Here
the keys of all requests are gathered into one padded block.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def decode_together(
    original: Callable[..., Tensor],
    backend: Any,
    query: Tensor,
    output: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    req_to_token: Tensor,
    req_pool_indices: Tensor,
    seq_lens: Tensor,
    encoder_lens: Tensor | None = None,
    scaling: float | None = None,
    enable_gqa: bool = False,
    causal: bool = False,
    is_cross_attn: bool = False,
    sliding_window_size: int | None = None,
) -> Tensor:
    """Around ``TorchNativeAttnBackend._run_sdpa_forward_decode``, for plain decoding.

    ``original`` is SGLang's method, used for encoders, sliding windows and other
    dtypes. The arguments are SGLang's: ``query`` and ``output`` are [B, heads, d], one
    token a request; ``k_cache`` and ``v_cache`` are [slots, kv heads, d];
    ``req_to_token`` [requests, longest] has the slots of each request's tokens.
    """
    is_plain = encoder_lens is None and not is_cross_attn and not sliding_window_size
    if not is_plain or not query.dtype == k_cache.dtype == v_cache.dtype:
        return original(
            *(backend, query, output, k_cache, v_cache, req_to_token),
            *(req_pool_indices, seq_lens, encoder_lens, scaling, enable_gqa),
            *(causal, is_cross_attn, sliding_window_size),
        )
    longest = int(seq_lens.max())
    is_token = torch.arange(longest) < seq_lens[:, None]  # [B, longest]
    slots = req_to_token[req_pool_indices, :longest]
    # Beyond its end a request repeats its first token: any finite value would do.
    slots = torch.where(is_token, slots, slots[:, :1])
    # Whole rows are copied; indexing with a matrix of slots would go number by number.
    keys, values = (
        cache.index_select(0, slots.flatten()).unflatten(0, slots.shape).transpose(1, 2)
        for cache in (k_cache, v_cache)
    )
    # The heads that share a kv head are its queries: nothing is repeated for them.
    attended = F.scaled_dot_product_attention(
        query.unflatten(1, (k_cache.shape[1], -1)),  # [B, kv heads, shared by, d]
        keys,
        values,
        attn_mask=is_token[:, None, None],
        scale=scaling,
    )
    output.copy_(attended.flatten(1, 2))
    return output
