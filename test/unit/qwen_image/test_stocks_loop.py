# SPDX-License-Identifier: Apache-2.0
"""What stock's denoising stage offers a request, on our pipeline: works, or refused."""

from typing import Any

import pytest
import torch

from qwen_image_runtime import LoadedPipeline, decibels, write_picture
from sglang_ext_gen.errors import RequestError

pytestmark = pytest.mark.slow

REQUEST: dict[str, Any] = {
    **{"prompt": "a cat on a hill", "negative_prompt": "dull"},
    **{"width": 160, "height": 128, "num_inference_steps": 12, "seed": 7},
}
CACHE: dict[str, Any] = {
    "enable_cache_dit": True,
    "cache_dit_params": {"max_warmup_steps": 2, "residual_diff_threshold": 0.9},
}
GROW: dict[str, Any] = {"progressive_mode": "dct"}


class Calls:
    """Rows and image tokens of each call of the transformer."""

    def __init__(self, loaded: LoadedPipeline) -> None:
        self.shapes: list[tuple[int, int]] = []
        block = loaded.pipeline.get_module("transformer").proj_out
        self._handle = block.register_forward_hook(self._count)

    def _count(self, module, args, output) -> None:
        self.shapes.append(tuple(args[0].shape[:2]))

    def __enter__(self) -> "Calls":
        return self

    def __exit__(self, *error) -> None:
        self._handle.remove()


def cached_steps(loaded: LoadedPipeline) -> tuple[list[int], list[int]]:
    """Steps of the last request that cache-dit spared: prompt, negative prompt."""
    from sglang.multimodal_gen.runtime.cache.cache_dit_integration import cache_dit

    transformer = loaded.pipeline.get_module("transformer")
    [stats, *_] = cache_dit.summary(transformer, logging=False)
    return stats.cached_steps, stats.cfg_cached_steps


@pytest.fixture(scope="module")
def plain(t2i: LoadedPipeline) -> torch.Tensor:
    return t2i.pictures(**REQUEST)


def test_cache_dit_spares_steps(t2i: LoadedPipeline, plain) -> None:
    picture = t2i.pictures(**REQUEST, **CACHE)
    steps, negative_steps = cached_steps(t2i)
    assert len(steps) >= 3
    assert len(negative_steps) >= 3
    # Measured 33 dB on random weights.
    assert 30 < decibels(picture, plain) < 60
    assert torch.equal(t2i.pictures(**REQUEST, **CACHE), picture)


def test_cache_dit_goes_on_and_off_and_changes_with_each_request(
    t2i: LoadedPipeline, plain
) -> None:
    """Nothing of a request is left for the next one, guided or not."""
    unguided = {**REQUEST, "negative_prompt": None}
    alone = t2i.pictures(**unguided)
    first = t2i.pictures(**REQUEST, **CACHE)
    assert torch.equal(t2i.pictures(**REQUEST), plain)
    assert cached_steps(t2i) == ([], [])
    never = {**CACHE, "cache_dit_params": {"residual_diff_threshold": 0.0}}
    assert torch.equal(t2i.pictures(**REQUEST, **never), plain)
    cached = t2i.pictures(**unguided, **CACHE)
    steps, negative_steps = cached_steps(t2i)
    assert len(steps) >= 3
    assert negative_steps == []
    assert decibels(cached, alone) > 25
    assert torch.equal(t2i.pictures(**REQUEST, **CACHE), first)
    assert torch.equal(t2i.pictures(**REQUEST), plain)


def test_cached_requests_of_a_group_decide_alone(t2i: LoadedPipeline) -> None:
    fields = {**REQUEST, **CACHE}
    together = t2i.pictures(num_outputs_per_prompt=2, **fields)
    alone = [t2i.pictures(**{**fields, "seed": seed}) for seed in (7, 8)]
    assert torch.equal(together, torch.cat(alone))


def test_guidance_is_used_again(t2i: LoadedPipeline, plain) -> None:
    with Calls(t2i) as calls:
        picture = t2i.pictures(cfg_gate_step=0.5, **REQUEST)
    assert len(calls.shapes) == 12 + 6
    assert 20 < decibels(picture, plain) < 60
    assert torch.equal(t2i.pictures(cfg_gate_step=1.0, **REQUEST), plain)


@pytest.mark.parametrize("quality", ["exact", "lossless", "high", "extra-high"])
def test_quality_levels(t2i: LoadedPipeline, plain, quality: str) -> None:
    picture = t2i.pictures(quality=quality, **REQUEST)
    # The fused kernels are for CUDA: on a CPU all levels compute the same.
    assert decibels(picture, plain) > 90


def test_quality_and_kernels_separate_requests(t2i: LoadedPipeline) -> None:
    small = {**REQUEST, "num_inference_steps": 2, "negative_prompt": None}
    changes = (
        {"quality": "exact"},
        {"attention_backend_override": "torch_sdpa"},
        {"cfg_gate_step": 0.5},
        {"cache_dit_params": {"max_warmup_steps": 1}},
        {"guidance_rescale": 0.5},
        {"cfg_normalization": 1.0},
    )
    for change in changes:
        requests = t2i.requests(**small) + t2i.requests(**small, **change)
        with Calls(t2i) as calls, torch.inference_mode():
            t2i.pipeline.forward_batch(requests, t2i.server_args)
        assert [rows for rows, _ in calls.shapes] == [1] * 4, change


def test_attention_of_the_request(t2i: LoadedPipeline, plain) -> None:
    picture = t2i.pictures(attention_backend_override="torch_sdpa", **REQUEST)
    assert torch.equal(picture, plain)
    with pytest.raises(RequestError, match="attention_backend_override"):
        t2i.requests(attention_backend_override="sparse", **REQUEST)
    # Not on a CPU: stock refuses instead of taking another kernel.
    with pytest.raises(ValueError, match="'fa'"):
        t2i.pictures(attention_backend_override="fa", **REQUEST)
    with pytest.raises(ValueError, match="skip_softmax_params requires"):
        t2i.pictures(skip_softmax_params={"threshold_scale_factor": 1.0}, **REQUEST)
    assert torch.equal(t2i.pictures(**REQUEST), plain)


@pytest.mark.parametrize("mode", ["dct", "dct_rewind"])
def test_a_picture_grows(t2i: LoadedPipeline, plain, mode: str) -> None:
    # Late enough for both sizes to have steps.
    fields = {**REQUEST, "progressive_mode": mode, "progressive_delta": 0.3}
    with Calls(t2i) as calls:
        picture = t2i.pictures(**fields)
    tokens = [count for _, count in calls.shapes]
    assert sorted(set(tokens)) == [20, 80]
    assert tokens == sorted(tokens)
    assert picture.shape == plain.shape
    assert torch.equal(t2i.pictures(**fields), picture)
    assert torch.equal(t2i.pictures(**REQUEST), plain)


def test_texts_of_two_lengths_while_a_picture_grows(t2i: LoadedPipeline) -> None:
    """At scale 1 the negative prompt has no say, whatever its length."""
    long = "dull, dark and blurred, with a frame and a signature in the corner"
    fields = {**REQUEST, "progressive_delta": 0.3, **GROW}
    without = t2i.pictures(**{**fields, "negative_prompt": None})
    # Guidance of 1.0001 runs both branches and hardly moves the picture.
    fields = {**fields, "negative_prompt": long, "true_cfg_scale": 1.0001}
    assert decibels(t2i.pictures(**fields), without) > 50


def test_two_sizes_and_a_cache_or_a_gate(t2i: LoadedPipeline) -> None:
    fields = {**REQUEST, "progressive_delta": 0.3, **GROW}
    grown = t2i.pictures(**fields)
    cached = t2i.pictures(**fields, **CACHE)
    assert cached_steps(t2i)[0]
    gated = t2i.pictures(cfg_gate_step=0.1, **fields)
    for picture in (cached, gated):
        assert 15 < decibels(picture, grown) < 60
    assert torch.equal(t2i.pictures(**fields), grown)


def test_outputs_that_grow_have_successive_seeds(t2i: LoadedPipeline) -> None:
    fields = {**REQUEST, **GROW}
    (request,) = t2i.requests(**fields)
    request.num_outputs_per_prompt = 2  # as HTTP sends n
    with torch.inference_mode():
        [result] = t2i.pipeline.forward_batch([request], t2i.server_args)
    alone = [t2i.pictures(**{**fields, "seed": seed}) for seed in (7, 8)]
    both = result.output.float().reshape(2, *alone[0].shape[1:])
    assert (both - torch.cat(alone)).abs().max() < 2e-4


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({**GROW, "width": 144}, "width"),
        ({**GROW, "progressive_levels": 3, "width": 128, "height": 192}, "height"),
        ({**GROW, "rollout": True}, "rollout"),
        ({**GROW, "return_trajectory_latents": True}, "return_trajectory_latents"),
        ({**GROW, "latents": torch.zeros(1, 80, 64)}, "latents"),
        ({"progressive_mode": "cubic"}, "progressive_mode"),
        ({"progressive_levels": 0}, "progressive_levels"),
        ({"progressive_delta": 1.0}, "progressive_delta"),
        ({"cache_dit_params": {"steps": 3}}, "cache_dit_params"),
        ({"cache_dit_params": [1]}, "cache_dit_params"),
        ({**CACHE, "cfg_gate_step": 0.5}, "cfg_gate_step"),
        ({"cfg_gate_step": 1.5}, "cfg_gate_step"),
        ({"quality": "best"}, "quality"),
        ({"flow_shift": 0}, "flow_shift"),
    ],
)
def test_what_cannot_be(t2i: LoadedPipeline, fields, named: str) -> None:
    with pytest.raises(RequestError) as caught:
        t2i.requests(**{**REQUEST, **fields})
    assert caught.value.field == named


def test_an_edit_does_not_grow(edit: LoadedPipeline, tmp_path) -> None:
    picture = str(write_picture(tmp_path / "a.png", 96, 64, seed=1))
    with pytest.raises(RequestError, match="progressive_mode"):
        edit.requests(image_path=[picture], **REQUEST, **GROW)


def test_an_edit_is_cached(edit: LoadedPipeline, tmp_path) -> None:
    picture = str(write_picture(tmp_path / "a.png", 96, 64, seed=1))
    fields = {**REQUEST, "image_path": [picture], "reference_pixels": 128 * 128}
    plain = edit.pictures(**fields)
    cached = edit.pictures(**fields, **CACHE)
    steps, negative_steps = cached_steps(edit)
    assert len(steps) >= 2
    assert len(negative_steps) >= 2
    assert decibels(cached, plain) > 25
    assert torch.equal(edit.pictures(**fields), plain)


def test_rollout_records_each_request(t2i: LoadedPipeline) -> None:
    fields = {
        **{**REQUEST, "num_inference_steps": 4, "negative_prompt": None},
        **{"rollout": True, "rollout_return_dit_trajectory": True},
        "rollout_return_denoising_env": True,
    }
    results = t2i.run(num_outputs_per_prompt=2, **fields)
    found = [result.rollout_trajectory_data for result in results]
    for data in found:
        assert data.rollout_log_probs.shape == (1, 4)
        assert data.dit_trajectory.latents.shape == (1, 5, 80, 64)
        assert data.denoising_env.pos_cond_kwargs["img_shapes"] == [[(1, 8, 10)]]
    noise = [data.dit_trajectory.latents[:, 0] for data in found]
    assert not torch.equal(*noise)


def test_the_transformer_is_one_graph(t2i: LoadedPipeline) -> None:
    """As ``--enable-torch-compile`` compiles it; a step's time is no shape."""
    from torch._dynamo.testing import CompileCounter

    transformer = t2i.pipeline.get_module("transformer")
    calls: list[tuple[dict[str, Any], torch.Tensor]] = []
    handle = transformer.register_forward_hook(
        lambda module, args, inputs, output: calls.append((inputs, output)),
        with_kwargs=True,
    )
    t2i.pictures(**{**REQUEST, "num_inference_steps": 3})
    handle.remove()
    # fullgraph raises where dynamo would break the graph.
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(type(transformer).forward, backend=counter, fullgraph=True)
    from sglang.multimodal_gen.runtime.managers.forward_context import (
        set_forward_context,
    )

    frames = []
    with torch.no_grad(), set_forward_context(0, attn_metadata=None):
        for inputs, output in calls:
            computed = compiled(transformer, **inputs)
            assert (computed - output).abs().max() < 1e-5
            frames.append(counter.frame_count)
    torch._dynamo.reset()
    # The prompt, then a negative prompt of another length; no step adds one.
    assert frames[0] == 1
    assert frames[1:] == [frames[1]] * 5
    assert frames[1] <= 2
