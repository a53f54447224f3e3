# SPDX-License-Identifier: Apache-2.0
"""What the image generator sends to the thinker's server and gets back.

Plain data: nothing here imports torch or SGLang, so both processes share it.

A request goes to ``/generate`` (or ``sgl.Engine.generate``)::

    {"text": generation_prompt("A red cat"), "image_data": [QUERY_BLOCK],
     "sampling_params": {"max_new_tokens": 1}}

with the reference picture, if there is one, before ``QUERY_BLOCK``. The answer's
``meta_info`` carries the final-norm hidden states of the query tokens:
``QueryStates.from_meta_info(answer["meta_info"])``.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sglang_ext_gen.errors import RequestError, ThinkerError

# What a thinker's server states in /model_info.
THINKER_ARCHITECTURE = "BailingMM2NativeForConditionalGeneration"
# Key of the answer's meta_info; its value is a list with one entry per output token.
QUERY_STATES_KEY = "ming_query_states"
# The item of ``image_data`` that appends the learnable query tokens to the prompt.
# Text, because ``/generate`` takes no objects there but its own.
QUERY_BLOCK = "ming:query_block"

DEFAULT_SYSTEM = "你是一个友好的AI助手。"
IMAGE, VIDEO, AUDIO = "<IMAGE>", "<VIDEO>", "<AUDIO>"
# Text that would change the prompt's structure if a user could write it.
RESERVED = (
    *(IMAGE, VIDEO, AUDIO),
    *("<imagePatch>", "<image>", "</image>", "<video>", "</video>", "<framePatch>"),
    *("<audioPatch>", "<audio>", "</audio>"),
    *("<role>", "</role>", "<|role_end|>", "<|startoftext|>", "<|endoftext|>"),
)

_ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def generation_prompt(prompt: str, images: int = 0) -> str:
    """The official chat text of an image-generation request.

    Args:
        prompt: What to draw.
        images: Reference pictures, which come before the text.

    Raises:
        RequestError: The prompt contains a special token.
    """
    refuse_reserved(prompt, "prompt")
    system = f"{DEFAULT_SYSTEM}\n\ndetailed thinking off"
    return (
        f"<role>SYSTEM</role>{system}<|role_end|>"
        f"<role>HUMAN</role>{chr(10).join([IMAGE] * images)}{prompt}<|role_end|>"
        "<role>ASSISTANT</role>"
    )


def refuse_reserved(text: str, field: str) -> None:
    """Raise if ``text`` contains a special token.

    Raises:
        RequestError: Names the first one.
    """
    for token in RESERVED:
        if token in text:
            raise RequestError(field, f"the special token {token} is not allowed here")


@dataclass(frozen=True)
class QueryStates:
    """Final-norm hidden states of the query tokens of one request.

    Args:
        scales: Side s of each block, in the checkpoint's order; s * s rows each. The
            generator uses the last one.
        width: Numbers in a row.
        dtype: ``bfloat16``, ``float16`` or ``float32``.
        data: The rows of all scales, row-major, little-endian.
    """

    scales: tuple[int, ...]
    width: int
    dtype: str
    data: bytes

    @property
    def rows(self) -> int:
        return sum(scale * scale for scale in self.scales)

    @property
    def last_scale(self) -> bytes:
        """The rows of the last scale: [s * s, width]."""
        row_bytes = self.width * _ITEM_BYTES[self.dtype]
        return self.data[-(self.scales[-1] ** 2) * row_bytes :]

    def to_json(self) -> dict[str, Any]:
        """JSON-safe form; base64 costs a third, JSON numbers would cost five times."""
        return {
            "scales": list(self.scales),
            "width": self.width,
            "dtype": self.dtype,
            "data": base64.b64encode(self.data).decode("ascii"),
        }

    @classmethod
    def from_meta_info(cls, meta_info: Mapping[str, Any]) -> "QueryStates":
        """Read the answer of a request that held ``QUERY_BLOCK``.

        Raises:
            ThinkerError: The states are missing, incomplete or malformed.
        """
        values = meta_info.get(QUERY_STATES_KEY)
        if not isinstance(values, list) or not values:
            raise ThinkerError(
                f"the thinker's answer has no {QUERY_STATES_KEY}; is the server a "
                "Ming thinker with sglang_ext_gen, and was QUERY_BLOCK sent?"
            )
        value = values[0]
        if not isinstance(value, Mapping):
            raise ThinkerError(f"{QUERY_STATES_KEY} is {type(value).__name__}")
        if "error" in value:
            raise ThinkerError(f"the thinker failed: {value['error']}")
        return cls._from_json(value)

    @classmethod
    def _from_json(cls, value: Mapping[str, Any]) -> "QueryStates":
        try:
            states = cls(
                tuple(int(scale) for scale in value["scales"]),
                int(value["width"]),
                str(value["dtype"]),
                base64.b64decode(value["data"], validate=True),
            )
            expected = states.rows * states.width * _ITEM_BYTES[states.dtype]
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise ThinkerError(f"malformed {QUERY_STATES_KEY}: {error!r}") from error
        if len(states.data) != expected or expected <= 0:
            raise ThinkerError(
                f"{QUERY_STATES_KEY} has {len(states.data)} bytes, expected {expected} "
                f"for scales {states.scales} of width {states.width} in {states.dtype}"
            )
        return states
