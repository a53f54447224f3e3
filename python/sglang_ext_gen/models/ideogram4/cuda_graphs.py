# SPDX-License-Identifier: Apache-2.0
"""Prompts of many lengths through few CUDA graphs: text padded to a bucket.

A graph replays one shape. Padding goes where the padding of a batch goes, to the left
of the text, so it is masked and changes no value.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from sglang.multimodal_gen.runtime.breakable_cuda_graph.prompt_padding import (
    select_text_bucket,
)
from sglang.multimodal_gen.runtime.distributed.sp_shard_utils import build_shard_plan
from torch.nn import functional as F

from sglang_ext_gen.models.ideogram4.dit import Ideogram4Transformer, PackedSequence


def pad_prompt(
    inputs: dict[str, Any], transformer: Ideogram4Transformer, buckets: Sequence[int]
) -> dict[str, Any]:
    """Inputs of ``forward`` with the text as long as the next bucket.

    A text that is longer than all buckets stays as it is, as does a sequence that is
    spread over ranks: they get graphs of their own lengths.

    Args:
        inputs: By name.
        transformer: Which would get them.
        buckets: Lengths, rising.
    """
    sequence: PackedSequence = inputs["sequence"]
    text_rows = inputs.get("text_rows")
    if text_rows is None or sequence.shard.sp_size > 1:
        return inputs
    bucket = select_text_bucket(text_rows.shape[1], tuple(buckets))
    if bucket is None:
        return inputs
    missing = bucket - text_rows.shape[1]
    mask = sequence.mask
    if mask is None:
        mask = sequence.cos.new_ones(sequence.cos.shape[:2], dtype=torch.bool)
    padded = replace(
        sequence,
        cos=F.pad(sequence.cos, (0, 0, 0, 0, missing, 0)),
        sin=F.pad(sequence.sin, (0, 0, 0, 0, missing, 0)),
        shard=build_shard_plan(sequence.shard.orig_len + missing),
        mask=F.pad(mask, (missing, 0)),
        mask_meta=transformer.replayed_mask_meta,
    )
    text_rows = F.pad(text_rows, (0, 0, missing, 0))
    return {**inputs, "sequence": padded, "text_rows": text_rows}
