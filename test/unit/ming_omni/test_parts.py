# SPDX-License-Identifier: Apache-2.0
"""Audio tower, routers and rotation, against the official code, without a server."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors import safe_open

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.models.ming_omni.thinker.audio import (
    AudioConfig,
    AudioProjector,
    AudioTower,
    encode_clips,
)
from sglang_ext_gen.models.ming_omni.thinker.rotary import rotate_in_place
from sglang_ext_gen.models.ming_omni.thinker.routing import multi_gate

AUDIO = AudioConfig(
    n_ctx=600,
    n_head=2,
    n_layer=2,
    n_mels=128,
    n_state=64,
    ds_kernel_size=3,
    ds_stride=2,
)
TOLERANCE = {"atol": 2e-5, "rtol": 0}
_TEXT, _IMAGE, _VIDEO, _AUDIO = 0, 1, 2, 3  # SGLang's modality numbers


@pytest.fixture(scope="module")
def audio_parts(ming_golden):
    parts = {
        "audio.": AudioTower(AUDIO),
        "linear_proj_audio.": AudioProjector(AUDIO, 64),
    }
    for prefix, module in parts.items():
        state = {}
        for file in sorted(ming_golden.path.glob("model-*.safetensors")):
            with safe_open(file, "pt") as stored:
                names = [name for name in stored.keys() if name.startswith(prefix)]
                state |= {n.removeprefix(prefix): stored.get_tensor(n) for n in names}
        module.load_state_dict(state)
    return parts["audio."].eval(), parts["linear_proj_audio."].eval()


@torch.no_grad()
def test_the_audio_tower_equals_the_official_one(ming_golden, audio_parts):
    tower, projector = audio_parts
    mel = ming_golden.tensor("c_audio.audio_feats")[0]
    encoded = tower(mel)
    expected = ming_golden.tensor("c_audio.audio_encoder_out")
    torch.testing.assert_close(encoded, expected.view_as(encoded), **TOLERANCE)
    embeds = ming_golden.tensor("c_audio.audio_embeds")
    torch.testing.assert_close(projector(encoded), embeds, **TOLERANCE)


def test_tokens_of_a_clip_are_counted_as_the_projector_makes_them(ming_golden):
    for case in ("c_audio", "c_two_audio"):
        frames = ming_golden.tensor(f"{case}.audio_feats_lengths")[0].tolist()
        tokens = ming_golden.tensor(f"{case}.audio_embeds_lengths")[0].tolist()
        assert [AUDIO.tokens(count) for count in frames] == tokens
    for kernel, stride in ((3, 2), (3, 3), (5, 2), (4, 2), (1, 1)):
        other = replace(AUDIO, ds_kernel_size=kernel, ds_stride=stride)
        projector = AudioProjector(other, 64)
        for count in (7, 8, 9, 40):
            features = torch.zeros((count - 1) // 2 + 1, AUDIO.n_state)
            assert len(projector(features)) == other.tokens(count)


@torch.no_grad()
def test_clips_are_encoded_one_by_one(ming_golden, audio_parts):
    mel = ming_golden.tensor("c_two_audio.audio_feats")[0]
    lengths = ming_golden.tensor("c_two_audio.audio_feats_lengths")[0].tolist()
    tower, projector = audio_parts
    got = encode_clips(tower, projector, mel.split(lengths))
    for index, clip in enumerate(got):
        expected = ming_golden.tensor(f"c_two_audio.clip{index}.audio_embeds")
        torch.testing.assert_close(clip, expected, **TOLERANCE)
    # The official padding changes the shorter clip: the two ways can be told apart.
    padded = ming_golden.tensor("c_two_audio.audio_embeds")[-len(got[1]) :]
    assert (got[1] - padded).abs().max() > 100 * TOLERANCE["atol"]


@torch.no_grad()
def test_features_without_unit_length_would_be_seen(ming_golden, audio_parts):
    """The wrong variant "un-normalised features"."""
    tower, projector = audio_parts
    encoded = tower(ming_golden.tensor("c_audio.audio_feats")[0])
    raw = torch.nn.Sequential.forward(projector, encoded.T[None])[0]
    expected = ming_golden.tensor("c_audio.audio_embeds")
    assert (raw - expected).abs().max() > 100 * TOLERANCE["atol"]


def test_too_long_sound_is_refused(audio_parts):
    with pytest.raises(RequestError, match="at most 12 s"):
        audio_parts[0](torch.zeros(AUDIO.max_frames + 1, AUDIO.n_mels))


def test_the_longest_sound_fits(audio_parts):
    with torch.no_grad():
        assert (
            audio_parts[0](torch.zeros(AUDIO.max_frames, AUDIO.n_mels)).shape[0] == 600
        )


@pytest.mark.parametrize("negative", ["", "_negbias"])
@pytest.mark.parametrize("size", ["router_tiny", "router_released_dims"])
def test_sglangs_router_equals_the_official_one(ming_golden, size, negative):
    from sglang.srt.layers.moe.topk import biased_grouped_topk_impl

    name = size + negative
    router = ming_golden.json["router"][size]
    logits = ming_golden.tensor(f"{name}.logits")
    weights, indices = biased_grouped_topk_impl(
        hidden_states=logits,
        gating_output=logits,
        correction_bias=ming_golden.tensor(f"{name}.bias"),
        topk=router["top_k"],
        renormalize=True,
        num_expert_group=router["n_group"],
        topk_group=router["topk_group"],
        routed_scaling_factor=router["routed_scaling_factor"],
        apply_routed_scaling_factor_on_output=True,
    )
    order = indices.argsort(dim=1)
    expected = ming_golden.tensor(f"{name}.topk_idx")
    assert torch.equal(indices.gather(1, order).int(), expected)
    torch.testing.assert_close(
        weights.gather(1, order), ming_golden.tensor(f"{name}.topk_weight"), **TOLERANCE
    )


def test_each_token_gets_the_router_of_its_modality():
    from sglang.srt.layers.multi_gate import create_multi_gate_mm_indices

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(200, 24, generator=generator)
    weights = torch.randn(3, 8, 24, generator=generator)
    biases = torch.randn(3, 8, generator=generator)
    modality = torch.randint(0, 4, (200,), generator=generator)
    numbers = torch.tensor([_number(name) for name in modality.tolist()])
    gate = torch.tensor([0, 1, 1, 2])[modality]
    logits, bias = multi_gate(
        _not_called, hidden, create_multi_gate_mm_indices(numbers), *weights, *biases
    )
    expected = torch.einsum("td,ted->te", hidden, weights[gate])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(bias, biases[gate])


def test_the_rotation_equals_the_official_one(ming_golden):
    positions = ming_golden.tensor("rope.positions")
    assert positions.min() < 0
    start = 512  # SGLang shifts positions by the size of its table
    frequencies = ming_golden.tensor("rope.inv_freq")
    steps = torch.arange(-start, int(positions.max()) + 1).float()
    angles = steps[:, None] * frequencies
    q, k = (ming_golden.tensor(f"rope.{name}").flatten(1) for name in "qk")
    rotate_in_place(
        *(_not_called, q, k, torch.cat((angles.cos(), angles.sin()), 1)),
        *(positions + start, [12, 12, 8], 128, 64, True),
    )
    for name, got in (("q_out", q), ("k_out", k)):
        expected = ming_golden.tensor(f"rope.{name}").flatten(1)
        torch.testing.assert_close(got, expected, **TOLERANCE)


def test_clamped_positions_would_be_seen(ming_golden):
    positions = ming_golden.tensor("rope.positions").clamp(min=0)
    frequencies = ming_golden.tensor("rope.inv_freq")
    angles = torch.arange(int(positions.max()) + 1).float()[:, None] * frequencies
    q, k = (ming_golden.tensor(f"rope.{name}").flatten(1) for name in "qk")
    rotate_in_place(
        *(_not_called, q, k, torch.cat((angles.cos(), angles.sin()), 1)),
        *(positions, [12, 12, 8], 128, 64, True),
    )
    expected = ming_golden.tensor("rope.q_out").flatten(1)
    assert (q - expected).abs().max() > 100 * TOLERANCE["atol"]


def _number(modality: int) -> int:
    from sglang.srt.managers.schedule_batch import Modality

    media = {_IMAGE: Modality.IMAGE, _VIDEO: Modality.VIDEO, _AUDIO: Modality.AUDIO}
    return 0 if modality == _TEXT else media[modality].value


def _not_called(*_: object) -> Any:
    raise AssertionError("the Triton kernel was asked for on CPU")
