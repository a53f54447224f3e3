# SPDX-License-Identifier: Apache-2.0
"""How an Ideogram 4 checkpoint may be loaded: options of the pipeline config.

One table for Python (``from_pretrained(fp8_mode=...)``), ``sglang-ext-gen`` and
``sglang serve``. Imports neither torch nor SGLang.
"""

from sglang_ext_gen.diffusion.options import (
    DISAGGREGATION,
    OWN_LOADERS,
    QUANTIZATION,
    OptionRow,
    refused,
    works,
)
from sglang_ext_gen.request.fields import RequestField

LOAD_OPTIONS: tuple[RequestField, ...] = (
    RequestField(
        "fp8_mode",
        "str",
        "FP8 weights: kept and dequantised inside each GEMM (resident, the default), "
        "dequantised once (expanded), or FP8 activations too (w8a8, CUDA only).",
        choices=("resident", "expanded", "w8a8"),
        default="resident",
    ),
    RequestField(
        "load_unconditional",
        "bool",
        "Leave the unconditional transformer on disk: half the memory, guidance 1 "
        "only.",
        default=True,
    ),
)

# What becomes of stock's options; see ``diffusion/options.py``.
STOCK_OPTIONS: tuple[OptionRow, ...] = (
    *OWN_LOADERS,
    refused("the weights are FP8 as released; see --fp8-mode", QUANTIZATION),
    refused("there are two guidance branches", "cfg_parallel_degree", unless=(1, 2)),
    works(f"disagg_role {DISAGGREGATION}"),
)
