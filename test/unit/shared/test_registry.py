# SPDX-License-Identifier: Apache-2.0
"""The table of families, and whose checkpoint a path is."""

import json
import shutil
from dataclasses import MISSING, fields, replace

import pytest

from sglang_ext_gen import registry
from sglang_ext_gen.errors import ConfigError
from sglang_ext_gen.registry import FAMILIES, ModelFamily, family_of


@pytest.fixture(autouse=True)
def _no_family_is_disabled(monkeypatch):
    monkeypatch.delenv("SGLANG_EXT_GEN_DISABLE", raising=False)


def disguised_copy(checkpoint, target):
    """A checkpoint without its weights, under another name."""
    ignore = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(checkpoint, target, ignore=ignore)
    return target


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_row_is_complete(family):
    for field in fields(ModelFamily):
        if field.default is MISSING:
            assert getattr(family, field.name), field.name
    for reference in (family.request_fields, family.load_options, family.recognises):
        assert family.load(reference) is not None
    assert family.load(family.demo_requests)()


def test_names_and_ids_are_unique():
    names = [family.name for family in FAMILIES]
    ids = [known.lower() for family in FAMILIES for known in family.hf_model_paths]
    pipelines = [family.pipeline_name for family in FAMILIES]
    for values in (names, ids, pipelines):
        assert len(set(values)) == len(values)


def test_demo_requests_pass_the_familys_own_check():
    for family in FAMILIES:
        for request in family.load(family.demo_requests)():
            assert family.load(family.check_request)(request) == request


def test_unknown_family_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"'nope'; known families: .*ideogram4"):
        registry.find_family("nope")


@pytest.mark.parametrize("name", ["anything", "x-4bit", "x-awq", "Qwen-Image", "flux"])
def test_directory_is_known_by_content_not_by_name(ideogram4_golden, tmp_path, name):
    path = disguised_copy(ideogram4_golden.checkpoint, tmp_path / name)
    assert family_of(path) is registry.find_family("ideogram4")
    assert family_of(str(path)) is registry.find_family("ideogram4")


def test_quantised_conversion_stays_with_stock(ideogram4_golden, tmp_path):
    path = disguised_copy(ideogram4_golden.checkpoint, tmp_path / "ideogram-4-fp8")
    config = path / "transformer" / "config.json"
    values = json.loads(config.read_text("utf-8"))
    values["quantization_config"] = {"quant_method": "bitsandbytes"}
    config.write_text(json.dumps(values), "utf-8")
    assert family_of(path) is None


def test_directory_of_another_model_stays_with_stock(tmp_path):
    path = tmp_path / "ideogram-4-fp8"
    path.mkdir()
    assert family_of(path) is None
    (path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}', "utf-8")
    assert family_of(path) is None


@pytest.mark.parametrize(
    ("model_id", "name"),
    [
        ("ideogram-ai/ideogram-4-fp8", "ideogram4"),
        ("Ideogram-AI/Ideogram-4-FP8", "ideogram4"),
        ("ideogram-ai/ideogram-4-nf4", None),
        ("someone/ideogram-4-fp8", None),
        ("fal/ideogram-v4-fast", None),
        ("Qwen/Qwen-Image", "qwen_image"),
        ("Qwen/Qwen-Image-Edit-2511", "qwen_image_edit"),
        ("Qwen/Qwen-Image-Layered", None),
    ],
)
def test_hugging_face_ids(model_id, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    family = family_of(model_id)
    assert (family.name if family else None) == name


def test_disabled_family_is_stocks(ideogram4_golden, monkeypatch):
    monkeypatch.setenv("SGLANG_EXT_GEN_DISABLE", "ideogram4")
    enabled = {family.name for family in registry.enabled_families()}
    assert "ideogram4" not in enabled
    assert family_of(ideogram4_golden.checkpoint) is None
    assert family_of("ideogram-ai/ideogram-4-fp8") is None


def test_disabling_an_unknown_family_is_an_error(monkeypatch):
    monkeypatch.setenv("SGLANG_EXT_GEN_DISABLE", "ideogram")
    with pytest.raises(ConfigError, match="'ideogram'"):
        registry.enabled_families()


def test_family_of_config_follows_inheritance(monkeypatch):
    class Config:
        pass

    class Tuned(Config):
        pass

    package, _, file = Config.__module__.rpartition(".")
    row = registry.find_family("ideogram4")
    reference = f"{file}:{Config.__qualname__}"
    ours = replace(row, package=package, pipeline_config=reference)
    monkeypatch.setattr(registry, "FAMILIES", (ours,))
    assert registry.family_of_config(Tuned()) is ours
    assert registry.family_of_config(object()) is None


def test_language_models_are_recognised_by_content(golden_dir, tmp_path, monkeypatch):
    thinker = golden_dir("ming_thinker")
    found = registry.language_model_of(thinker)
    assert found in registry.LANGUAGE_MODELS
    assert found is not None
    assert found.name == "ming_omni"
    assert registry.language_model_of(tmp_path) is None
    monkeypatch.setenv("SGLANG_EXT_GEN_DISABLE", "ming_omni")
    assert registry.language_model_of(thinker) is None


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_load_options_are_no_flags_of_sglangs(family):
    """A name given twice would keep ``sglang serve`` from starting."""
    from sglang.multimodal_gen.runtime.server_args import ServerArgs
    from sglang.multimodal_gen.runtime.utils.argparse import FlexibleArgumentParser

    parser = FlexibleArgumentParser(allow_abbrev=False)
    ServerArgs.add_cli_args(parser)
    family.load(family.pipeline_config).add_pipeline_cli_args(parser)
    for option in family.load(family.load_options):
        assert f"--{option.name.replace('_', '-')}" in parser.format_help()
