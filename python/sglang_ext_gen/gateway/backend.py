# SPDX-License-Identifier: Apache-2.0
"""Entry point of group ``sglang.serve_backends``: one port for two servers.

``sglang serve MODEL`` asks every backend whether a model is its own. This one says yes
to a checkpoint that holds a language model and a generator, and for such a checkpoint
``resolution.get_is_diffusion_model`` makes the diffusion backend say no.
"""

import os
import sys

from sglang.cli.serve_backends import (
    SERVE_BACKEND_API_VERSION,
    ServeBackend,
    ServeBackendDetection,
    ServeRequest,
)

from sglang_ext_gen.gateway import arguments
from sglang_ext_gen.registry import composed_family_of


def one_port() -> ServeBackend:
    """The backend; SGLang calls this once."""
    return ServeBackend(
        api_version=SERVE_BACKEND_API_VERSION,
        run=_run,
        detect=_detect,
        requires_model_path=True,
    )


def _detect(request: ServeRequest) -> ServeBackendDetection:
    if request.model_path is None:
        return ServeBackendDetection.UNKNOWN
    if composed_family_of(request.model_path) is None:
        return ServeBackendDetection.NO_MATCH
    return ServeBackendDetection.MATCH


def _run(request: ServeRequest) -> None:
    """Become the light process of the one port.

    SGLang's command has imported torch by now. Replacing the process gives that memory
    back; the process id, and with it whoever supervises it, stays.
    """
    words = _without_model_path(request.argv)
    if request.model_path is None or any(word in ("-h", "--help") for word in words):
        arguments.main(request.model_path, ["--help"])
        return
    sys.stdout.flush()
    sys.stderr.flush()
    command = ("-m", "sglang_ext_gen", "serve", request.model_path)
    model_type = ("--model-type", arguments.BACKEND)
    os.execv(sys.executable, [sys.executable, *command, *model_type, *words])


def _without_model_path(argv: tuple[str, ...]) -> list[str]:
    names = ("--model-path", "--model")
    words = iter(argv)
    kept = []
    for word in words:
        if word in names:
            next(words, None)
        elif word.partition("=")[0] not in names:
            kept.append(word)
    return kept
