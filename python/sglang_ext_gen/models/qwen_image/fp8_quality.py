# SPDX-License-Identifier: Apache-2.0
"""Which weights of Qwen-Image become FP8, and what that does to them."""

from collections.abc import Iterator
from pathlib import Path

from sglang_ext_gen.checkpoint.fp8_quality import quality_of_file
from sglang_ext_gen.models.qwen_image.checkpoint import TRANSFORMER

# Outside stock's linears, or too small to matter: they stay as released.
_PLAIN = ("time_text_embed.", "norm_out.")


def is_quantized_weight(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a released tensor becomes FP8: the matrices of stock's linears."""
    return name.endswith(".weight") and len(shape) == 2 and not name.startswith(_PLAIN)


def fp8_quality(path: Path) -> Iterator[tuple[str, float]]:
    """``quality_of_file`` for a checkpoint with ``weight_format=fp8``."""
    return quality_of_file(TRANSFORMER.at(path).file, is_quantized_weight)
