# SPDX-License-Identifier: Apache-2.0
"""The registry is waited for, and asks us first about what is ours alone."""

import importlib
import sys
from pathlib import Path

import pytest

from sglang_ext_gen.plugin import early

SOURCE = """
import functools

asked = []

@functools.lru_cache(maxsize=1)
def get_model_info(path, backend=None):
    asked.append(path)
    return "stock"

def get_non_diffusers_pipeline_name(path):
    return None

def get_pipeline_class(name):
    return "stock"

def get_pipeline_config_classes(name):
    return None
"""


@pytest.fixture
def registry_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A made-up registry in place of SGLang's, not imported yet."""
    (tmp_path / "made_up_registry.py").write_text(SOURCE, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(early, "REGISTRY", "made_up_registry")
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.delenv("SGLANG_PLUGINS", raising=False)
    yield "made_up_registry"
    sys.modules.pop("made_up_registry", None)


def activation(calls: list[str], name: str):
    """What stands for our registration: it wraps the question, as a hook does."""

    def activate() -> None:
        calls.append("activated")
        registry = sys.modules[name]
        before = registry.get_model_info
        vars(registry)["get_model_info"] = lambda *args, **kwargs: (
            "ours",
            before(*args),
        )

    return activate


@pytest.mark.parametrize("is_imported", [False, True])
def test_only_a_question_about_ours_activates_us(
    registry_name, ideogram4_golden, tmp_path, is_imported
):
    calls: list[str] = []
    if is_imported:
        importlib.import_module(registry_name)
    early.watch(activation(calls, registry_name))
    early.watch(activation(calls, registry_name))
    registry = importlib.import_module(registry_name)
    assert registry.get_model_info(str(tmp_path)) == "stock"
    assert registry.get_pipeline_class("ZImagePipeline") == "stock"
    assert calls == []
    ours = str(ideogram4_golden.checkpoint)
    assert registry.get_model_info(ours) == ("ours", "stock")
    assert registry.get_model_info(ours) == ("ours", "stock")
    assert registry.get_non_diffusers_pipeline_name(ours) is None
    assert calls == ["activated"]


def test_the_name_of_a_pipeline_of_ours_activates_us(registry_name):
    calls: list[str] = []
    early.watch(activation(calls, registry_name))
    registry = importlib.import_module(registry_name)
    assert registry.get_pipeline_class("LancePipeline") == "stock"
    assert calls == ["activated"]


def test_the_registry_is_imported_as_by_anybody_else(registry_name):
    early.watch(lambda: None)
    registry = importlib.import_module(registry_name)
    spec = registry.__spec__
    assert spec is not None
    assert registry.__loader__ is spec.loader
    assert type(registry.__loader__).__module__.startswith("_frozen_importlib")
    registry.get_model_info("somewhere/else")
    registry.get_model_info.cache_clear()
    assert importlib.reload(registry).get_pipeline_class("x") == "stock"


@pytest.mark.parametrize(("plugins", "is_watched"), [("none", False), (" ", True)])
def test_a_user_may_leave_us_out(registry_name, monkeypatch, plugins, is_watched):
    monkeypatch.setenv("SGLANG_PLUGINS", plugins)
    before = len(sys.meta_path)
    early.watch(lambda: None)
    assert (len(sys.meta_path) > before) == is_watched
