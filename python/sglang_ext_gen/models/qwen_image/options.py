# SPDX-License-Identifier: Apache-2.0
"""How a Qwen-Image checkpoint may be loaded: options of the pipeline config.

One table for Python (``from_pretrained(weight_format=...)``), ``sglang-ext-gen`` and
``sglang serve``. Imports neither torch nor SGLang.
"""

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
