# SPDX-License-Identifier: Apache-2.0
"""The same weights in another layout give the same picture."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoint_damage import copy_checkpoint
from checkpoint_repacks import edit_json, edit_tensors, shard, split_attention
from images import decibels
from sglang_ext_gen.models.ideogram4.checkpoint import COMPONENTS, TEXT_ENCODER
from sglang_ext_gen.registry import family_of

pytestmark = pytest.mark.slow

FILES = {part.name: part.file for part in COMPONENTS}
TRANSFORMERS = ("transformer", "unconditional_transformer")
REQUEST = {"num_inference_steps": 4, "guidance_schedule": [7.0, 5.0, 3.0, 1.0]}


def use_diffusers_names(checkpoint: Path) -> None:
    for name in TRANSFORMERS:
        edit_tensors(checkpoint / name / FILES[name], split_attention)


def use_older_styles(checkpoint: Path) -> None:
    """Names and configs as transformers 4 and other re-packs write them."""
    file = TEXT_ENCODER.at(checkpoint).file
    edit_tensors(file, lambda name, tensor: {f"model.{name}": tensor})
    config = checkpoint / "text_encoder" / "config.json"
    text = json.loads(config.read_text("utf-8"))["text_config"]
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    edit_json(config, text_config=text)
    edit_json(
        checkpoint / "model_index.json",
        _diffusers_version=None,
        _name_or_path="somewhere/else",
        prompt_enhancer_head=["diffusers", "Ideogram4PromptEnhancerHead"],
    )


def use_shards(checkpoint: Path) -> None:
    for part in COMPONENTS:
        shard(part.at(checkpoint).file)


def use_plain_weights(checkpoint: Path) -> None:
    """Dequantise everything to float32, which loses nothing."""
    for name in (*TRANSFORMERS, "text_encoder"):
        file = checkpoint / name / FILES[name]
        tensors = load_file(file)
        for weight in [
            key.removesuffix("_scale") for key in tensors if "_scale" in key
        ]:
            scale = tensors.pop(f"{weight}_scale")
            tensors[weight] = tensors[weight].float() * scale[:, None]
        save_file(tensors, file)
    config = checkpoint / "text_encoder" / "config.json"
    edit_json(config, ideogram_fp8_weight_only=None)


@pytest.mark.parametrize(
    ("edits", "is_exact"),
    [
        ((use_diffusers_names, use_older_styles, use_shards), True),
        ((use_plain_weights, use_diffusers_names), False),
    ],
    ids=["other-names", "plain-weights"],
)
def test_a_repack_gives_the_same_picture(
    edits, is_exact, load_pipeline, float32_pipeline, ideogram4_golden, tmp_path: Path
) -> None:
    checkpoint = copy_checkpoint(ideogram4_golden.checkpoint, tmp_path / "any-name")
    for edit in edits:
        edit(checkpoint)
    family = family_of(checkpoint)
    assert family is not None
    assert family.name == "ideogram4"
    repack = load_pipeline("fp32", model_path=str(checkpoint))
    (output,) = repack.run(["a red fox"], [3], **REQUEST)
    (reference,) = float32_pipeline.run(["a red fox"], [3], **REQUEST)
    if is_exact:
        assert torch.equal(output.output, reference.output)
    else:  # sums of scaled weights instead of scaled sums
        assert decibels(output.output, reference.output) > 80
