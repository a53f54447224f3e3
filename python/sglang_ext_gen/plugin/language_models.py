# SPDX-License-Identifier: Apache-2.0
"""Our models on SGLang's language model runtime: registered in two steps.

Configs and tokenizers are made known when SGLang loads plugins, in every process. The
model and its multimodal processor follow when SGLang asks for the architecture, which
only some processes do, and only for our models.
"""

import functools
from collections.abc import Callable
from typing import Any

from sglang_ext_gen.errors import ConfigError
from sglang_ext_gen.plugin import compat, hooks
from sglang_ext_gen.registry import enabled_language_models


def register() -> None:
    """Make the configs of all enabled models known; hook the question for models.

    On an SGLang release that is not supported nothing is registered.
    """
    models = enabled_language_models()
    if not models:
        return
    if compat.unsupported_version() is None:
        for model in models:
            model.load(model.register_config)()
    hooks.register_hooks("srt")


def get_model_architecture(original: Callable[[Any], Any], model_config: Any) -> Any:
    """Around ``model_loader.utils.get_model_architecture``: register ours in time.

    Raises:
        ConfigError: The model is ours and this SGLang release is not supported.
    """
    for model in _models_of(model_config):
        reason = compat.unsupported_version()
        if reason is not None:
            raise ConfigError(
                f"{model.title} cannot be served: {reason} Install that release, or "
                f"set SGLANG_EXT_GEN_DISABLE={model.name} to leave this model to stock "
                "SGLang"
            )
        model.load(model.register_model)()
        _apply_cpu_hooks()
    return original(model_config)


def keep_sizes(
    original: Callable[..., Any], model_config: Any, *arguments: Any, **named: Any
) -> Any:
    """Around ``adjust_config_with_unaligned_cpu_tp``: ours is built as its config says.

    Returns:
        ``model_config``, as it was where a model of ours runs on our CPU platform.
    """
    if _models_of(model_config) and _is_reference_platform():
        return model_config
    return original(model_config, *arguments, **named)


def _models_of(model_config: Any) -> list[Any]:
    """The enabled rows that a config of SGLang's names."""
    architectures = model_config.hf_config.architectures or []
    rows = enabled_language_models()
    return [row for row in rows if row.architecture in architectures]


def _is_reference_platform() -> bool:
    from sglang.srt.platforms import current_platform

    from sglang_ext_gen.platforms.cpu_reference import CpuReferencePlatform

    return isinstance(current_platform, CpuReferencePlatform)


@functools.cache
def _apply_cpu_hooks() -> None:
    """Hooks of our models where the language model runtime runs on a CPU."""
    if _is_reference_platform():
        hooks.register_hooks("srt_cpu")
        hooks.apply_hooks("srt_cpu")


def resolve_once(original: Callable[[Any], None], server_args: Any) -> None:
    """Around ``ServerArgs.resolve_once``: let our models prepare the arguments.

    Raises:
        CheckpointError: A checkpoint of ours is incomplete.
    """
    if not getattr(server_args, "_resolution_finished", False):
        for model in enabled_language_models():
            if model.prepare_arguments is not None:
                model.load(model.prepare_arguments)(server_args)
    original(server_args)
