# SPDX-License-Identifier: Apache-2.0
"""Our families are known to the first question that the diffusion registry is asked.

SGLang loads diffusion plugins when a generator or a server starts. Plain ``sglang
generate``, and programs that build ``ServerArgs`` first, ask the registry before that:
without this, stock would choose the config and the worker, later, our pipeline.
Importing SGLang loads its platform plugins, which is the earliest that it calls us;
there the import of the registry is waited for. A question about a checkpoint or a
pipeline of ours then registers everything and is asked again; all others cost nothing.
"""

import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from sglang_ext_gen.registry import enabled_families, family_of

REGISTRY = "sglang.multimodal_gen.registry"
_MARK = "_sglang_ext_gen_is_asked_first"
# Each takes a checkpoint's path or the name of a pipeline first.
QUESTIONS = (
    "get_model_info",
    "get_non_diffusers_pipeline_name",
    "get_pipeline_class",
    "get_pipeline_config_classes",
)


def watch(activate: Callable[[], None]) -> None:
    """Have ``activate`` called before the registry first answers about one of ours.

    Nothing happens where ``SGLANG_PLUGINS`` leaves this package out.
    """
    names = [n.strip() for n in os.environ.get("SGLANG_PLUGINS", "").split(",")]
    if any(names) and "sglang_ext_gen" not in names:
        return
    if REGISTRY in sys.modules:
        _ask_us_first(sys.modules[REGISTRY], activate)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(activate))


class _Finder(MetaPathFinder):
    """Finds the registry once, as everybody else would, and changes its questions."""

    def __init__(self, activate: Callable[[], None]) -> None:
        self._activate = activate

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname != REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._activate)
        return spec


class _Loader(Loader):
    """The registry's own loader, and then ours."""

    def __init__(self, loader: Loader, activate: Callable[[], None]) -> None:
        self._loader, self._activate = loader, activate

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None, "a module that is imported has one"
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _ask_us_first(module, self._activate)


def _ask_us_first(registry: ModuleType, activate: Callable[[], None]) -> None:
    if hasattr(registry, _MARK):
        return
    setattr(registry, _MARK, True)
    activate_once = functools.cache(activate)
    for name in QUESTIONS:
        setattr(registry, name, _asking(registry, name, activate_once))


def _asking(
    registry: ModuleType, name: str, activate_once: Callable[[], None]
) -> Callable[..., Any]:
    original = getattr(registry, name)
    is_activating = False

    @functools.wraps(original)
    def ask(subject: str, *args: Any, **kwargs: Any) -> Any:
        nonlocal is_activating
        if is_activating or not _is_ours(subject):
            return original(subject, *args, **kwargs)
        is_activating = True
        activate_once()
        # The hooks are in force now, around this function.
        return getattr(registry, name)(subject, *args, **kwargs)

    for method in ("cache_clear", "cache_info"):
        if hasattr(original, method):  # register_pipeline clears the answers
            setattr(ask, method, getattr(original, method))
    return ask


def _is_ours(subject: str) -> bool:
    names = {family.pipeline_name for family in enabled_families()}
    return subject in names or family_of(subject) is not None
