# SPDX-License-Identifier: Apache-2.0
"""Image and video generation families for stock SGLang, as a plugin.

Where things are:

    registry.py  the families, one row each; errors.py; envs.py: environment variables
    plugin/      what SGLang calls: entry points, hooks, what is relied on in SGLang
    request/     what a client says: fields, checks, flags
    media/       what a client sends: pictures, videos, sounds
    diffusion/   what the stages of all families share
    checkpoint/  what is on disk, and where it goes
    layers/ kernels/ platforms/
    http/        between a client and SGLang's diffusion server
    process/     servers that end with their parent
    gateway/     one port before several servers
    models/      a folder for each family
    cli/         the command line, ``sglang-ext-gen``

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
    from sglang_ext_gen.plugin.entry_points import activate

    activate()
