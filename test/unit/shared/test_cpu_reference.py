# SPDX-License-Identifier: Apache-2.0
"""When the CPU reference platform applies, and what it promises to SGLang."""

import pkgutil
from types import SimpleNamespace

import pytest
import torch

from lazy import LazyModule
from sglang_ext_gen.errors import ConfigError

cpu_reference = LazyModule("sglang_ext_gen.platforms.cpu_reference")


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch):
    monkeypatch.delenv("SGLANG_PLATFORM", raising=False)
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)


def _accelerator(monkeypatch, is_there: bool) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: is_there)


def test_applies_where_there_is_no_accelerator(monkeypatch):
    _accelerator(monkeypatch, False)
    platform = pkgutil.resolve_name(cpu_reference.activate() or "")()
    assert platform.is_out_of_tree()
    assert platform.device_type == "cpu"
    assert platform.get_device() == "cpu"
    assert platform.get_default_attention_backend() == "torch_native"
    assert platform.get_dispatch_key_name() == "native"
    assert not platform.capabilities.supports_triton
    assert not platform.capabilities.graph_capture


def test_stays_away_from_an_accelerator(monkeypatch):
    _accelerator(monkeypatch, True)
    assert cpu_reference.activate() is None


def test_leaves_stocks_cpu_engine_alone(monkeypatch):
    _accelerator(monkeypatch, False)
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    assert cpu_reference.activate() is None


def test_can_be_asked_for_by_name(monkeypatch):
    _accelerator(monkeypatch, False)
    monkeypatch.setenv("SGLANG_PLATFORM", cpu_reference.NAME)
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    assert cpu_reference.activate() is not None


def test_refuses_to_hide_a_visible_accelerator(monkeypatch):
    _accelerator(monkeypatch, True)
    monkeypatch.setenv("SGLANG_PLATFORM", cpu_reference.NAME)
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES"):
        cpu_reference.activate()


def test_says_what_it_is_for(monkeypatch, caplog):
    _accelerator(monkeypatch, False)
    cpu_reference.activate()
    assert "not for serving" in caplog.text


def test_waits_without_spinning(monkeypatch):
    _accelerator(monkeypatch, False)
    platform = pkgutil.resolve_name(cpu_reference.activate() or "")()
    arguments = SimpleNamespace(sleep_on_idle=False)
    platform.apply_server_args_defaults(arguments)
    assert arguments.sleep_on_idle
