# SPDX-License-Identifier: Apache-2.0
"""Entry points through which SGLang loads this package.

SGLang calls them once per process, and only logs what they raise: ``doctor`` and a
test in a fresh process prove that they worked. Both are idempotent.

``register_diffusion`` (group ``sglang.multimodal_gen.plugins``) runs in every process
of the diffusion runtime: the generator's, the HTTP server's and each worker.

``register_srt`` (group ``sglang.srt.plugins``) runs in every process of the language
model runtime, where it registers our models (``language_models.py``), and first of all
in ``sglang serve``, which chooses the runtime before any diffusion plugin is loaded.
There it hooks that choice, which imports neither torch nor the diffusion runtime.

``choose_platform`` (group ``sglang.srt.platforms``) runs in every process that imports
SGLang, before anything else, and so also before plain ``sglang generate`` resolves the
model, which loads no plugin: see ``early.py``.
"""

import functools
import logging
import sys

from sglang_ext_gen import envs
from sglang_ext_gen.plugin import compat, early, hooks, language_models
from sglang_ext_gen.registry import enabled_families

logger = logging.getLogger(__name__)


@functools.cache
def register_diffusion() -> None:
    """Register the pipelines of all enabled families and the hooks they need.

    On an SGLang release that is not supported our models are refused by name and stock
    models are not touched.
    """
    for name in envs.unknown_variables():
        logger.warning("%s is set, but sglang_ext_gen has no such variable", name)
    families = enabled_families()
    if not families:
        return
    reason = compat.unsupported_version()
    if reason is not None:
        titles = ", ".join(family.title for family in families)
        logger.error("%s will be refused: %s", titles, reason)
        hooks.register_hooks("diffusion", (hooks.RESOLVER,))
        return

    from sglang.multimodal_gen.registry import register_pipeline

    for family in families:
        # No Hugging Face ids here: stock's own entries stay as they are, so that a
        # directory which is not ours gets stock's answer in full.
        register_pipeline(
            family.load(family.pipeline),
            sampling_param_cls=family.load(family.sampling_params),
            pipeline_config_cls=family.load(family.pipeline_config),
        )
    hooks.register_hooks("diffusion")


@functools.cache
def register_srt() -> None:
    """Register what runs on the language model runtime.

    In ``sglang serve`` only the choice of the runtime is hooked at first: the rest
    follows when it falls on this one (``resolution.prepare_server_args``).
    """
    if _is_sglang_serve() and enabled_families():
        hooks.register_hooks("cli")
    else:
        language_models.register()


def _is_sglang_serve() -> bool:
    # Others may have imported the module, such as a program that runs an Engine.
    return "sglang.cli.serve" in sys.modules and sys.argv[1:2] == ["serve"]


def choose_platform() -> str | None:
    """The CPU reference platform where it applies; and our families known early."""
    from sglang_ext_gen.platforms import cpu_reference

    early.watch(activate)
    return cpu_reference.activate()


def activate() -> None:
    """Register the diffusion pipelines and apply the hooks now, in this process."""
    register_diffusion()
    hooks.apply_hooks("diffusion")
