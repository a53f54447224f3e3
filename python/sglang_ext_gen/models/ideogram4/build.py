# SPDX-License-Identifier: Apache-2.0
"""The modules of Ideogram 4, unfilled and on the meta device."""

from functools import partial
from typing import Any

import torch
from sglang.multimodal_gen.runtime.loader.utils import set_default_torch_dtype

from sglang_ext_gen.checkpoint.component import StoredComponent
from sglang_ext_gen.checkpoint.layout import has_float8
from sglang_ext_gen.models.ideogram4.config import (
    Ideogram4TextEncoderConfig,
    Ideogram4TransformerConfig,
)
from sglang_ext_gen.models.ideogram4.dit import Ideogram4Transformer
from sglang_ext_gen.models.ideogram4.text_encoder import Ideogram4TextEncoder


def build_transformer(
    part: StoredComponent[Ideogram4TransformerConfig],
    dtype: torch.dtype,
    options: Any,
    *,
    has_text: bool = True,
) -> Ideogram4Transformer:
    """One of the two transformers; the unconditional one has no text."""
    with torch.device("meta"), set_default_torch_dtype(dtype):
        return Ideogram4Transformer(
            part.config,
            has_text=has_text,
            is_quantized=has_float8(part.stored),
            dtype=dtype,
        )


build_unconditional = partial(build_transformer, has_text=False)


def build_text_encoder(
    part: StoredComponent[Ideogram4TextEncoderConfig],
    dtype: torch.dtype,
    options: Any,
) -> Ideogram4TextEncoder:
    """The language tower only."""
    with torch.device("meta"):
        return Ideogram4TextEncoder(
            part.config, is_quantized=has_float8(part.stored), dtype=dtype
        )
