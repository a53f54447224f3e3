# SPDX-License-Identifier: Apache-2.0
"""Write a small tokenizer of the Qwen kind: byte-level BPE, ChatML, NFC.

It has the byte alphabet, a few merges and Qwen's special tokens, so that it reads
any text. Its ids are not Qwen's: code that hard-codes ids fails with it.
"""

from pathlib import Path

from sglang_ext_gen.checkpoint.tiny import write_json

_MERGES = ("t h", "th e", "Ġ a", "i n", "Ġ the", "o n", '" :', '" ,')
# In Qwen's order. Those that are not special are ordinary text to a decoder.
_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_NOT_SPECIAL = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
# How Qwen cuts text into words before merging.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}{{ '\\n' }}
{%- if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>
{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant{{ '\\n' }}{%- endif -%}
"""


def write_qwen_tokenizer(folder: Path) -> dict[str, int]:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``.

    Returns:
        The ids of the added tokens, which are the highest ones, by content.
    """
    merged = ("".join(merge.split(" ")) for merge in _MERGES)
    vocab = {token: i for i, token in enumerate((*_byte_alphabet(), *merged))}
    added = {
        token: len(vocab) + i for i, token in enumerate((*_SPECIAL, *_NOT_SPECIAL))
    }
    write_json(folder / "tokenizer.json", _tokenizer(vocab, added))
    write_json(folder / "tokenizer_config.json", _config(added))
    return added


def _byte_alphabet() -> list[str]:
    """The 256 characters that stand for bytes in byte-level BPE.

    A printable Latin-1 character stands for itself; the others, in order, are
    shifted to 256 and up.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    shifted = {byte: 256 + i for i, byte in enumerate(others)}
    return [chr(shifted.get(byte, byte)) for byte in range(256)]


def _tokenizer(vocab: dict[str, int], added: dict[str, int]) -> dict[str, object]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    words = {**split, "pattern": {"Regex": _WORDS}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, **_added_token(token)} for token, i in added.items()
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [words, {**byte_level, "trim_offsets": False}],
        },
        "post_processor": {**byte_level, "trim_offsets": False},
        "decoder": {**byte_level, "trim_offsets": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [merge.split(" ") for merge in _MERGES],
        },
    }


def _added_token(token: str) -> dict[str, object]:
    return {
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": token in _SPECIAL,
    }


def _config(added: dict[str, int]) -> dict[str, object]:
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {
            str(i): _added_token(token) for token, i in added.items()
        },
        "additional_special_tokens": list(_SPECIAL[1:]),
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "chat_template": _CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": 262144,
        "split_special_tokens": False,
    }
