# SPDX-License-Identifier: Apache-2.0
"""What stock's denoising loop does for Lance: compile, caches, offload, graphs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from denoising_loop import (
    Call,
    check_graph_inputs,
    counted_graphs,
    first_calls,
    steps_reused,
    without_a_break,
)
from images import decibels
from sglang_ext_gen.errors import ConfigError, RequestError

pytestmark = pytest.mark.slow

Load = Callable[..., Any]

PICTURE: dict[str, Any] = {
    **{"prompt": "a cat on a mat", "seed": 3, "width": 96, "height": 64},
    "num_inference_steps": 4,
}
VIDEO = {**PICTURE, "task_type": "t2v", "num_frames": 5}
# Half of the steps, at the default shift of times.
ENDS_EARLY = {"cfg_interval": [0.8, 1.0]}
LONG = {**PICTURE, "num_inference_steps": 16}
# Latents; inductor sums in another order: measured 7e-6.
COMPILED = {"rtol": 0, "atol": 2e-5}
# What reused steps cost this random model: measured 54 dB for 7 of 16 (TeaCache) and 46
# to 52 dB for 4 to 9 of 16 (cache-dit).
REUSED_DB = 42
CACHES: dict[str, dict[str, Any]] = {
    "TeaCache": {"enable_teacache": True},
    "cache-dit": {
        "enable_cache_dit": True,
        "cache_dit_params": {"max_warmup_steps": 4, "residual_diff_threshold": 0.24},
    },
}


@pytest.fixture(scope="module")
def load(runtime: None, lance: Any) -> Load:
    """Load the pipeline, in float32, with more server arguments."""
    from qwen_image_runtime import load_pipeline

    def loaded(**options: Any) -> Any:
        return load_pipeline(lance.path, image_encoder_precision="fp32", **options)

    return loaded


@pytest.fixture(scope="module")
def plain(load: Load) -> Any:
    return load()


@pytest.fixture
def edit(lance: Any) -> dict[str, Any]:
    source = str(lance.golden.path / "input_image.png")
    size = {"resolution": "image_256res", "num_inference_steps": 2}
    return {"prompt": "make it red", "image_path": source, "seed": 3, **size}


def drawn(loaded: Any, fields: dict[str, Any], **more: Any) -> Tensor:
    """[n, 3, H, W], or [n, 3, F, H, W]."""
    return torch.cat([result.output for result in loaded.run(**{**fields, **more})])


def latents(loaded: Any, fields: dict[str, Any], **more: Any) -> Tensor:
    """[n, I, C] behind the last step; a picture's levels would hide small errors."""
    kept = {"return_trajectory_latents": True}
    results = loaded.run(**{**fields, **more, **kept})
    return torch.cat([result.trajectory_latents[:, -1] for result in results])


def denoising_stage(loaded: Any) -> Any:
    [stage] = [s for s in loaded.pipeline.stages if hasattr(s, "transformers")]
    return stage


def transformers(loaded: Any) -> list[nn.Module]:
    """Of pictures, of videos."""
    return list(denoising_stage(loaded).transformers.values())


def calls_of(loaded: Any, fields: dict[str, Any], **more: Any) -> list[Call]:
    """The first call of the transformer that runs."""
    return first_calls(transformers(loaded), lambda: drawn(loaded, fields, **more))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"guidance_scale": 1.0},
        {"prompt": ["a", "a longer prompt"]},
        {"num_outputs_per_prompt": 2},
    ],
    ids=str,
)
def test_a_transformer_is_one_graph(more, plain) -> None:
    calls = [*calls_of(plain, PICTURE, **more), *calls_of(plain, VIDEO, **more)]
    assert [module for module, _ in calls] == transformers(plain)
    without_a_break(calls)


def test_compiled_it_draws_the_same_and_recompiles_for_what_is_new(
    load, plain, monkeypatch
) -> None:
    monkeypatch.setenv("SGLANG_TORCH_COMPILE_MODE", "default")
    compiled = load(enable_torch_compile=True, warmup_mode="off")
    graphs = []
    with counted_graphs() as counters:
        for more in (
            *({}, {"seed": 4}, ENDS_EARLY, {"cfg_interval": [0.5, 0.9]}),
            *({"prompt": "a dog"}, {"prompt": "a grey dog in the sun", "seed": 5}),
            *({"width": 64}, {"width": 128, "height": 96}),
            *({"num_outputs_per_prompt": 2}, {"prompt": ["a", "two words more"]}),
        ):
            both = latents(compiled, PICTURE, **more), latents(plain, PICTURE, **more)
            torch.testing.assert_close(*both, **COMPILED)
            graphs.append(counters["stats"]["unique_graphs"])
        assert not counters["graph_break"]
    # One; one more of half the rows, where guidance does not act; one for any length of
    # the prompt and one for any size, here where guidance acts; one for another number
    # of rows, or of lengths among them.
    assert graphs == [1, 1, 2, 2, 3, 3, 4, 4, 5, 6]


def test_videos_are_compiled_too(load, plain, monkeypatch) -> None:
    monkeypatch.setenv("SGLANG_TORCH_COMPILE_MODE", "default")
    compiled = load(enable_torch_compile=True, warmup_mode="off")
    with counted_graphs() as counters:
        for fields in (PICTURE, VIDEO, PICTURE, VIDEO):
            both = latents(compiled, fields), latents(plain, fields)
            torch.testing.assert_close(*both, **COMPILED)
        assert counters["stats"]["unique_graphs"] == 2
        assert not counters["graph_break"]


@pytest.mark.parametrize(
    "interval", [[0.0, 1.0], [0.4, 1.0], [0.5, 0.9]], ids="in {}".format
)
@pytest.mark.parametrize("name", CACHES)
def test_a_cache_over_the_steps_spares_some_of_them(
    name, interval, plain, caplog
) -> None:
    """Also where guidance begins or ends in the middle, and rows with it."""
    fields = {**LONG, "cfg_interval": interval}
    whole = drawn(plain, fields)
    with caplog.at_level("INFO"):
        cached = drawn(plain, fields, **CACHES[name])
    [reused] = steps_reused(caplog.text, name)
    assert 0 < reused < 12
    assert REUSED_DB < decibels(cached, whole) < 80
    assert torch.equal(drawn(plain, fields), whole)
    assert torch.equal(drawn(plain, fields, **CACHES[name]), cached)


@pytest.mark.parametrize("name", CACHES)
def test_pictures_and_videos_in_turns_have_caches_of_their_own(name, plain) -> None:
    video = {**VIDEO, "num_inference_steps": 16}
    wholes = [drawn(plain, fields) for fields in (LONG, video)]
    cached = [drawn(plain, fields, **CACHES[name]) for fields in (LONG, video)]
    again = [drawn(plain, fields, **CACHES[name]) for fields in (LONG, video)]
    for first, second, whole in zip(cached, again, wholes, strict=True):
        assert torch.equal(first, second)
        assert REUSED_DB - 6 < decibels(first, whole) < 80
    assert all(
        torch.equal(drawn(plain, fields), whole)
        for fields, whole in zip((LONG, video), wholes, strict=True)
    )


def test_cache_dit_by_variable(plain, monkeypatch) -> None:
    cached, whole = drawn(plain, LONG, **CACHES["cache-dit"]), drawn(plain, LONG)
    monkeypatch.setenv("SGLANG_CACHE_DIT_ENABLED", "true")
    monkeypatch.setenv("SGLANG_CACHE_DIT_WARMUP", "4")
    monkeypatch.setenv("SGLANG_CACHE_DIT_RDT", "0.24")
    assert torch.equal(drawn(plain, LONG), cached)
    assert torch.equal(drawn(plain, LONG, enable_cache_dit=False), whole)


def test_a_cached_request_is_alone_in_its_loop(plain) -> None:
    alone = drawn(plain, LONG, **CACHES["TeaCache"])
    prompts = [LONG["prompt"], "ok"]
    group = drawn(plain, LONG, prompt=prompts, **CACHES["TeaCache"])
    assert torch.equal(group[:1], alone)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"teacache_params": {"threshold": 1}}, "teacache_params: {'threshold': 1}"),
        ({"cache_dit_params": {"x": 1}}, "cache_dit_params: Unknown"),
        ({"attention_backend_override": "fa"}, "attention_backend_override: not supp"),
        ({"skip_softmax_params": {"threshold_scale_factor": 1}}, "skip_softmax_params"),
        (
            {"enable_teacache": True, "enable_cache_dit": True},
            "enable_teacache: not together",
        ),
        ({"cfg_gate_step": 0.5}, "cfg_gate_step: not supported by Lance"),
    ],
)
def test_what_the_loop_cannot_do_is_refused_by_field(more, message, plain) -> None:
    before = drawn(plain, PICTURE)
    with pytest.raises(RequestError, match=message):
        drawn(plain, {**PICTURE, **more})
    assert torch.equal(drawn(plain, PICTURE), before)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("enable_breakable_cuda_graph", "none can be padded"),
        ("regional_compile", "compiled as a whole"),
    ],
)
def test_what_a_prefix_rules_out_is_refused_before_loading(
    option, message, load
) -> None:
    flag = "--" + option.replace("_", "-")
    with pytest.raises(ConfigError, match=f"{flag}: .*{message}"):
        load(enable_torch_compile=option == "regional_compile", **{option: True})


@pytest.mark.parametrize(
    "option",
    [
        {"dit_cpu_offload": True},
        {"image_encoder_cpu_offload": True, "vae_cpu_offload": True},
    ],
    ids=str,
)
def test_offloaded_it_draws_the_same(option, load, plain, edit) -> None:
    offloaded = load(**option)
    for fields in (PICTURE, edit, VIDEO):
        assert torch.equal(drawn(offloaded, fields), drawn(plain, fields))


def test_prompts_of_different_length_share_a_loop(plain, caplog) -> None:
    prompts = ["a", "two words", "a much longer prompt"]
    with caplog.at_level("INFO"):
        together = drawn(plain, PICTURE, prompt=prompts)
    assert "3 requests in 1 loops" in caplog.text
    singles = torch.cat([drawn(plain, PICTURE, prompt=p) for p in prompts])
    # One level: rows of a batch are summed in another order.
    assert (together - singles).abs().max() < 1.5 / 255


def test_edits_of_pictures_of_one_size_share_a_loop(plain, edit, caplog) -> None:
    prompts = ["make it red", "turn the picture into a drawing"]
    with caplog.at_level("INFO"):
        together = drawn(plain, edit, prompt=prompts)
    assert "2 requests in 1 loops" in caplog.text
    singles = torch.cat([drawn(plain, edit, prompt=p) for p in prompts])
    assert (together - singles).abs().max() < 1.5 / 255


def test_a_cuda_graph_would_serve_one_length_of_a_prompt(plain) -> None:
    """Why the flag is refused: there is no mask, so no prompt can be padded."""
    keys = []
    for prompt in ("two words", "more words", "a much longer prompt"):
        [(transformer, inputs)] = calls_of(plain, PICTURE, prompt=prompt)
        keys.append(check_graph_inputs(transformer, inputs))
    assert keys[0] == keys[1] != keys[2]
