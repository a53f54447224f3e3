# SPDX-License-Identifier: Apache-2.0
"""What stock's denoising loop does for Ideogram 4: compile, caches, offload, graphs."""

from typing import Any

import pytest
import torch
from torch import Tensor

from denoising_loop import (
    Call,
    call,
    check_graph_inputs,
    counted_graphs,
    first_calls,
    steps_reused,
    without_a_break,
)
from images import decibels
from lazy import LazyModule
from sglang_ext_gen.errors import RequestError

pytestmark = pytest.mark.slow

prompt_padding = LazyModule(
    "sglang.multimodal_gen.runtime.breakable_cuda_graph.prompt_padding"
)

PROMPT = "a red fox in the snow at night"
SHORT: dict[str, Any] = {
    "num_inference_steps": 4,
    "guidance_schedule": [7.0, 5.0, 3.0, 1.0],
}
LONG: dict[str, Any] = {"preset": "V4_DEFAULT_20"}
SHAPES: tuple[dict[str, Any], ...] = (
    *({}, {}, {"width": 320}, {"height": 320}),
    *({"prompt": "ok"}, {"prompt": "a red fox", "width": 288}),
)
# Inductor sums in another order: measured 130 dB.
COMPILED_DB = 110
# What a few reused steps of 20 cost this untrained model: measured 54.7 (TeaCache) and
# 57.2 dB (cache-dit), each with one step reused in a transformer.
REUSED_DB = 50
CACHES: dict[str, dict[str, Any]] = {
    "TeaCache": {"enable_teacache": True, "teacache_params": {"teacache_thresh": 0.4}},
    "cache-dit": {
        "enable_cache_dit": True,
        "cache_dit_params": {"max_warmup_steps": 4, "residual_diff_threshold": 0.5},
    },
}


def drawn(loaded: Any, prompt: str = PROMPT, **fields: Any) -> Tensor:
    [output] = loaded.run([prompt], [3], **fields)
    return output.output


def calls_of(loaded: Any, *prompts: str) -> list[Call]:
    """A first call of each transformer."""
    names = ("transformer", "unconditional_transformer")
    modules = [loaded.pipeline.get_module(name) for name in names]
    return first_calls(
        modules, lambda: loaded.run(list(prompts), [3] * len(prompts), **SHORT)
    )


@pytest.mark.parametrize("prompts", [(PROMPT,), (PROMPT, "ok")], ids=["one", "masked"])
def test_a_transformer_is_one_graph(prompts, float32_pipeline) -> None:
    calls = calls_of(float32_pipeline, *prompts)
    assert len(calls) == 2
    without_a_break(calls)


def test_compiled_it_draws_the_same_and_recompiles_for_another_size_only(
    load_pipeline, float32_pipeline, monkeypatch
) -> None:
    monkeypatch.setenv("SGLANG_TORCH_COMPILE_MODE", "default")
    compiled = load_pipeline("fp32", enable_torch_compile=True, warmup_mode="off")
    graphs = []
    with counted_graphs() as counters:
        for fields in SHAPES:
            picture = drawn(compiled, **SHORT, **fields)
            plain = drawn(float32_pipeline, **SHORT, **fields)
            assert decibels(picture, plain) > COMPILED_DB
            graphs.append(counters["stats"]["unique_graphs"])
        assert not counters["graph_break"]
    # One of each transformer, one more of each for any size, and one of that which
    # sees the text for any length of it.
    assert graphs == [2, 2, 4, 4, 5, 5]


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_over_the_steps_spares_some_of_them(
    name, float32_pipeline, caplog
) -> None:
    whole = drawn(float32_pipeline, **LONG)
    with caplog.at_level("INFO"):
        cached = drawn(float32_pipeline, **LONG, **CACHES[name])
    reused = steps_reused(caplog.text, name)
    assert len(reused) == 2
    assert all(0 < count < 20 for count in reused)
    assert REUSED_DB < decibels(cached, whole) < 100
    assert torch.equal(drawn(float32_pipeline, **LONG), whole)
    assert torch.equal(drawn(float32_pipeline, **LONG, **CACHES[name]), cached)


def test_cache_dit_by_variable(float32_pipeline, monkeypatch) -> None:
    fields = CACHES["cache-dit"]
    cached = drawn(float32_pipeline, **LONG, **fields)
    whole = drawn(float32_pipeline, **LONG)
    monkeypatch.setenv("SGLANG_CACHE_DIT_ENABLED", "true")
    monkeypatch.setenv("SGLANG_CACHE_DIT_WARMUP", "4")
    monkeypatch.setenv("SGLANG_CACHE_DIT_RDT", "0.5")
    assert torch.equal(drawn(float32_pipeline, **LONG), cached)
    without = drawn(float32_pipeline, **LONG, enable_cache_dit=False)
    assert torch.equal(without, whole)


def test_a_cached_request_is_alone_in_its_loop(float32_pipeline) -> None:
    alone = drawn(float32_pipeline, **LONG, **CACHES["TeaCache"])
    group = float32_pipeline.run([PROMPT, "ok"], [3, 3], **LONG, **CACHES["TeaCache"])
    assert torch.equal(group[0].output, alone)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacache_params": {"threshold": 1}}, "teacache_params: {'threshold': 1}"),
        ({"cache_dit_params": {"x": 1}}, "cache_dit_params: Unknown"),
        ({"attention_backend_override": "best"}, "attention_backend_override: 'best'"),
        ({"attention_backend_override": "fa"}, "attention_backend_override: .*refus"),
        ({"skip_softmax_params": {"threshold_scale_factor": 1}}, "skip_softmax_params"),
        (
            {"enable_teacache": True, "enable_cache_dit": True},
            "enable_teacache: not together",
        ),
        ({"cfg_gate_step": 0.5}, "cfg_gate_step: not supported by Ideogram 4"),
    ],
)
def test_what_the_loop_cannot_do_is_refused_by_field(
    fields, message, float32_pipeline
) -> None:
    before = drawn(float32_pipeline, **SHORT)
    with pytest.raises(RequestError, match=message):
        drawn(float32_pipeline, **SHORT, **fields)
    assert torch.equal(drawn(float32_pipeline, **SHORT), before)


def test_the_attention_that_there_is_can_be_asked_for(float32_pipeline) -> None:
    asked = drawn(float32_pipeline, **SHORT, attention_backend_override="torch_sdpa")
    assert torch.equal(asked, drawn(float32_pipeline, **SHORT))


@pytest.mark.parametrize(
    "option",
    [
        {"dit_cpu_offload": True},
        {"text_encoder_cpu_offload": True, "vae_cpu_offload": True},
    ],
    ids=str,
)
def test_offloaded_it_draws_the_same(option, load_pipeline, float32_pipeline) -> None:
    offloaded = load_pipeline("fp32", **option)
    assert torch.equal(drawn(offloaded, **SHORT), drawn(float32_pipeline, **SHORT))


# CUDA graphs need a CUDA device; this is what they are given.


@pytest.mark.parametrize("prompts", [(PROMPT,), (PROMPT, "ok")], ids=["one", "masked"])
def test_padded_for_a_cuda_graph_the_velocity_is_the_same(
    prompts, float32_pipeline
) -> None:
    [(transformer, inputs), _] = calls_of(float32_pipeline, *prompts)
    padder = prompt_padding.select_prompt_padder(transformer, inputs)
    padded = padder(inputs, transformer, (64, 128))
    assert padded["text_rows"].shape[1] == 64 > inputs["text_rows"].shape[1]
    got, want = call(transformer, padded), call(transformer, inputs)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    # Longer than all buckets: a graph of its own.
    assert padder(inputs, transformer, (8,)) is inputs


def test_a_graph_is_found_by_bucket_not_by_prompt(float32_pipeline) -> None:
    keys = set()
    for prompt in (PROMPT, "ok"):
        for transformer, inputs in calls_of(float32_pipeline, prompt):
            padder = prompt_padding.select_prompt_padder(transformer, inputs)
            padded = padder(inputs, transformer, (64,))
            keys.add((transformer, check_graph_inputs(transformer, padded)))
    assert len(keys) == 2
