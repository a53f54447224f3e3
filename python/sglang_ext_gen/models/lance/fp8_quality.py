# SPDX-License-Identifier: Apache-2.0
"""What FP8 does to the weights of Lance."""

from collections.abc import Iterator
from pathlib import Path

from sglang_ext_gen.checkpoint.fp8_quality import quality_of_file
from sglang_ext_gen.models.lance.checkpoint import find_files
from sglang_ext_gen.models.lance.weights import is_quantized_weight


def fp8_quality(path: Path) -> Iterator[tuple[str, float]]:
    """What ``--weight-format fp8`` would do to a checkpoint.

    Args:
        path: The root, or one checkpoint directory.

    Yields:
        Directory and name of each quantised weight, and its signal-to-noise ratio in
        dB.

    Raises:
        CheckpointError: The weights cannot be read.
    """
    files = find_files(path)
    for variant in (files.named,) if files.named else files.variants():
        weights = quality_of_file(files.transformer(variant).file, is_quantized_weight)
        for name, decibels in weights:
            yield f"{variant}/{name}", decibels
