# SPDX-License-Identifier: Apache-2.0
"""What FP8 weights would do to a checkpoint, weight by weight; without SGLang."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from sglang_ext_gen.checkpoint.layout import read_tensors
from sglang_ext_gen.kernels.fp8_gemm import dequantize_rowwise, quantize_rowwise


def signal_to_noise(weight: Tensor) -> float:
    """Signal-to-noise ratio in dB of a matrix [out, in] after quantisation."""
    exact = weight.double()
    restored = dequantize_rowwise(*quantize_rowwise(weight), torch.float32).double()
    noise = (exact - restored).square().sum().item()
    signal = exact.square().sum().item()
    return math.inf if noise == 0 else 10 * math.log10(signal / noise)


def quality_of_file(
    file: Path, is_quantized: Callable[[str, tuple[int, ...]], bool]
) -> Iterator[tuple[str, float]]:
    """Signal-to-noise ratio of each weight of a file, or of its shards.

    Args:
        file: A safetensors file; ``<file>.index.json`` wins where it exists.
        is_quantized: Whether the tensor of a name and shape becomes FP8.

    Yields:
        Name of each quantised weight and its signal-to-noise ratio in dB.

    Raises:
        CheckpointError: The files cannot be read.
    """
    for name, stored in sorted(read_tensors(file).items()):
        if is_quantized(name, stored.shape):
            with safe_open(stored.file, framework="pt") as content:
                yield name, signal_to_noise(content.get_tensor(name))
