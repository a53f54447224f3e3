# SPDX-License-Identifier: Apache-2.0
"""Decoding attention of a batch equals SGLang's, which goes request by request."""

import pytest
import torch

from sglang_ext_gen.platforms.cpu_attention import decode_together


@pytest.fixture(scope="module")
def stock():
    from sglang.srt.layers.attention.torch_native_backend import (
        TorchNativeAttnBackend,
    )

    return TorchNativeAttnBackend.__dict__["_run_sdpa_forward_decode"]


def batch(heads: int = 4, kv_heads: int = 2, width: int = 16):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([7, 1, 30])
    slots = torch.randperm(99, generator=generator)
    table = torch.zeros(5, 40, dtype=torch.int32)
    rows = torch.tensor([3, 0, 2])
    used = 0
    for row, length in zip(rows.tolist(), lengths.tolist(), strict=True):
        table[row, :length] = slots[used : used + length]
        used += length
    caches = [torch.randn(99, kv_heads, width, generator=generator) for _ in range(2)]
    for cache in caches:
        cache[slots[used:]] = torch.nan  # slots of nobody
    query = torch.randn(3, heads, width, generator=generator)
    return query, torch.zeros_like(query), *caches, table, rows, lengths


@pytest.mark.parametrize("heads", [2, 4])
def test_a_batch_equals_its_requests(stock, heads):
    arguments = batch(heads)
    options = {"scaling": 0.3, "enable_gqa": heads != 2}
    expected = stock(None, *arguments, **options).clone()
    arguments[1].zero_()
    got = decode_together(_not_called, None, *arguments, **options)  # pyright: ignore
    assert got is arguments[1]
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"encoder_lens": torch.ones(3)},
        {"is_cross_attn": True},
        {"sliding_window_size": 4},
    ],
)
def test_other_attention_is_left_to_sglang(options):
    def original(backend, *arguments):
        return backend, len(arguments)

    got = decode_together(original, "it", *batch(), **options)  # pyright: ignore
    assert got == ("it", 13)


def _not_called(*_: object) -> torch.Tensor:
    raise AssertionError("SGLang's own loop ran")
