# SPDX-License-Identifier: Apache-2.0
"""What FP8 does to the weights of Qwen-Image."""

from collections.abc import Iterator
from pathlib import Path

from sglang_ext_gen.checkpoint.fp8_quality import quality_of_file
from sglang_ext_gen.models.qwen_image.checkpoint import (
    TRANSFORMER,
    is_quantized_weight,
)


def fp8_quality(path: Path) -> Iterator[tuple[str, float]]:
    """``quality_of_file`` for a checkpoint with ``weight_format=fp8``."""
    return quality_of_file(TRANSFORMER.at(path).file, is_quantized_weight)
