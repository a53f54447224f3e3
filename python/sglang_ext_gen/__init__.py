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

__version__ = "0.1.0"
