# SPDX-License-Identifier: Apache-2.0
"""How a Qwen-Image checkpoint may be loaded: options of the pipeline config.

One table for Python (``from_pretrained(weight_format=...)``), ``sglang-ext-gen`` and
``sglang serve``. Imports neither torch nor SGLang.
"""

from sglang_ext_gen.diffusion.options import (
    DISAGGREGATION,
    FSDP,
    LORA,
    OF_QUANTIZATION,
    OF_STOCKS_LOADERS,
    QUANTIZATION,
    VAE_CONFIG,
    WEIGHT_FILES,
    OptionRow,
    does_not_apply,
    works,
)
from sglang_ext_gen.request.fields import RequestField

LOAD_OPTIONS: tuple[RequestField, ...] = (
    RequestField(
        "weight_format",
        "str",
        "The transformer's weights: as they are on disk (released, the default), or "
        "quantised to FP8 row by row while they are loaded (fp8).",
        choices=("released", "fp8"),
        default="released",
    ),
)

# What becomes of stock's options; see ``diffusion/options.py``.
STOCK_OPTIONS: tuple[OptionRow, ...] = (
    works(LORA),
    works(f"{WEIGHT_FILES} {QUANTIZATION} {OF_QUANTIZATION} {FSDP}"),
    works(f"{VAE_CONFIG} vae_tiling vae_decode_precision"),
    works(OF_STOCKS_LOADERS),
    works(
        "attention_backend_config dit_config.prefix "
        "encoder_parallel conditioning_cache_max_size_mb trust_remote_code "
        "flow_shift model_subfolder scheduler_class_override text_encoder_cpu_offload "
        "SGLANG_VAE_TORCH_COMPILE_MODE "
        "SGLANG_DIFFUSION_CFG_GATE_STEP SGLANG_DIFFUSION_LORA_MERGE_FP32"
    ),
    works(f"disagg_role {DISAGGREGATION}"),
    does_not_apply(
        "the picture is seen by the text encoder",
        "image_encoder_cpu_offload",
    ),
    does_not_apply(
        "merged weights are not kept on disk",
        "SGLANG_DIFFUSION_DISABLE_LORA_MERGE_CACHE",
    ),
)
