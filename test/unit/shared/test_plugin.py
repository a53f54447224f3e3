# SPDX-License-Identifier: Apache-2.0
"""Registration: what the entry points do, and that it works in fresh processes."""

import json
import os
import shutil
import subprocess
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


# Resolves each path as SGLang's processes do and prints {path: [pipeline, config]}.
RESOLVE = """
import json, os, sys
from sglang.cli.utils import get_is_diffusion_model
found = {}
if os.environ.get("SGLANG_EXTERNAL_MODEL_PACKAGE"):
    found["is diffusion"] = get_is_diffusion_model(sys.argv[1])
    import sglang.srt.models.registry
else:
    from sglang.multimodal_gen.runtime.platforms.plugins import apply_plugin_hooks
    apply_plugin_hooks()
    apply_plugin_hooks()
import sglang.multimodal_gen.registry as registry
for path in sys.argv[1:]:
    info = registry.get_model_info(path, backend="sglang")
    name = registry.get_non_diffusers_pipeline_name(path)
    found[path] = [
        info.pipeline_cls.__module__.partition(".")[0],
        info.pipeline_config_cls.__module__.partition(".")[0],
        info.sampling_param_cls.__module__.partition(".")[0],
        name,
    ]
registry.get_model_info.cache_clear()
print("FOUND " + json.dumps(found))
"""


@pytest.fixture(scope="module")
def checkpoints(ideogram4_golden, tmp_path_factory):
    """Ours under a name that stock sends to diffusers, and a stock conversion."""
    folder = tmp_path_factory.mktemp("checkpoints")
    ignore = shutil.ignore_patterns("*.safetensors")
    ours = folder / "renamed-4bit-awq"
    shutil.copytree(ideogram4_golden.checkpoint, ours, ignore=ignore)
    nf4 = folder / "ideogram-4-nf4"
    shutil.copytree(ideogram4_golden.checkpoint, nf4, ignore=ignore)
    config = nf4 / "transformer" / "config.json"
    values = json.loads(config.read_text("utf-8"))
    values["quantization_config"] = {"quant_method": "bitsandbytes"}
    config.write_text(json.dumps(values), "utf-8")
    return ours, nf4


@pytest.fixture(scope="module")
def found(checkpoints, ideogram4_golden):
    """What fresh processes find, by case. All at once: each imports for a minute."""
    ours, nf4 = checkpoints
    cases = {
        "plugin": ([ours, nf4, "ideogram-ai/ideogram-4-fp8"], {}),
        "disabled": (
            [ideogram4_golden.checkpoint],
            {"SGLANG_EXT_GEN_DISABLE": "ideogram4"},
        ),
        "external": (
            [ours],
            {
                "SGLANG_EXTERNAL_MODEL_PACKAGE": "sglang_ext_gen",
                # No entry point is loaded: what registers is the package's import.
                "SGLANG_PLUGINS": "none",
            },
        ),
    }
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-c", RESOLVE, *map(str, paths)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        for name, (paths, environment) in cases.items()
    }
    answers = {}
    for name, process in processes.items():
        output, log = process.communicate(timeout=600)
        assert process.returncode == 0, log[-3000:]
        [line] = [line for line in output.splitlines() if line.startswith("FOUND ")]
        answers[name] = json.loads(line.removeprefix("FOUND "))
    return answers


OURS = [*["sglang_ext_gen"] * 3, "Ideogram4FP8Pipeline"]
STOCKS = [*["sglang"] * 3, None]


@pytest.mark.slow
def test_entry_points_take_over_our_checkpoints_and_no_other(found, checkpoints):
    ours, nf4 = checkpoints
    assert found["plugin"] == {
        str(ours): OURS,
        str(nf4): STOCKS,
        "ideogram-ai/ideogram-4-fp8": OURS,
    }


@pytest.mark.slow
def test_a_disabled_family_is_given_back_to_stock(found, ideogram4_golden):
    assert found["disabled"] == {str(ideogram4_golden.checkpoint): STOCKS}


@pytest.mark.slow
def test_external_model_package_works_in_both_runtimes(found, checkpoints):
    ours, _ = checkpoints
    assert found["external"] == {"is diffusion": True, str(ours): OURS}
