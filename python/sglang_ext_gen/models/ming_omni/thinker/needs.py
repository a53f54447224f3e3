# SPDX-License-Identifier: Apache-2.0
"""What Ming's thinker needs of a device: weights, and keys and values."""

import re
from fractions import Fraction
from functools import partial
from pathlib import Path

from sglang_ext_gen.checkpoint.needs import Chatting, Form, Held, Needs, Role, Split
from sglang_ext_gen.models.ming_omni.thinker.checkpoint import THINKER
from sglang_ext_gen.models.ming_omni.thinker.released_config import DecoderConfig

# SGLang's own FP8, which also quantises what is multiplied with the weights.
FORMS = (
    Form("released"),
    Form("fp8 by SGLang (about)", "quantized", ("--quantization", "fp8")),
)
SPLITS = (
    Split(),
    *(Split(f"{n} GPUs, tensor", ("--tp-size", f"{n}"), tp=n) for n in (2, 4, 8)),
)
_LAYER = r"model\.model\.layers\.\d+"
_MLP = rf"{_LAYER}\.mlp(\.experts\.\d+|\.shared_experts)?"
_QKV = re.compile(rf"{_LAYER}\.attention\.query_key_value\.weight")
_DECODER_COLUMNS = rf"{_MLP}\.(gate|up)_proj"
_DECODER_ROWS = (rf"{_LAYER}\.attention\.dense", rf"{_MLP}\.down_proj")
# The output of these is computed by the official code, and dropped.
_UNUSED = "vision.deepstack_merger_list."
# What tensor parallelism divides.
_COLUMNS = (
    _DECODER_COLUMNS,
    r"model\.(model\.word_embeddings|lm_head)",
    r"vision\.blocks\.\d+\.(attn\.qkv|mlp\.linear_fc1)",
    r"vision\.merger\.linear_fc1",
)
_ROWS = (
    *_DECODER_ROWS,
    r"vision\.blocks\.\d+\.(attn\.proj|mlp\.linear_fc2)",
    r"vision\.merger\.linear_fc2",
)
_QUANTIZED = re.compile(
    rf"({'|'.join((_DECODER_COLUMNS, *_DECODER_ROWS))})\.weight|{_QKV.pattern}"
)


def needs(path: Path) -> Needs:
    """Of a thinker, which chats and feeds the generator.

    Raises:
        CheckpointError: A file cannot be read.
        ConfigError: The config does not fit.
    """
    part = THINKER.at(path)
    llm = part.config.llm_config
    held = Held(
        part,
        _COLUMNS,
        _ROWS,
        quantizes=lambda name, shape: bool(_QUANTIZED.fullmatch(name)),
        share=partial(_share, llm),
        used=lambda name: not name.startswith(_UNUSED),
    )
    role = Role(
        name="chat, and feed the generator",
        command=("sglang-ext-gen", "serve", "MODEL", "--model-type", "llm"),
        held=(held,),
        work=Chatting(llm.num_hidden_layers, llm.num_key_value_heads, llm.head_dim),
        forms=FORMS,
        splits=SPLITS,
    )
    return Needs("thinker", (role,))


def _share(llm: DecoderConfig, name: str, tp: int) -> Fraction | None:
    """Heads of keys and values are repeated where there are more ranks than heads."""
    if not _QKV.fullmatch(name):
        return None
    queries, keys = llm.num_attention_heads, llm.num_key_value_heads
    own = Fraction(queries, tp) + 2 * max(Fraction(keys, tp), 1)
    return own / (queries + 2 * keys)
