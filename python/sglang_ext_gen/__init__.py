# SPDX-License-Identifier: Apache-2.0
"""Image and video generation families for stock SGLang, as a plugin.

Where things are:

    registry.py     the families, one row each
    plugin.py       entry points that SGLang loads; hooks.py lists what they change
    models/<name>/  a family: config, modules, weights, stages, pipeline
    layers/ kernels/ schedulers/ weights/   shared by the families
    serving/        the HTTP door
    understanding/  what models on the language model runtime share
    cli/            the command line, ``sglang-ext-gen``
    compat.py       what is relied on in SGLang; envs.py: environment variables

Importing this package imports neither torch nor SGLang.
"""

import os
import sys

__version__ = "0.1.0"

# SGLANG_EXTERNAL_MODEL_PACKAGE makes both runtimes import the package it names. Only
# the diffusion runtime, whose registry module is loaded by then, is to be changed.
if (
    os.environ.get("SGLANG_EXTERNAL_MODEL_PACKAGE") == __name__
    and "sglang.multimodal_gen.registry" in sys.modules
):
    from sglang_ext_gen.plugin import activate

    activate()
