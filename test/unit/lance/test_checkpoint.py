# SPDX-License-Identifier: Apache-2.0
"""Config files, components and strict loading of a Lance checkpoint."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sglang_ext_gen.errors import CheckpointError, ConfigError
from sglang_ext_gen.models.lance import checkpoint
from sglang_ext_gen.models.lance.config import (
    LanceTransformerConfig,
    LanceVisionConfig,
)
from sglang_ext_gen.models.lance.tensors import transformer_specs


@pytest.fixture
def copy(lance, tmp_path) -> Path:
    """A writable copy of the tiny checkpoint."""
    return Path(shutil.copytree(lance.path, tmp_path / "lance"))


def change_json(file: Path, **values) -> None:
    content = json.loads(file.read_text("utf-8"))
    content.update(values)
    kept = {key: value for key, value in content.items() if value is not None}
    file.write_text(json.dumps(kept), "utf-8")


def test_golden_checkpoint_is_complete(lance):
    assert checkpoint.check_checkpoint(lance.path) == []
    assert checkpoint.recognises(lance.path)
    assert checkpoint.recognises(lance.path / "Lance_3B")
    assert not checkpoint.recognises(lance.path / "Qwen2.5-VL-ViT")
    assert checkpoint.find_files(lance.path / "Lance_3B_Video").root == lance.path


def test_one_variant_alone_is_complete(copy):
    shutil.rmtree(copy / "Lance_3B_Video")
    assert checkpoint.check_checkpoint(copy) == []
    with pytest.raises(CheckpointError, match=r"Lance_3B_Video is missing \(found: La"):
        checkpoint.find_files(copy).folder("Lance_3B_Video")


def test_a_variant_under_any_name_is_known_by_its_tensors(copy, tmp_path):
    (copy / "Lance_3B").rename(copy / "mine")
    video = (copy / "Lance_3B_Video").rename(tmp_path / "elsewhere")
    (copy / "also-mine").symlink_to(video)
    for name, variant in (("mine", "Lance_3B"), ("also-mine", "Lance_3B_Video")):
        files = checkpoint.find_files(copy / name)
        assert (files.root, files.named) == (copy, variant)
        assert files.renamed == {variant: copy / name}
        assert checkpoint.recognises(copy / name)
        assert checkpoint.check_checkpoint(copy / name) == []
    assert checkpoint.recognises(copy)
    assert checkpoint.check_checkpoint(copy) == []
    assert checkpoint.find_files(copy).variants() == ("Lance_3B", "Lance_3B_Video")


def test_a_link_into_the_release_finds_its_other_parts(copy, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(copy / "Lance_3B_Video")
    assert checkpoint.find_files(link).root == copy
    assert checkpoint.check_checkpoint(link) == []


def test_understanding_needs_no_vae(copy):
    vae = copy / "Wan2.2_VAE.pth"
    for file in (vae, vae.with_suffix(".safetensors")):
        file.unlink(missing_ok=True)
    assert checkpoint.recognises(copy)
    assert checkpoint.check_understanding(copy) == []
    assert checkpoint.check_checkpoint(copy) == [
        f"{vae} is missing (the VAE, needed to draw, not to understand)"
    ]


def test_released_dimensions_have_the_released_tensors():
    config = LanceTransformerConfig(
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        mrope_section=(16, 24, 24),
    )
    names = [spec.name for spec in transformer_specs(config)]
    assert len(names) == len(set(names)) == 1020  # and the position table: 1021


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("Lance_3B/llm_config.json", {"surprise": 1}, "unknown key 'surprise'"),
        ("Lance_3B/llm_config.json", {"hidden_size": None}, "'hidden_size' is missing"),
        ("Lance_3B/llm_config.json", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("Lance_3B/llm_config.json", {"num_attention_heads": 8}, "mrope_section"),
        ("Qwen2.5-VL-ViT/config.json", {"surprise": 1}, "unknown key 'surprise'"),
        ("Qwen2.5-VL-ViT/config.json", {"depth": None}, "'depth' is missing"),
    ],
)
def test_another_config_is_refused(file, values, message, copy):
    change_json(copy / file, **values)
    assert any(message in problem for problem in checkpoint.check_checkpoint(copy))


def test_config_classes_use_every_released_key(lance):
    folder = lance.path
    for file, cls in (
        ("Lance_3B/llm_config.json", LanceTransformerConfig),
        ("Qwen2.5-VL-ViT/config.json", LanceVisionConfig),
    ):
        cls.from_dict(json.loads((folder / file).read_text("utf-8")), file)
    with pytest.raises(ConfigError, match="rope_scaling"):
        LanceTransformerConfig.from_dict({}, "empty")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("llm2vae.bias"), "llm2vae.bias"),
        (lambda t: t.update(extra=torch.zeros(1)), "extra"),
        (lambda t: t.update({"vae2llm.bias": torch.zeros(3)}), "vae2llm.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, message, lance, copy):
    file = copy / "Lance_3B" / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    assert any(message in problem for problem in checkpoint.check_checkpoint(copy))
    with pytest.raises(CheckpointError, match=message):
        lance.load(checkpoint.find_files(copy).transformer("Lance_3B"))


def test_ema_file_is_used_when_there_is_no_model_file(copy):
    folder = copy / "Lance_3B"
    (folder / "model.safetensors").rename(folder / "ema.safetensors")
    assert (
        checkpoint.find_files(copy).transformer("Lance_3B").file.name
        == "ema.safetensors"
    )
    assert checkpoint.check_checkpoint(copy) == []


def test_video_variant_brings_its_own_vision_tower(lance):
    def load(variant, source):
        return lance.load(lance.files.vision(variant, source)).merger.ln_q.weight

    standalone = load("Lance_3B", "checkpoint")
    assert torch.equal(standalone, load("Lance_3B_Video", "standalone"))
    assert not torch.equal(standalone, load("Lance_3B_Video", "checkpoint"))


def test_load_casts_to_the_asked_dtype(lance):
    transformer = lance.load(lance.files.transformer("Lance_3B"), torch.bfloat16)
    assert {p.dtype for p in transformer.parameters()} == {torch.bfloat16}
