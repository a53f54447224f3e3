# SPDX-License-Identifier: Apache-2.0
"""Registration: what the entry points do; fresh processes are in ``test/server``."""

import sys

import pytest

from sglang_ext_gen.plugin import compat, entry_points, hooks, language_models
from sglang_ext_gen.registry import (
    FAMILIES,
    LANGUAGE_MODELS,
    enabled_language_models,
)


@pytest.fixture
def registered(monkeypatch):
    """Hook registrations, recorded instead of made; entry points start unused."""
    calls = []
    monkeypatch.setattr(hooks, "register_hooks", lambda *args: calls.append(args))
    monkeypatch.setattr(language_models, "register", lambda: calls.append(("srt",)))
    monkeypatch.delenv("SGLANG_EXT_GEN_DISABLE", raising=False)
    # The functions are cached for the life of a process; call what is inside.
    monkeypatch.setattr(
        entry_points, "register_srt", entry_points.register_srt.__wrapped__
    )
    monkeypatch.setattr(
        entry_points, "register_diffusion", entry_points.register_diffusion.__wrapped__
    )
    return calls


def test_language_models_are_registered_outside_sglang_serve(registered, monkeypatch):
    monkeypatch.delitem(sys.modules, "sglang.cli.serve", raising=False)
    entry_points.register_srt()
    assert registered == [("srt",)]


def test_sglang_serve_gets_the_cli_hook(registered, monkeypatch):
    monkeypatch.setitem(sys.modules, "sglang.cli.serve", sys)
    monkeypatch.setattr(sys, "argv", ["sglang", "serve", "some/model"])
    entry_points.register_srt()
    assert registered == [("cli",)]


def test_a_program_that_only_imported_sglang_serve_is_not_it(registered, monkeypatch):
    monkeypatch.setitem(sys.modules, "sglang.cli.serve", sys)
    monkeypatch.setattr(sys, "argv", ["program.py"])
    entry_points.register_srt()
    assert registered == [("srt",)]


def test_nothing_happens_when_every_family_is_disabled(registered, monkeypatch):
    disabled = ",".join(row.name for row in (*FAMILIES, *LANGUAGE_MODELS))
    monkeypatch.setenv("SGLANG_EXT_GEN_DISABLE", disabled)
    entry_points.register_diffusion()
    assert registered == []
    assert enabled_language_models() == ()


def test_unsupported_sglang_gets_only_the_refusal(registered, monkeypatch, caplog):
    monkeypatch.setattr(compat, "installed_sglang", lambda: "9.9.9")
    entry_points.register_diffusion()
    assert registered == [("diffusion", (hooks.RESOLVER,))]
    assert "Ideogram 4 FP8" in caplog.text
    assert "will be refused" in caplog.text


def test_misspelt_variables_are_named(registered, monkeypatch, caplog):
    every = ",".join(family.name for family in FAMILIES)
    monkeypatch.setenv("SGLANG_EXT_GEN_DISABLE", every)
    monkeypatch.setenv("SGLANG_EXT_GEN_DISABEL", "x")
    entry_points.register_diffusion()
    assert "SGLANG_EXT_GEN_DISABEL" in caplog.text
