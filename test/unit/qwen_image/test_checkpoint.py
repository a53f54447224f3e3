# SPDX-License-Identifier: Apache-2.0
"""Whose checkpoint a folder is, what one must hold, and the tiny one."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_image_runtime import copy_checkpoint, decibels, load_pipeline
from sglang_ext_gen.checkpoint.layout import read_json
from sglang_ext_gen.checkpoint.tiny import write_json
from sglang_ext_gen.cli.doctor import examine_model
from sglang_ext_gen.models.qwen_image.checkpoint import (
    COMPONENTS,
    check_checkpoint,
    recognises,
    recognises_edit,
    takes_one_reference,
)
from sglang_ext_gen.models.qwen_image.tiny import write_tiny, write_tiny_edit
from sglang_ext_gen.registry import family_of, near_misses


def test_families_by_content_alone(t2i_checkpoint, edit_checkpoint, tmp_path) -> None:
    # Stock would take both names for something else.
    t2i = copy_checkpoint(t2i_checkpoint, tmp_path / "qwen-image-edit-2511-awq")
    edit = copy_checkpoint(edit_checkpoint, tmp_path / "a")
    for path, name in ((t2i, "qwen_image"), (edit, "qwen_image_edit")):
        family = family_of(path)
        assert family is not None
        assert family.name == name
    assert not takes_one_reference(edit)
    first = copy_checkpoint(
        edit,
        tmp_path / "b",
        **{"model_index": {"_class_name": "QwenImageEditPipeline"}},
    )
    assert recognises_edit(first)
    assert takes_one_reference(first)


@pytest.mark.parametrize(
    "change",
    [
        {"model_index": {"_class_name": "QwenImageLayeredPipeline"}},
        {"transformer/config": {"_class_name": "QwenImage21Transformer2DModel"}},
        {"transformer/config": {"quantization_config": {"quant_method": "awq"}}},
        {"transformer/config": {"use_layer3d_rope": True}},
    ],
    ids=str,
)
def test_what_stays_with_stock(t2i_checkpoint, tmp_path, change) -> None:
    path = copy_checkpoint(t2i_checkpoint, tmp_path / "Qwen-Image", **change)
    assert not recognises(path)
    assert not recognises_edit(path)
    assert family_of(path) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_index": {"_class_name": "QwenImageLayeredPipeline"}},
            "is QwenImageLayeredPipeline; that relative of Qwen-Image is left to stock",
        ),
        ({"transformer/config": {"quantization_config": {}}}, "its transformer is qua"),
        ({"transformer/config": {"use_layer3d_rope": True}}, "is another one (use_l"),
    ],
    ids=["layered", "quantised", "layer3d"],
)
def test_a_relative_is_named(t2i_checkpoint, tmp_path, change, message) -> None:
    path = copy_checkpoint(t2i_checkpoint, tmp_path / "Qwen-Image", **change)
    (note,) = near_misses(path)
    assert message in note
    assert note in examine_model(path)["problems"]


def test_a_single_file_is_named(t2i_checkpoint, tmp_path) -> None:
    tensors = load_file(COMPONENTS[0].at(t2i_checkpoint).file)
    file = tmp_path / "qwen_image_fp8_e4m3fn.safetensors"
    prefix = "model.diffusion_model."
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, file)
    for path in (file, tmp_path):
        (note,) = near_misses(path)
        assert note.startswith(f"{file} is a single file of a Qwen-Image transformer")
    assert near_misses(t2i_checkpoint) == []


def test_raw_float8_is_named_once(t2i_checkpoint, tmp_path) -> None:
    path = copy_checkpoint(t2i_checkpoint, tmp_path / "Qwen-Image")
    file = COMPONENTS[0].at(path).file
    tensors = load_file(file)
    save_file({n: t.to(torch.float8_e4m3fn) for n, t in tensors.items()}, file)
    (problem,) = check_checkpoint(path)
    assert problem.startswith("transformer/: its weights are raw FP8, without scales")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("scheduler/scheduler_config.json", '{"_class_name": "X"}', "_class_name is"),
        ("scheduler/scheduler_config.json", "{", "is not readable JSON"),
        ("tokenizer/tokenizer_config.json", None, "tokenizer_config.json is missing"),
        ("tokenizer/tokenizer.json", None, "tokenizer/: it has no vocabulary"),
        ("processor/tokenizer.json", None, "processor/: it has no vocabulary"),
        (
            "processor/processor_config.json",
            '{"image_processor": {"patch_size": 7}}',
            "processor/processor_config.json: patch_size is 7, expected",
        ),
    ],
)
def test_the_small_parts_are_looked_at(
    edit_checkpoint, tmp_path, file, content, message
) -> None:
    path = copy_checkpoint(edit_checkpoint, tmp_path / "a")
    (path / file).unlink()
    if content is not None:
        (path / file).write_text(content)
    (problem,) = check_checkpoint(path)
    assert message in problem


def test_disabled_families_stay_with_stock(t2i_checkpoint, monkeypatch) -> None:
    assert family_of(t2i_checkpoint) is not None
    monkeypatch.setenv("SGLANG_EXT_GEN_DISABLE", "qwen_image,qwen_image_edit")
    assert family_of(t2i_checkpoint) is None


@pytest.mark.slow
def test_stock_answers_for_a_disabled_family(
    runtime, t2i_checkpoint, t2i_golden, monkeypatch
) -> None:
    from sglang.multimodal_gen.registry import get_model_info

    ours = get_model_info(str(t2i_checkpoint))
    assert ours is not None
    assert ours.pipeline_cls.__name__ == "QwenImageExtPipeline"
    monkeypatch.setenv("SGLANG_EXT_GEN_DISABLE", "qwen_image,qwen_image_edit")
    stock = get_model_info(str(t2i_checkpoint))
    assert stock is not None
    assert stock.pipeline_cls.__module__.startswith("sglang.multimodal_gen.")
    assert stock.pipeline_cls.__name__ == "QwenImagePipeline"
    # And it draws: the reference's picture, by stock's own classes.
    case = t2i_golden.json["case"]
    names = ("prompt", "negative_prompt", "true_cfg_scale", "width", "height")
    names += ("num_inference_steps", "seed")
    loaded = load_pipeline(t2i_checkpoint)
    assert type(loaded.pipeline) is stock.pipeline_cls
    drawn = loaded.pictures(**{name: case[name] for name in names})
    expected = t2i_golden.tensor("image").permute(2, 0, 1)[None]
    assert decibels(drawn, expected) > 48


@pytest.mark.parametrize("kind", ["t2i", "edit"])
def test_specs_are_the_released_names(kind, request) -> None:
    path = request.getfixturevalue(f"{kind}_checkpoint")
    for component in COMPONENTS:
        part = component.at(path)
        expected = {spec.name: spec.shape for spec in part.specs}
        assert {name: t.shape for name, t in part.stored.items()} == expected
    assert check_checkpoint(path) == []


def test_damage_is_named(edit_checkpoint, tmp_path) -> None:
    path = copy_checkpoint(edit_checkpoint, tmp_path / "x")
    shutil.rmtree(path / "processor")
    (path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    config = path / "transformer" / "config.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "num_layers": 1}), "utf-8"
    )
    problems = "\n".join(check_checkpoint(path))
    for word in ("processor/", "vae", "transformer_blocks.1"):
        assert word in problems


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("transformer/config", {"another_word": 1}),
        ("transformer/config", {"out_channels": 16}),
        ("text_encoder/config", {"another_word": 1}),
        ("vae/config", {"another_word": 1}),
    ],
)
def test_words_that_decide_no_tensor_are_stocks(
    t2i_checkpoint, tmp_path, file, change
) -> None:
    path = copy_checkpoint(t2i_checkpoint, tmp_path / "x", **{file: change})
    assert check_checkpoint(path) == []


def test_older_configs(t2i_checkpoint, tmp_path) -> None:
    path = copy_checkpoint(t2i_checkpoint, tmp_path / "x")
    encoder = read_json(path / "text_encoder" / "config.json")
    vision = encoder["vision_config"]
    vision["in_chans"] = vision.pop("in_channels")
    encoder |= encoder.pop("text_config")
    vae = read_json(path / "vae" / "config.json")
    del vae["input_channels"]
    write_json(path / "text_encoder" / "config.json", encoder)
    write_json(path / "vae" / "config.json", vae)
    assert check_checkpoint(path) == []


def test_a_quantised_text_encoder_is_stocks(t2i_checkpoint, tmp_path) -> None:
    changes = {"text_encoder/config": {"vocab_size": 1, "quantization_config": {}}}
    path = copy_checkpoint(t2i_checkpoint, tmp_path / "x", **changes)
    file = path / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    save_file({**weights, "lm_head.weight.scales": torch.ones(1)}, file)
    assert check_checkpoint(path) == []


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("transformer/config", {"num_layers": 0}, ["num_layers is 0", "positive"]),
        ("transformer/config", {"_class_name": "X"}, ["_class_name", "'X'"]),
        ("text_encoder/config", {"text_config": {}}, ["hidden_size", "missing"]),
        ("text_encoder/config", {"vision_config": 1}, ["vision_config is 1"]),
        ("vae/config", {"z_dim": "16"}, ["z_dim is '16'"]),
        ("vae/config", {"temperal_downsample": [1]}, ["temperal_downsample", "true"]),
        ("vae/config", {"temperal_downsample": [True]}, ["dim_mult"]),
        ("vae/config", {"base_dim": 9}, ["encoder.conv_in.weight", "shape"]),
    ],
)
def test_a_wrong_config_is_named(t2i_checkpoint, tmp_path, file, change, words) -> None:
    path = copy_checkpoint(t2i_checkpoint, tmp_path / "x", **{file: change})
    problems = "\n".join(check_checkpoint(path))
    for word in (file.partition("/")[0], *words):
        assert word in problems


@pytest.mark.parametrize("write", [write_tiny, write_tiny_edit])
def test_tiny_is_complete_and_repeatable(write, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, seed=3)
    assert check_checkpoint(tmp_path / "a") == []
    family = family_of(tmp_path / "a")
    assert family is not None
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (
            tmp_path / "b" / file
        ).read_bytes()
