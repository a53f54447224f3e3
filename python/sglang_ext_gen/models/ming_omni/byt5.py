# SPDX-License-Identifier: Apache-2.0
"""Quoted text -> glyph rows: ByT5 and its mapper.

Source: the official ByT5 loader, mapper and condition method. Both stacks are
Transformers' T5 encoder stack; only the tensors are ours to place.

Of the vocabulary only the order matters: ByT5's bytes, then one token per color, then
one per font, in the order of their files.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ByT5Tokenizer, T5Config
from transformers.models.t5.modeling_t5 import T5LayerNorm, T5Stack

from sglang_ext_gen.errors import CheckpointError
from sglang_ext_gen.models.ming_omni.config import GlyphConfig


class GlyphMapper(nn.Module):
    """``byt5_mapper.pt``: T5 blocks, a projection, and norms behind both."""

    def __init__(self, config: GlyphConfig) -> None:
        super().__init__()
        t5 = t5_config(config, num_layers=config.mapper_layers)
        self.stack = _stack(t5)
        self.stack.embed_tokens = nn.Identity()  # it is fed rows, not tokens
        self.channel_mapper = nn.Linear(t5.d_model, config.width)
        self.final_layer_norm = T5LayerNorm(config.width, eps=t5.layer_norm_epsilon)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        """rows: [B, L, D], mask: [B, L] -> [B, L, C]."""
        rows = self.stack(inputs_embeds=rows, attention_mask=mask).last_hidden_state
        return self.final_layer_norm(self.channel_mapper(rows))


class GlyphEncoder(nn.Module):
    """Texts -> rows for the transformer's caption.

    Args:
        config: Of ``byt5/``.
    """

    def __init__(self, config: GlyphConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _stack(t5_config(config, vocab_size=config.vocab_size))
        self.mapper = GlyphMapper(config)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Glyph rows; all of them, because padded ones are attended to as zeros.

        Args:
            ids: [B, L] from ``tokenize``.
            mask: [B, L], 1 for tokens.

        Returns:
            [B, L, C] float32, zero at padding.
        """
        rows = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        mapped = self.mapper(rows, mask).float()
        return mapped * mask[..., None]


def t5_config(config: GlyphConfig, **changes: int) -> T5Config:
    """Transformers' configuration of one of the two stacks."""
    values = {**asdict(config.t5), **changes}
    return T5Config(**values, use_cache=False, is_encoder_decoder=False)


def _stack(config: T5Config) -> Any:
    # Eager attention adds the relative positions; the result does not depend on it.
    config._attn_implementation = "eager"
    return T5Stack(config)


def load_glyph_tokenizer(folder: Path, config: GlyphConfig) -> ByT5Tokenizer:
    """The tokenizer with the tokens for colors and fonts.

    Args:
        folder: ``byt5/`` of the checkpoint.
        config: Says where it is, and the tokens.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    try:
        tokenizer = ByT5Tokenizer.from_pretrained(str(folder / config.tokenizer_folder))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"byt5/{config.tokenizer_folder}: its tokenizer is missing or damaged: "
            f"{error}"
        ) from error
    tokenizer.add_tokens(list(config.tokens), special_tokens=True)
    return tokenizer


def tokenize(
    tokenizer: ByT5Tokenizer, text: str, max_length: int
) -> tuple[Tensor, Tensor]:
    """Ids and mask of one text, cut or padded to the length that the encoder wants.

    Returns:
        ids and mask, each [1, max_length] int64.
    """
    ids = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
    padded = torch.zeros(1, max_length, dtype=torch.int64)
    mask = torch.zeros(1, max_length, dtype=torch.int64)
    padded[0, : len(ids)] = torch.tensor(ids)
    mask[0, : len(ids)] = 1
    return padded, mask
