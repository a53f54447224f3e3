# SPDX-License-Identifier: Apache-2.0
"""Velocities, latents per step and greedy answers against the official code."""

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from lance_loop import CPU, denoise, generation, velocities
from lazy import LazyModule
from sglang_ext_gen.models.lance.packing import pack_generation

mot = LazyModule("sglang_ext_gen.models.lance.mot")
CASES = ("t2i", "t2i_channel_renorm", "image_edit", "t2v", "i2v", "video_edit")
# float32 on the CPU; an independent implementation reached 2e-6 on velocities.
ATOL = 1e-5


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=ATOL)


@pytest.mark.parametrize("name", CASES)
def test_velocities_of_both_branches(name, lance):
    case = lance.case(name)
    transformer, conditioning = lance.transformer(case), lance.conditioning(case)
    latents = generation.initial_latents(conditioning, case.json["sampling"]["seed"])
    loop = generation.start(
        transformer, [conditioning], case.times(), case.guidance(), CPU
    )
    compared = 0
    for step in range(len(loop.guided)):
        got = velocities(transformer, latents, loop, step)
        for row, tensor in zip(got, ("v_cond", "v_uncond"), strict=False):
            name_of = f"step{step}.{tensor}"
            if case.has_tensor(name_of):
                close(row, case.tensor(name_of))
                compared += 1
        if not case.has_tensor(f"step{step}.latents"):
            break  # without it the next step has no exact input
        latents = case.tensor(f"step{step}.latents")[None]
    assert compared >= 2


@pytest.mark.parametrize("name", CASES)
def test_latents_after_each_step(name, lance):
    case = lance.case(name)
    conditioning = lance.conditioning(case)
    noise = generation.initial_latents(conditioning, case.json["sampling"]["seed"])
    steps = denoise(
        lance.transformer(case), [conditioning], noise, case.times(), case.guidance()
    )
    for step in case.json["latents_stored"]:
        close(steps[step][0], case.tensor(f"step{step}.latents"))
    assert len(steps) == case.json["sampling"]["num_inference_steps"]


@pytest.mark.parametrize("name", ["t2i", "image_edit", "t2v"])
def test_renumbered_branch_equals_the_official_full_sequence(name, lance):
    case = lance.case(name)
    released = lance.conditioning(case)
    conditioning = generation.LanceConditioning(
        packed=lance.pack(case, "renumbered"),
        vision_features=released.vision_features,
        source_latents=released.source_latents,
    )
    noise = generation.initial_latents(conditioning, case.json["sampling"]["seed"])
    *_, latents = denoise(
        lance.transformer(case),
        [conditioning],
        noise,
        case.times(),
        case.guidance(),
    )
    close(latents[0], case.tensor("fullseq.final_latents"))


def test_batch_of_prompts_of_different_length_equals_the_singles(lance):
    case = lance.case("t2i")
    conditionings = []
    for name in ("t2i", "t2i_channel_renorm"):
        tokens = lance.prompt_tokens(lance.case(name))
        packed = pack_generation(tokens, target=(1, 4, 6))
        conditionings.append(generation.LanceConditioning(packed))
    assert len({len(c.packed.conditional[0].token_ids) for c in conditionings}) == 2
    noise = torch.cat([generation.initial_latents(conditionings[0], s) for s in (5, 6)])

    def run(rows: slice) -> Tensor:
        *_, latents = denoise(
            lance.transformer(case),
            conditionings[rows],
            noise[rows],
            case.times(),
            case.guidance(),
        )
        return latents

    together = run(slice(None))
    close(together[:1], run(slice(0, 1)))
    close(together[1:], run(slice(1, 2)))


@pytest.mark.parametrize("name", CASES)
def test_initial_noise_is_the_tail_of_the_official_draw(name, lance):
    case = lance.case(name)
    drawn = case.json["initial_noise"]
    first, last = drawn["rows_used"]
    if name == "i2v":  # its stored rows start at the pinned frame
        first = 0
    noise = generation.draw_noise(drawn["seed"], last - first, first)[0]
    stored = case.tensor("initial_noise")
    torch.testing.assert_close(noise[: len(stored)], stored, rtol=0, atol=0)


def test_shared_prefix_is_computed_once_for_both_branches(lance, monkeypatch):
    case = lance.case("image_edit")
    transformer, seen = lance.transformer(case), []
    extend = transformer.extend

    def counting(hidden_states, *args, **kwargs):
        seen.append(hidden_states.shape[1])
        return extend(hidden_states, *args, **kwargs)

    monkeypatch.setattr(transformer, "extend", counting)
    generation.prefill(transformer, lance.conditioning(case))
    assert seen == [101, 56, 268, 27, 5, 5]


def test_position_table(lance):
    rows = lance.golden.tensor("component.latent_pos_rows")
    want = lance.golden.tensor("component.latent_pos_embed")
    close(mot.latent_position_embedding(rows, want.shape[1]), want)


def test_time_embedding(lance):
    transformer = lance.transformer(lance.case("t2v"))
    times = lance.golden.tensor("component.time_embed_in")
    with torch.no_grad():
        got = transformer.time_embedder(times)
    close(got, lance.golden.tensor("component.time_embed_out"))


@pytest.mark.parametrize("name", ["x2t_image", "x2t_video"])
def test_greedy_answer(name, lance):
    """The plain weights alone write the official answer, token by token."""
    case = lance.case(name)
    transformer = lance.transformer(case)
    features, grid = lance.vision_features(case)
    close(features, case.tensor("vit_embeds"))
    with safe_open(
        lance.files.transformer(case.task.variant).file, framework="pt"
    ) as file:
        head = file.get_tensor("language_model.lm_head.weight")
    norm = transformer.get_submodule("norm")
    segments = lance.pack_question(case, grid)
    prefix, hidden, answer = mot.Prefix(), torch.empty(0), []
    with torch.no_grad():
        for segment in segments:
            embedded = transformer.embed_tokens(segment.token_ids)[None]
            if segment.grid is not None:
                markers = segment.token_ids[[0, -1]]
                embedded = transformer.wrap_block(features[None], markers)
            rope = mot.rope_cos_sin(segment.position_ids[None], transformer.config)
            hidden, prefix = transformer.extend(
                embedded, rope, prefix, is_causal=segment.is_causal
            )
        position = int(segments[-1].position_ids[0, -1])
        for index in range(case.json["max_new_tokens"]):
            logits = F.linear(norm(hidden[:, -1]), head)[0]
            torch.testing.assert_close(
                logits, case.tensor("logits")[index], rtol=0, atol=1e-4
            )
            answer.append(int(logits[: case.json["vocab_limit"]].argmax()))
            embedded = transformer.embed_tokens(torch.tensor(answer[-1:]))[None]
            ids = torch.full((1, 3, 1), position + 1 + index)
            rope = mot.rope_cos_sin(ids, transformer.config)
            hidden, prefix = transformer.extend(embedded, rope, prefix, is_causal=True)
    assert answer == case.tensor("output_ids").tolist()
