# SPDX-License-Identifier: Apache-2.0
"""What of a config SGLang changes before a model is built, and where we keep it."""

from types import SimpleNamespace
from typing import Any

import pytest

from lazy import LazyModule
from sglang_ext_gen.plugin.language_models import keep_sizes
from sglang_ext_gen.registry import LANGUAGE_MODELS

cpu_reference = LazyModule("sglang_ext_gen.platforms.cpu_reference")
update_config = LazyModule("sglang.srt.configs.update_config")
PLATFORM = "sglang.srt.platforms.current_platform"
BLOCK_SIZE = "sglang.srt.configs.update_config.may_get_weight_block_size"


def config(architecture: str) -> Any:
    """What SGLang knows of a decoder of uneven size."""
    vision = SimpleNamespace(
        model_type="qwen3_vl_moe", num_heads=2, intermediate_size=3420
    )
    decoder = SimpleNamespace(
        architectures=[architecture],
        model_type="qwen2",
        intermediate_size=104,
        vision_config=vision,
    )
    return SimpleNamespace(
        hf_config=decoder,
        hf_text_config=decoder,
        num_attention_heads=4,
        get_total_num_kv_heads=lambda: 2,
        quantization=None,
    )


def sizes_after(architecture: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    stock = update_config.adjust_config_with_unaligned_cpu_tp
    stock = getattr(stock, "__wrapped__", stock)
    monkeypatch.setattr(BLOCK_SIZE, lambda *_: None)
    changed = keep_sizes(stock, config(architecture), None, tp_size=1).hf_config
    return changed.intermediate_size, changed.vision_config.intermediate_size


@pytest.mark.parametrize("model", LANGUAGE_MODELS, ids=lambda model: model.name)
def test_our_cpu_platform_keeps_the_sizes_of_ours(model, monkeypatch):
    monkeypatch.setattr(PLATFORM, cpu_reference.CpuReferencePlatform())
    assert sizes_after(model.architecture, monkeypatch) == (104, 3420)


def test_stocks_models_and_stocks_cpu_are_left_alone(monkeypatch):
    monkeypatch.setattr(PLATFORM, cpu_reference.CpuReferencePlatform())
    assert sizes_after("Qwen2ForCausalLM", monkeypatch) == (128, 3424)
    monkeypatch.setattr(PLATFORM, object())
    ours = LANGUAGE_MODELS[0].architecture
    assert sizes_after(ours, monkeypatch) == (128, 3424)
