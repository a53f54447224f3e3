# SPDX-License-Identifier: Apache-2.0
"""The ledger of hooks, and what its resolving rows do; no SGLang is started."""

import functools
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

from sglang_ext_gen.errors import ConfigError
from sglang_ext_gen.plugin import compat, hooks, resolution

OURS = "ideogram-ai/ideogram-4-fp8"
STOCKS = "black-forest-labs/FLUX.1-dev"


@pytest.mark.parametrize("hook", hooks.HOOKS, ids=lambda hook: hook.target)
def test_row_says_why_and_until_when(hook):
    assert hook.target.startswith("sglang.")
    assert hook.replacement.startswith("sglang_ext_gen.")
    assert hook.reason.endswith(".")
    assert hook.remove_when.endswith(".")


def test_no_target_twice():
    targets = [hook.target for hook in hooks.HOOKS]
    assert len(set(targets)) == len(targets)


def test_nothing_is_patched_outside_the_ledger():
    for path in sorted(Path(hooks.__file__).parent.rglob("*.py")):
        if path.name != "hooks.py":
            assert not re.search(r"registry\.register\(", path.read_text("utf-8"), re.I)


def test_missing_target_is_named():
    with pytest.raises(ConfigError, match=r"has no json\.no_such_function"):
        hooks._find("json.no_such_function")


def test_cached_functions_keep_their_cache_methods():
    # HookRegistry wraps with functools.wraps, as here.
    @functools.lru_cache
    def cached():
        return 1

    hooks._keep_cache_methods(cached)
    wrapper: Any = functools.wraps(cached)(lambda: cached())
    wrapper()
    assert wrapper.cache_info().currsize == 1
    wrapper.cache_clear()
    assert wrapper.cache_info().currsize == 0


def test_resolver_is_the_row_that_refuses():
    assert pkgutil.resolve_name(hooks.RESOLVER.replacement) is resolution.get_model_info


def stock(*args, **kwargs) -> Any:
    """In place of a stock function: shows what it was called with."""
    return args, kwargs


def test_stock_paths_get_stocks_answer():
    info = resolution.get_model_info(stock, STOCKS, backend="auto", model_id=None)
    assert info == ((STOCKS,), {"backend": "auto", "model_id": None})
    name = resolution.get_non_diffusers_pipeline_name(stock, STOCKS)
    assert name == ((STOCKS,), {})
    assert resolution.get_is_diffusion_model(stock, STOCKS) == ((STOCKS,), {})


@pytest.mark.parametrize(
    ("backend", "model_id"), [("diffusers", None), (None, "Qwen-Image"), ("auto", "x")]
)
def test_the_users_word_overrules_ours(backend, model_id):
    answer = resolution.get_model_info(stock, OURS, backend=backend, model_id=model_id)
    assert answer == ((OURS,), {"backend": backend, "model_id": model_id})


def test_our_paths_are_diffusion_models_with_our_pipeline():
    def original(_):
        raise AssertionError("stock was asked")

    assert resolution.get_is_diffusion_model(original, OURS) is True
    name = resolution.get_non_diffusers_pipeline_name(original, OURS)
    assert name == "Ideogram4FP8Pipeline"


def test_unsupported_sglang_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(compat, "installed_sglang", lambda: "9.9.9")
    with pytest.raises(ConfigError) as caught:
        resolution.get_model_info(lambda *_, **__: None, OURS)
    message = str(caught.value)
    for part in ("Ideogram 4", "9.9.9", compat.SUPPORTED_SGLANG, "_DISABLE=ideogram4"):
        assert part in message


def test_replacements_take_what_stock_is_given():
    names = list(inspect.signature(resolution.get_model_info).parameters)
    assert names == ["original", "model_path", "backend", "model_id"]
