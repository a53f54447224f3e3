# SPDX-License-Identifier: Apache-2.0
"""What stock's denoising loop does for the generator: compile, caches, graphs.

The thinker is replaced by its stored answers.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import Golden
from denoising_loop import (
    check_graph_inputs,
    counted_graphs,
    first_calls,
    steps_reused,
    without_a_break,
)
from images import decibels
from lazy import LazyModule
from ming_drawing import golden_request
from ming_studio import StoredThinker, Studio, golden_answers, psnr
from sglang_ext_gen.errors import RequestError

pytestmark = pytest.mark.slow

prompt_padding = LazyModule(
    "sglang.multimodal_gen.runtime.breakable_cuda_graph.prompt_padding"
)

# Inductor sums in another order.
COMPILED_DB = 110
# What reused steps cost this untrained model: measured 43.6 dB with one of 20 steps
# (TeaCache) and 37.2 dB with four (cache-dit).
REUSED_DB = 35
CACHES: dict[str, dict[str, Any]] = {
    "TeaCache": {"enable_teacache": True, "teacache_params": {"teacache_thresh": 0.7}},
    "cache-dit": {
        "enable_cache_dit": True,
        "cache_dit_params": {"max_warmup_steps": 4, "residual_diff_threshold": 0.35},
    },
}


@pytest.fixture(scope="module")
def open_studio(omni_golden: Golden, diffusion_runtime: Any) -> Callable[..., Studio]:
    """A studio of a server with other options: ``open_studio(name=value)``."""
    from sglang.multimodal_gen.runtime.server_args import (
        ServerArgs,
        set_global_server_args,
    )

    def open_with(**options: Any) -> Studio:
        server_args = ServerArgs.from_kwargs(
            model_path=diffusion_runtime.model_path,
            backend="sglang",
            dit_precision="fp32",
            vae_precision="fp32",
            text_encoder_precisions=("fp32",),
            thinker_url="http://127.0.0.1:9",
            **options,
        )
        set_global_server_args(server_args)
        try:
            thinker = StoredThinker(golden_answers(omni_golden))
            return Studio(omni_golden, thinker, server_args)
        finally:
            set_global_server_args(diffusion_runtime)

    return open_with


@pytest.fixture(scope="module")
def studio(open_studio: Callable[..., Studio]) -> Studio:
    return open_studio()


@pytest.fixture(scope="module")
def fields(omni_golden: Golden) -> dict[str, Any]:
    return golden_request(omni_golden, "t2i")


def drawn(studio: Studio, fields: dict[str, Any], **others: Any) -> Tensor:
    [levels] = studio.draw([studio.request(**{**fields, **others})])
    return levels[0]


@pytest.mark.parametrize("case", ["t2i", "edit", "t2i_cfg1"])
def test_the_transformer_is_one_graph(case, studio, omni_golden) -> None:
    request = studio.request(**golden_request(omni_golden, case))
    modules = [studio.denoise.transformer]
    calls = first_calls(modules, lambda: studio.latents([request]))
    assert len(calls) == 1
    without_a_break(calls)


def test_compiled_it_draws_the_same_and_recompiles_for_another_size_only(
    open_studio, studio, fields, monkeypatch
) -> None:
    monkeypatch.setenv("SGLANG_TORCH_COMPILE_MODE", "default")
    compiled = open_studio(enable_torch_compile=True, warmup_mode="off")
    graphs = []
    with counted_graphs() as counters:
        for other in ({}, {"seed": 5}, {"width": 96, "height": 128}, {"width": 80}):
            [got], [want] = (
                s.latents([s.request(**{**fields, **other})])
                for s in (compiled, studio)
            )
            scale = want.abs().max()
            assert decibels(got / scale, want / scale) > COMPILED_DB
            graphs.append(counters["stats"]["unique_graphs"])
        assert not counters["graph_break"]
    # One, and one more for any size.
    assert graphs == [1, 1, 2, 2]


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_over_the_steps_spares_some_of_them(
    name, studio, fields, caplog
) -> None:
    long = {**fields, "num_inference_steps": 20}
    whole = drawn(studio, long)
    with caplog.at_level("INFO"):
        cached = drawn(studio, long, **CACHES[name])
    [reused] = steps_reused(caplog.text, name)
    assert 0 < reused < 20
    assert REUSED_DB < psnr(cached, whole) < 100
    assert torch.equal(drawn(studio, long), whole)
    assert torch.equal(drawn(studio, long, **CACHES[name]), cached)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"attention_backend_override": "fa"}, "attention_backend_override: .*refus"),
        ({"cache_dit_params": {"x": 1}}, "cache_dit_params: Unknown"),
        ({"cfg_gate_step": 0.5}, "cfg_gate_step: not supported by Ming"),
    ],
)
def test_what_the_loop_cannot_do_is_refused_by_field(
    other, message, studio, fields
) -> None:
    with pytest.raises(RequestError, match=message):
        drawn(studio, fields, **other)


def test_a_cuda_graph_would_get_what_it_can_copy(studio, omni_golden) -> None:
    keys = set()
    for case in ("t2i", "t2i_text", "edit"):
        request = studio.request(**golden_request(omni_golden, case))
        [(transformer, inputs)] = first_calls(
            [studio.denoise.transformer], lambda r=request: studio.latents([r])
        )
        # A caption is padded already, by rows that the model has learned: more of
        # them would be seen. So each of these lengths has a graph of its own.
        padder = prompt_padding.select_prompt_padder(transformer, inputs)
        assert padder is None
        assert prompt_padding.pad_masked_prompt_kwargs(inputs, (64, 512)) is inputs
        keys.add(check_graph_inputs(transformer, inputs))
    assert len(keys) == 3


def test_what_a_request_costs_a_batch_is_its_latents(studio, fields) -> None:
    request = studio.request(**{**fields, "width": 64, "height": 96})
    config = studio.server_args.pipeline_config
    assert config.estimate_request_cost(request) == 8 * 12
