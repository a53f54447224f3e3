# SPDX-License-Identifier: Apache-2.0
"""Row-wise FP8 weights behind stock's linears, by stock's own quantisation seam.

Weights are float8 e4m3 with one float32 scale a row and are dequantised inside the
GEMM (``kernels/fp8_gemm.py``); activations stay as they are. Stock's ``fp8`` option
quantises activations too, which gives other pictures.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from sglang.multimodal_gen.runtime.layers.linear import LinearBase, LinearMethodBase
from sglang.multimodal_gen.runtime.layers.quantization.configs.base_config import (
    QuantizationConfig,
)
from sglang.multimodal_gen.runtime.utils.weight_attrs import set_weight_attrs
from torch import Tensor, nn

from sglang_ext_gen.kernels.fp8_gemm import (
    FP8_DTYPE,
    dequantize_rowwise,
    fp8_linear,
    quantize_rowwise,
)
from sglang_ext_gen.models.qwen_image.layout import WEIGHTS_FILE
from sglang_ext_gen.weights.layout import read_json, read_tensors

# Outside stock's linears, or too small to matter: they stay as released.
_PLAIN = ("time_text_embed.", "norm_out.")


class RowwiseFP8Config(QuantizationConfig):
    """Gives every linear of the transformer FP8 weights."""

    @classmethod
    def get_name(cls) -> str:
        """Unknown to stock, whose faster paths are for its own formats."""
        return "sglang_ext_gen_rowwise_fp8"

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        """Activations are not quantised: any compute dtype."""
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """The kernel converts FP8 itself."""
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        """Nothing on disk says so: the weights are bf16 there."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "RowwiseFP8Config":
        """There is nothing to configure."""
        return cls()

    def get_quant_method(
        self, layer: nn.Module, prefix: str
    ) -> "RowwiseFP8LinearMethod | None":
        """The method for linears, None for anything else."""
        return RowwiseFP8LinearMethod() if isinstance(layer, LinearBase) else None


class RowwiseFP8LinearMethod(LinearMethodBase):
    """Parameters ``weight`` [out, in] FP8 and ``weight_scale`` [out] float32."""

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Register this rank's part, uninitialised."""
        rows = sum(output_partition_sizes)
        weight = torch.empty(rows, input_size_per_partition, dtype=FP8_DTYPE)
        scale = torch.empty(rows, dtype=torch.float32)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.weight_scale = nn.Parameter(scale, requires_grad=False)
        set_weight_attrs(
            layer.weight, {"input_dim": 1, "output_dim": 0, **extra_weight_attrs}
        )
        set_weight_attrs(layer.weight_scale, {"output_dim": 0, **extra_weight_attrs})

    def apply(
        self, layer: nn.Module, x: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """[..., in] -> [..., out] in the dtype of ``x``."""
        return fp8_linear(x, layer.weight, layer.weight_scale, bias)


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
    folder = path / "transformer"
    read_json(folder / "config.json")
    for name, stored in sorted(read_tensors(folder / WEIGHTS_FILE).items()):
        if is_quantized_weight(name, stored.shape):
            with safe_open(stored.file, framework="pt") as file:
                yield name, signal_to_noise(file.get_tensor(name))
