# SPDX-License-Identifier: Apache-2.0
"""Row-wise FP8 weights behind stock's linears, by stock's own quantisation seam.

Weights are float8 e4m3 with one float32 scale a row and are dequantised inside the
GEMM (``kernels/fp8_gemm.py``); activations stay as they are. Stock's ``fp8`` option
quantises activations too, which gives other pictures.
"""

from typing import Any

import torch
from sglang.multimodal_gen.runtime.layers.linear import LinearBase, LinearMethodBase
from sglang.multimodal_gen.runtime.layers.quantization.configs.base_config import (
    QuantizationConfig,
)
from torch import Tensor, nn

from sglang_ext_gen.kernels.fp8_gemm import FP8_DTYPE, fp8_linear


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

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., in] -> [..., out] in the dtype of ``x``."""
        return fp8_linear(x, layer.weight, layer.weight_scale, bias)
