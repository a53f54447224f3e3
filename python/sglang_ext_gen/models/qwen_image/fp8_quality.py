# SPDX-License-Identifier: Apache-2.0
"""What FP8 weights would do to a checkpoint, weight by weight; without SGLang."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from sglang_ext_gen.kernels.fp8_gemm import dequantize_rowwise, quantize_rowwise
from sglang_ext_gen.models.qwen_image.layout import WEIGHTS_FILE
from sglang_ext_gen.weights.layout import read_tensors

# Outside stock's linears, or too small to matter: they stay as released.
_PLAIN = ("time_text_embed.", "norm_out.")


def is_quantized_weight(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a released tensor becomes FP8: the matrices of stock's linears."""
    return name.endswith(".weight") and len(shape) == 2 and not name.startswith(_PLAIN)


def signal_to_noise(weight: Tensor) -> float:
    """Signal-to-noise ratio in dB of a matrix [out, in] after quantisation."""
    exact = weight.double()
    restored = dequantize_rowwise(*quantize_rowwise(weight), torch.float32).double()
    noise = (exact - restored).square().sum().item()
    signal = exact.square().sum().item()
    return math.inf if noise == 0 else 10 * math.log10(signal / noise)


def fp8_quality(path: Path) -> Iterator[tuple[str, float]]:
    """What ``--weight-format fp8`` would do to a checkpoint.

    Args:
        path: The checkpoint.

    Yields:
        Name of each quantised weight and its signal-to-noise ratio in dB.

    Raises:
        CheckpointError: The transformer's files cannot be read.
    """
    stored_tensors = read_tensors(path / "transformer" / WEIGHTS_FILE)
    for name, stored in sorted(stored_tensors.items()):
        if is_quantized_weight(name, stored.shape):
            with safe_open(stored.file, framework="pt") as file:
                yield name, signal_to_noise(file.get_tensor(name))
