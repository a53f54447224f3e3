# SPDX-License-Identifier: Apache-2.0
"""An Ideogram 4 checkpoint on disk: complete ones pass, damage is named."""

import math
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from checkpoint_damage import (
    DAMAGES,
    RawTensor,
    copy_checkpoint,
    read_raw,
    write_raw,
)
from checkpoint_repacks import edit_json, edit_tensors, shard, split_attention
from conftest import Golden
from sglang_ext_gen.checkpoint.layout import check_tensors, has_float8, read_json
from sglang_ext_gen.checkpoint.rules import plan_steps
from sglang_ext_gen.models.ideogram4.checkpoint import (
    COMPONENTS,
    TEXT_ENCODER,
    TRANSFORMER,
    VAE,
    check_checkpoint,
    recognises,
)
from sglang_ext_gen.models.ideogram4.config import (
    Ideogram4TransformerConfig,
    Ideogram4VAEConfig,
)
from sglang_ext_gen.models.ideogram4.tensors import (
    find_names,
    text_encoder_specs,
    transformer_specs,
    vae_specs,
    vision_specs,
)

FILES = {part.name: part.file for part in COMPONENTS}
RELEASED_TRANSFORMER = Ideogram4TransformerConfig(
    in_channels=128,
    num_layers=34,
    num_attention_heads=18,
    attention_head_dim=256,
    intermediate_size=12288,
    adaln_dim=512,
    llm_features_dim=53248,
    rope_theta=5e6,
    mrope_section=(24, 20, 20),
    norm_eps=1e-5,
)
RELEASED_VAE = Ideogram4VAEConfig(
    in_channels=3,
    out_channels=3,
    latent_channels=32,
    patch_size=(2, 2),
    block_out_channels=(128, 256, 512, 512),
    decoder_block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    mid_block_add_attention=True,
    use_quant_conv=True,
    use_post_quant_conv=True,
)


@pytest.fixture
def checkpoint(ideogram4_golden: Golden, tmp_path: Path) -> Path:
    return copy_checkpoint(ideogram4_golden.checkpoint, tmp_path / "checkpoint")


def without_fp8(name: str, tensor: RawTensor) -> dict[str, RawTensor]:
    """Turn one tensor into its plain counterpart, with empty values."""
    if name.endswith(".weight_scale"):
        return {}
    if tensor.dtype != "F8_E4M3":
        return {name: tensor}
    return {name: RawTensor("BF16", tensor.shape, bytes(2 * len(tensor.data)))}


# --- complete checkpoints ---


def test_golden_checkpoint_is_complete(ideogram4_golden: Golden) -> None:
    assert recognises(ideogram4_golden.checkpoint)
    assert check_checkpoint(ideogram4_golden.checkpoint) == []


def test_the_layout_of_a_component_is_that_of_its_tensors(
    ideogram4_golden: Golden,
) -> None:
    stored = TRANSFORMER.at(ideogram4_golden.checkpoint).stored
    assert (has_float8(stored), find_names(stored)) == (True, "vendor")
    assert len(stored) == 19 * 3 + 23
    assert not has_float8(VAE.at(ideogram4_golden.checkpoint).stored)


@pytest.mark.parametrize("is_fp8", [True, False])
def test_diffusers_names_are_complete(checkpoint: Path, is_fp8: bool) -> None:
    for name in ("transformer", "unconditional_transformer"):
        file = checkpoint / name / FILES[name]
        edit_tensors(file, split_attention)
        if not is_fp8:
            edit_tensors(file, without_fp8)
    assert check_checkpoint(checkpoint) == []
    stored = TRANSFORMER.at(checkpoint).stored
    assert (has_float8(stored), find_names(stored)) == (is_fp8, "diffusers")


def test_plain_text_encoder_with_prefix_is_complete(checkpoint: Path) -> None:
    file = TEXT_ENCODER.at(checkpoint).file
    edit_tensors(file, without_fp8)
    edit_tensors(file, lambda name, tensor: {f"model.{name}": tensor})
    # Re-packs keep the key that says FP8; the tensors decide.
    assert check_checkpoint(checkpoint) == []
    config = checkpoint / "text_encoder" / "config.json"
    edit_json(config, ideogram_fp8_weight_only=None)
    assert check_checkpoint(checkpoint) == []


def test_fp8_weights_that_the_config_denies_are_refused(checkpoint: Path) -> None:
    config = checkpoint / "text_encoder" / "config.json"
    edit_json(config, ideogram_fp8_weight_only=False)
    assert check_checkpoint(checkpoint) == [
        "text_encoder/config.json: ideogram_fp8_weight_only is False, expected True"
    ]


def test_a_language_head_is_not_used(checkpoint: Path) -> None:
    file = TEXT_ENCODER.at(checkpoint).file
    tensors = read_raw(file)
    head = tensors["language_model.embed_tokens.weight"]
    write_raw(file, {**tensors, "lm_head.weight": head})
    assert check_checkpoint(checkpoint) == []
    part = TEXT_ENCODER.at(checkpoint)
    assert "lm_head.weight" in plan_steps(part.stored, part.rules, where="").skipped


def test_shards_are_complete(checkpoint: Path) -> None:
    file = VAE.at(checkpoint).file
    shard(file)
    assert check_checkpoint(checkpoint) == []
    file.with_name("part-1.safetensors").unlink()
    (problem,) = check_checkpoint(checkpoint)
    assert "part-1.safetensors is missing" in problem


def test_without_the_unconditional_transformer(checkpoint: Path) -> None:
    folder = checkpoint / "unconditional_transformer"
    folder.rename(checkpoint / "elsewhere")
    edit_json(checkpoint / "model_index.json", unconditional_transformer=None)
    assert check_checkpoint(checkpoint, require_unconditional=False) == []
    (problem,) = check_checkpoint(checkpoint)
    assert "unconditional_transformer/ is missing; with --no-unconditional" in problem


# --- damaged checkpoints ---


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_named(checkpoint: Path, damage: Callable[[Path], str]) -> None:
    named = damage(checkpoint)
    problems = check_checkpoint(checkpoint)
    assert any(named in problem for problem in problems), problems
    assert len(problems) <= 2, problems  # nothing else is blamed
    assert recognises(checkpoint)


def test_a_further_component_is_not_used(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit_json(checkpoint / "model_index.json", refiner=["a", "b"])
    assert check_checkpoint(checkpoint) == []
    assert caplog.messages == ["model_index.json: not used: refiner"]


def test_every_problem_is_listed(checkpoint: Path) -> None:
    names = [damage(checkpoint) for damage in (DAMAGES[0], DAMAGES[3], DAMAGES[4])]
    problems = "\n".join(check_checkpoint(checkpoint))
    assert all(name in problems for name in names), problems


@pytest.mark.parametrize(
    ("file", "changes", "problem"),
    [
        ("model_index.json", {"_class_name": "Other"}, "_class_name is Other"),
        ("model_index.json", {"vae": None}, "vae is None, expected"),
        ("model_index.json", {"tokenizer": ["transformers", "T5"]}, "tokenizer is"),
        ("scheduler/scheduler_config.json", {"_class_name": "Other"}, "'Other'"),
        ("tokenizer/tokenizer.json", {"added_tokens": []}, "no token <|im_start|>"),
        ("tokenizer/tokenizer.json", {"model": None}, "has no vocabulary"),
        ("tokenizer/tokenizer_config.json", {"chat_template": None}, "chat template"),
        ("transformer/config.json", {"num_layers": None}, "'num_layers'"),
        ("transformer/config.json", {"num_layers": 4}, "layers.3.attention.qkv"),
        ("transformer/config.json", {"num_layers": 2}, "layers.2.attention.qkv"),
        ("transformer/config.json", {"num_layers": "3"}, "transformer/config.json"),
        ("transformer/config.json", {"adaln_dim": 64}, "adaln_proj.weight has shape"),
        ("transformer/config.json", {"llm_features_dim": 400}, "llm_features_dim is"),
        ("transformer/config.json", {"in_channels": 64}, "in_channels is 64, but"),
        ("transformer/config.json", {"_class_name": "Other"}, "_class_name is 'Other'"),
        ("transformer/config.json", {"_class_name": None}, "'_class_name' is missing"),
        ("text_encoder/config.json", {"model_type": "t5"}, "model_type is 't5'"),
        ("text_encoder/config.json", {"text_config": None}, "text_config"),
        ("text_encoder/config.json", {"architectures": ["T5"]}, "architectures is"),
        ("vae/config.json", {"shift_factor": 0.1}, "unknown key 'shift_factor'"),
        ("vae/config.json", {"latent_channels": None}, "'latent_channels' is missing"),
        ("vae/config.json", {"latent_channels": 16}, "latent_channels is 16"),
        ("vae/config.json", {"patch_size": [1, 1]}, "patch_size is [1, 1]"),
        ("vae/config.json", {"block_out_channels": [8, 8]}, "2 widths, expected 4"),
        ("vae/config.json", {"layers_per_block": 2}, "encoder.down_blocks.0.resnets.1"),
        ("vae/config.json", {"block_out_channels": 16}, "block_out_channels is 16, "),
        ("vae/config.json", {"act_fn": "relu"}, "act_fn is 'relu', expected 'silu'"),
        ("vae/config.json", {"_class_name": None}, "'_class_name' is missing"),
        ("vae/config.json", {"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types"),
    ],
)
def test_wrong_configs_are_named(
    checkpoint: Path, file: str, changes: dict[str, object], problem: str
) -> None:
    edit_json(checkpoint / file, **changes)
    problems = check_checkpoint(checkpoint)
    assert any(problem in text for text in problems), problems


def test_other_folders_are_not_recognised(checkpoint: Path, tmp_path: Path) -> None:
    assert not recognises(tmp_path)
    assert check_checkpoint(tmp_path / "nowhere") == [
        f"{tmp_path / 'nowhere'} is not a folder"
    ]
    edit_json(checkpoint / "transformer" / "config.json", quantization_config={"a": 1})
    assert not recognises(checkpoint)


# --- tables ---


def test_released_transformer_has_the_reported_tensors() -> None:
    specs = list(transformer_specs(RELEASED_TRANSFORMER, names="vendor", is_fp8=True))
    assert len(specs) == 669
    shapes = {spec.name: spec.shape for spec in specs}
    assert shapes["layers.33.attention.qkv.weight"] == (3 * 4608, 4608)
    count = sum(math.prod(spec.shape) for spec in specs)
    assert count == pytest.approx(9.3e9, rel=0.01)


def test_vision_tower_of_the_golden_checkpoint(ideogram4_golden: Golden) -> None:
    part = TEXT_ENCODER.at(ideogram4_golden.checkpoint)
    vision = read_json(part.folder / "config.json")["vision_config"]
    specs = [
        *text_encoder_specs(part.config, is_fp8=True),
        *vision_specs(vision, is_fp8=True),
    ]
    assert check_tensors(specs, part.stored, where="") == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "block_out_channels": (32, 64),
            "decoder_block_out_channels": (32, 64),
            "layers_per_block": 1,
        },
        {"mid_block_add_attention": False, "use_quant_conv": False},
    ],
    ids=str,
)
def test_vae_table_is_the_class_of_diffusers(changes: dict[str, object]) -> None:
    import torch
    from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2

    config = replace(RELEASED_VAE, **changes)
    blocks = len(config.block_out_channels)
    values = asdict(config)
    del values["decoder_block_out_channels"]  # not in every version of the class
    with torch.device("meta"):
        vae = AutoencoderKLFlux2(
            **values,
            norm_num_groups=32,
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
        )
    expected = {name: tuple(t.shape) for name, t in vae.state_dict().items()}
    assert {spec.name: spec.shape for spec in vae_specs(config)} == expected


def test_a_check_imports_no_torch(ideogram4_golden: Golden) -> None:
    import subprocess

    code = (
        "import sys; from pathlib import Path; "
        "from sglang_ext_gen.models.ideogram4.checkpoint import check_checkpoint; "
        "assert not check_checkpoint(Path(sys.argv[1])); "
        "assert not {'torch', 'diffusers', 'transformers', 'sglang'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, str(ideogram4_golden.checkpoint)]
    environment = {"PYTHONPATH": str(Path(__file__).parents[3] / "python")}
    subprocess.run(command, check=True, env=environment)
