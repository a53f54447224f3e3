# SPDX-License-Identifier: Apache-2.0
"""The command line, ``sglang-ext-gen`` or ``python -m sglang_ext_gen``.

One module per command, each with ``main(argv) -> exit code``. They import torch and
SGLang only when they run a model, so that help and refusals are immediate.

Exit codes: 0 done; 1 the work failed; 2 the command line or a request field is wrong.
"""
