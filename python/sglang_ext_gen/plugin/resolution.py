# SPDX-License-Identifier: Apache-2.0
"""Replacements that make SGLang find our families: by id, or by a directory's content.

Stock decides by the name of the directory and by ``model_index.json``, in which our
checkpoints carry the class name of stock's own pipeline. Each function here asks
``registry.family_of`` first and otherwise returns what stock returns, unchanged.
"""

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from sglang_ext_gen.errors import ConfigError
from sglang_ext_gen.plugin import compat, language_models
from sglang_ext_gen.registry import (
    ModelFamily,
    composed_family_of,
    family_of,
)

if TYPE_CHECKING:
    from sglang.multimodal_gen.registry import ModelInfo

logger = logging.getLogger(__name__)


def get_model_info(
    original: Callable[..., "ModelInfo | None"],
    model_path: str,
    backend: str | None = None,
    model_id: str | None = None,
) -> "ModelInfo | None":
    """Around ``multimodal_gen.registry.get_model_info``: our classes for our paths.

    Stock still decides when the user asks for the diffusers backend or names another
    model with ``--model-id``.

    Raises:
        ConfigError: The path is ours and this SGLang release is not supported.
    """
    family = family_of(model_path)
    if family is None or _is_overruled(family, backend, model_id):
        return original(model_path, backend=backend, model_id=model_id)
    reason = compat.unsupported_version()
    if reason is not None:
        raise ConfigError(
            f"{family.title} cannot be served: {reason} Install that release, or set "
            f"SGLANG_EXT_GEN_DISABLE={family.name} to leave this model to stock SGLang"
        )
    _announce(model_path, family)
    return _model_info(family)


def pipeline_config_from_kwargs(
    original: Callable[..., Any],
    cls: type,
    kwargs: dict[str, Any],
    config_cli_prefix: str = "",
) -> Any:
    """Around ``PipelineConfig.from_kwargs``: pipeline and config are of one maker.

    A pipeline of stock's that the user names gets stock's config. A config of stock's
    that the user gives is converted: what differs from its defaults is kept.

    Raises:
        ConfigError: A field that differs is one that our config does not have.
    """
    family = family_of(kwargs["model_path"]) if kwargs.get("model_path") else None
    if family is None:
        return original(cls, kwargs, config_cli_prefix)
    name = kwargs.get("pipeline_class_name")
    if name is not None and name != family.pipeline_name:
        with _left_to_stock():
            return original(cls, kwargs, config_cli_prefix)
    config = original(cls, kwargs, config_cli_prefix)
    if _is_overruled(family, kwargs.get("backend"), kwargs.get("model_id")):
        return config
    ours = family.load(family.pipeline_config)
    return config if isinstance(config, ours) else _converted(config, ours)


def _converted(config: Any, ours: type) -> Any:
    """Our config with what differs from the defaults in stock's."""
    plain, converted = type(config)(), ours()
    for field in fields(config):
        value = getattr(config, field.name)
        if value == getattr(plain, field.name):
            continue
        if not hasattr(converted, field.name):
            raise ConfigError(
                f"pipeline_config: {type(config).__name__}.{field.name} means nothing "
                f"to {ours.__name__}, which serves this checkpoint"
            )
        setattr(converted, field.name, value)
    logger.info("%s is taken as %s", type(config).__name__, ours.__name__)
    return converted


_stock_decides = ContextVar("_stock_decides", default=False)


@contextmanager
def _left_to_stock() -> Iterator[None]:
    token = _stock_decides.set(True)
    try:
        yield
    finally:
        _stock_decides.reset(token)


def get_non_diffusers_pipeline_name(
    original: Callable[[str], str | None], model_path: str
) -> str | None:
    """Around the function of this name in ``multimodal_gen.registry``.

    The command line asks it which pipeline config may add flags.
    """
    family = family_of(model_path)
    if family is None or _stock_decides.get():
        return original(model_path)
    return family.pipeline_name


def get_is_diffusion_model(original: Callable[[str], bool], model_path: str) -> bool:
    """Around ``sglang.cli.utils.get_is_diffusion_model``, for ``sglang serve``.

    A checkpoint with a language model in it belongs to the ``one-port`` backend, and
    SGLang wants one backend to say so.
    """
    if composed_family_of(model_path) is not None:
        return False
    return family_of(model_path) is not None or original(model_path)


def prepare_server_args(original: Callable[[list[str]], Any], argv: list[str]) -> Any:
    """Around ``srt.server_args.prepare_server_args``, for ``sglang serve``.

    Here it is known that a language model is to be served, and ours are registered;
    before, they were left out (``entry_points.register_srt``).
    """
    from sglang.srt.plugins.hook_registry import HookRegistry

    language_models.register()
    HookRegistry.apply_hooks()
    return original(argv)


@functools.cache
def _announce(model_path: str, family: ModelFamily) -> None:
    # SGLang asks several times per request; one line says who answered.
    logger.info("%s is served by %s", model_path, family.pipeline)


@functools.cache
def _model_info(family: ModelFamily) -> "ModelInfo":
    from sglang.multimodal_gen.registry import ModelInfo

    return ModelInfo(
        pipeline_cls=family.load(family.pipeline),
        sampling_param_cls=family.load(family.sampling_params),
        pipeline_config_cls=family.load(family.pipeline_config),
    )


def _is_overruled(
    family: ModelFamily, backend: str | None, model_id: str | None
) -> bool:
    # SGLang's Backend enum is a str, so this holds for both spellings.
    if backend == "diffusers" or _stock_decides.get():
        return True
    ids = [known.rpartition("/")[2].lower() for known in family.hf_model_paths]
    return model_id is not None and model_id.lower() not in ids
