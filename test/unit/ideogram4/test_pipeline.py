# SPDX-License-Identifier: Apache-2.0
"""The whole pipeline in one process: precisions, FP8 modes, guidance, refusals."""

import shutil
from pathlib import Path

import pytest
import torch

from checkpoint_damage import DAMAGES, copy_checkpoint
from images import decibels
from sglang_ext_gen.errors import CheckpointError, ConfigError, RequestError

pytestmark = pytest.mark.slow

PROMPT = "a red fox in the snow at night"
SHORT = {"num_inference_steps": 4, "guidance_schedule": [7.0, 5.0, 3.0, 1.0]}


def count_calls(module: torch.nn.Module) -> list[None]:
    calls: list[None] = []
    module.register_forward_hook(lambda *_: calls.append(None))
    return calls


def test_bfloat16_is_close_to_the_reference(load_pipeline, ideogram4_golden) -> None:
    request = ideogram4_golden.json["request"]
    (output,) = load_pipeline("bf16").run([request["prompt"]], [request["seed"]])
    limit = ideogram4_golden.json["suggested_thresholds"]["bf16"]["image_psnr_db"]
    assert decibels(output.output[0], ideogram4_golden.tensor("image")) >= limit


def test_expanded_weights_give_the_same_picture(
    load_pipeline, float32_pipeline
) -> None:
    expanded = load_pipeline("fp32", fp8_mode="expanded")
    weight = expanded.pipeline.get_module("transformer").input_proj.weight
    assert weight.dtype == torch.float32
    (output,) = expanded.run([PROMPT], [3], **SHORT)
    (reference,) = float32_pipeline.run([PROMPT], [3], **SHORT)
    assert decibels(output.output, reference.output) > 80


def test_guidance_1_never_runs_the_unconditional_transformer(float32_pipeline) -> None:
    pipeline = float32_pipeline.pipeline
    conditional = count_calls(pipeline.get_module("transformer"))
    unconditional = count_calls(pipeline.get_module("unconditional_transformer"))
    float32_pipeline.run([PROMPT], [3], preset="V4_INSTANT_8")
    assert (len(conditional), len(unconditional)) == (8, 0)
    float32_pipeline.run([PROMPT], [3], **SHORT)
    assert (len(conditional), len(unconditional)) == (8 + 4, 3)


def test_without_the_unconditional_transformer(
    load_pipeline, float32_pipeline, ideogram4_golden, tmp_path: Path
) -> None:
    checkpoint = copy_checkpoint(ideogram4_golden.checkpoint, tmp_path / "half")
    shutil.rmtree(checkpoint / "unconditional_transformer")
    half = load_pipeline("fp32", model_path=str(checkpoint), load_unconditional=False)
    assert half.pipeline.get_module("unconditional_transformer") is None
    (output,) = half.run([PROMPT], [3], num_inference_steps=3)
    assert output.output.shape == (1, 3, 256, 256)
    (reference,) = float32_pipeline.run(
        [PROMPT], [3], preset="V4_FAST_20", num_inference_steps=3
    )
    assert torch.equal(output.output, reference.output)
    with pytest.raises(RequestError, match="left unloaded"):
        half.run([PROMPT], [3], guidance_scale=4.0)


def test_requests_of_different_sizes_share_a_group(float32_pipeline) -> None:
    # Not one batch, but one call: each size is denoised on its own.
    (square,) = float32_pipeline.run([PROMPT], [3], **SHORT)
    (wide,) = float32_pipeline.run([PROMPT], [3], width=288, **SHORT)
    assert square.output.shape[-2:] == (256, 256)
    assert wide.output.shape[-2:] == (256, 288)


def test_equal_prompts_are_encoded_once(float32_pipeline) -> None:
    calls = count_calls(float32_pipeline.pipeline.get_module("text_encoder"))
    float32_pipeline.run([PROMPT, PROMPT, "ok"], [1, 2, 3], **SHORT)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cfg_normalization", 0.5),
        ("condition_inputs", {"control": 1}),
        ("diffusers_kwargs", {"output_type": "latent"}),
        ("fps", 30),
        ("image_path", "input.png"),
        ("max_sequence_length", 512),
        ("rollout_sde_step_indices", [0]),
        ("true_cfg_scale", 4.0),
    ],
)
def test_fields_that_nothing_reads_are_refused(
    float32_pipeline, field: str, value: object
) -> None:
    with pytest.raises(RequestError, match=f"{field}: not supported by Ideogram 4"):
        float32_pipeline.run([PROMPT], [3], **SHORT, **{field: value})


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("fp8_mode", "int4", "fp8_mode"),
        ("fp8_mode", "w8a8", "the compute dtype is float32"),
    ],
)
def test_impossible_loading_options_are_refused(
    load_pipeline, option: str, value: str, message: str
) -> None:
    with pytest.raises((ConfigError, RequestError, RuntimeError), match=message):
        load_pipeline("fp32", **{option: value})


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_name(
    damage, load_pipeline, ideogram4_golden, tmp_path: Path
) -> None:
    broken = copy_checkpoint(ideogram4_golden.checkpoint, tmp_path / "broken")
    expected = damage(broken)
    with pytest.raises(CheckpointError, match="doctor --model") as refused:
        load_pipeline("fp32", model_path=str(broken))
    assert expected in str(refused.value)
