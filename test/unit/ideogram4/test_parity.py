# SPDX-License-Identifier: Apache-2.0
"""Every component of Ideogram 4 against the reference's stored values, float32.

Tolerances are golden.json's ``suggested_thresholds``.
"""

import pytest
import torch

from conftest import Golden
from images import decibels
from lazy import LazyModule
from sglang_ext_gen.models.ideogram4.packing import image_position_ids, pack_text

pytestmark = pytest.mark.slow

stages = LazyModule("sglang_ext_gen.models.ideogram4.stages")
text_encoder = LazyModule("sglang_ext_gen.models.ideogram4.text_encoder")


@pytest.fixture(scope="module")
def prompt(ideogram4_golden: Golden) -> str:
    return ideogram4_golden.json["request"]["prompt"]


@pytest.fixture(scope="module")
def limits(ideogram4_golden: Golden) -> dict[str, float]:
    return ideogram4_golden.json["suggested_thresholds"]["float32"]


def test_token_ids_are_exact(float32_pipeline, ideogram4_golden, prompt) -> None:
    tokenizer = float32_pipeline.pipeline.get_module("tokenizer")
    assert (
        text_encoder.tokenize_prompt(tokenizer, prompt)
        == ideogram4_golden.tensor("token_ids").tolist()
    )


def test_text_features(float32_pipeline, ideogram4_golden, limits) -> None:
    encoder = float32_pipeline.pipeline.get_module("text_encoder")
    with torch.no_grad():
        features = encoder(ideogram4_golden.tensor("token_ids").long())
    expected = ideogram4_golden.tensor("text_features")
    assert features.dtype == torch.float32
    assert (features - expected).abs().max() < limits["text_features_max_abs"]


def test_position_ids_are_exact(ideogram4_golden) -> None:
    features = ideogram4_golden.tensor("text_features")
    text = pack_text([features])
    image = image_position_ids(256, 256, features.device)
    position_ids = torch.cat([text.position_ids, image], dim=1)[0]
    assert torch.equal(position_ids.int(), ideogram4_golden.tensor("position_ids"))


def test_noise_is_the_reference_draw(ideogram4_golden) -> None:
    noise = stages.draw_noise(ideogram4_golden.json["request"]["seed"], 256, 256, 128)
    assert torch.equal(noise[0], ideogram4_golden.tensor("noise"))


@pytest.mark.parametrize("step", [0, 10])
@pytest.mark.parametrize("branch", ["cond", "uncond"])
def test_velocity(
    float32_pipeline, ideogram4_golden, limits, step: int, branch: str
) -> None:
    from sglang.multimodal_gen.runtime.managers.forward_context import (
        set_forward_context,
    )

    golden = ideogram4_golden
    name = "transformer" if branch == "cond" else "unconditional_transformer"
    transformer = float32_pipeline.pipeline.get_module(name)
    before = "noise" if step == 0 else f"latents_after_step{step - 1:02d}"
    latents = golden.tensor(before).float()[None]
    text = pack_text([golden.tensor("text_features")])
    position_ids = image_position_ids(256, 256, latents.device)
    with torch.no_grad(), set_forward_context(step, attn_metadata=None):
        rows = None
        if branch == "cond":
            position_ids = torch.cat([text.position_ids, position_ids], dim=1)
            rows = transformer.project_text(text)
        sequence = transformer.pack(position_ids, None)
        time = torch.tensor(golden.json["model_times"][step])
        velocity = transformer(latents, time, sequence, rows)[0]
    expected = golden.tensor(f"velocity_{branch}_step{step:02d}")
    # Latents after steps 1 to 9 are stored as float16, which moves the input.
    limit = limits["velocity_max_abs"] * (1 if step == 0 else 4)
    assert (velocity - expected).abs().max() < limit


def test_every_latent_and_the_image(
    float32_pipeline, ideogram4_golden, limits, prompt
) -> None:
    golden = ideogram4_golden
    (output,) = float32_pipeline.run([prompt], [42], return_trajectory_latents=True)
    trajectory = output.trajectory_latents[0]
    for step in range(20):
        expected = golden.tensor(f"latents_after_step{step:02d}").float()
        # float16 storage of most steps; the last step also ends at t_max, not 1.
        assert (trajectory[step] - expected).abs().max() < 0.02, f"step {step}"
    final = golden.tensor("latents_final_tmax_endpoint")
    assert (trajectory[-1] - final).abs().max() < 2e-3
    image = output.output[0]
    assert decibels(image, golden.tensor("image")) > limits["image_tensor_psnr_db"]


def test_free_steps_guidance_and_schedule(
    float32_pipeline, ideogram4_golden, prompt
) -> None:
    golden = ideogram4_golden
    (output,) = float32_pipeline.run(
        [prompt],
        [42],
        return_trajectory_latents=True,
        **golden.json["extra_cases"]["custom"],
    )
    expected = golden.tensor("custom_latents_final").float()
    assert (output.trajectory_latents[0, -1] - expected).abs().max() < 0.02


def test_left_padded_batch_equals_the_reference_and_the_singles(
    float32_pipeline, ideogram4_golden
) -> None:
    golden = ideogram4_golden
    case = golden.json["extra_cases"]["batch2"]
    fields = {
        name: case[name]
        for name in ("num_inference_steps", "guidance_schedule", "mu", "std")
    }
    fields["return_trajectory_latents"] = True
    batch = float32_pipeline.run(case["prompts"], [42, 43], **fields)
    expected = golden.tensor("batch2_latents_final").float()
    for row, (output, prompt) in enumerate(zip(batch, case["prompts"], strict=True)):
        latents = output.trajectory_latents[0, -1]
        assert (latents - expected[row]).abs().max() < 0.02
        (single,) = float32_pipeline.run([prompt], [42 + row], **fields)
        assert decibels(output.output, single.output) > 80
