# SPDX-License-Identifier: Apache-2.0
"""How the image generator may be loaded, and where its thinker is.

One table for Python (``from_pretrained(thinker_args=[...])``), ``sglang-ext-gen`` and
``sglang serve``. Imports neither torch nor SGLang.
"""

import shlex
from collections.abc import Sequence

from sglang_ext_gen.diffusion.options import (
    MONOLITHIC,
    OWN_LOADERS,
    OptionRow,
    refused,
)
from sglang_ext_gen.request.fields import RequestField

LOAD_OPTIONS: tuple[RequestField, ...] = (
    RequestField(
        "thinker_url",
        "strs",
        "Address of a running thinker (an SGLang server of this checkpoint), or "
        "several, separated by commas. Without it one is started.",
        max_length=4096,
    ),
    RequestField(
        "thinker_args",
        "strs",
        "Arguments for the thinker that is started, as of sglang.launch_server, for "
        'example "--tp-size 4 --dtype bfloat16".',
        max_length=4096,
    ),
    RequestField(
        "thinker_devices",
        "str",
        "Devices of the thinker that is started, as CUDA_VISIBLE_DEVICES: 0,1,2,3.",
        max_length=200,
    ),
    RequestField(
        "thinker_timeout_s",
        "float",
        "Longest time that a request waits for the thinker, in seconds.",
        minimum=1,
        maximum=3600,
        default=300.0,
    ),
)

# What becomes of stock's options; see ``diffusion/options.py``.
STOCK_OPTIONS: tuple[OptionRow, ...] = (
    *OWN_LOADERS,
    *MONOLITHIC,
    refused("there are two guidance branches", "cfg_parallel_degree", unless=(1, 2)),
)


def listed_urls(value: str | Sequence[str] | None) -> list[str]:
    """Addresses of ``thinker_url``: a list, or a text with commas."""
    texts = [value] if isinstance(value, str) else list(value or ())
    urls = [url.strip().rstrip("/") for text in texts for url in text.split(",")]
    return [url for url in urls if url]


def listed_arguments(value: str | Sequence[str] | None) -> list[str]:
    """Words of ``thinker_args``: a list, or a text as in a shell."""
    return shlex.split(value) if isinstance(value, str) else list(value or ())
