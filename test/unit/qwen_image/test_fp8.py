# SPDX-License-Identifier: Apache-2.0
"""FP8 weights while loading: numbers and sizes."""

import gc
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_image_runtime import decibels, load_pipeline
from sglang_ext_gen.checkpoint.tiny import split_into_shards, write_component
from sglang_ext_gen.models.qwen_image import checkpoint, tiny
from sglang_ext_gen.models.qwen_image.config import TransformerConfig
from sglang_ext_gen.models.qwen_image.tensors import transformer_specs

# The released transformer's config (Qwen/Qwen-Image).
RELEASED = {
    "_class_name": "QwenImageTransformer2DModel",
    "attention_head_dim": 128,
    "in_channels": 64,
    "joint_attention_dim": 3584,
    "num_attention_heads": 24,
    "num_layers": 60,
    "out_channels": 16,
    "patch_size": 2,
}


def test_released_weights_shrink_to_055() -> None:
    from sglang_ext_gen.models.qwen_image.checkpoint import is_quantized_weight

    fp8 = bf16 = 0
    for spec in transformer_specs(TransformerConfig.from_dict(RELEASED, "")):
        count = torch.Size(spec.shape).numel()
        bf16 += 2 * count
        is_fp8 = is_quantized_weight(spec.name, spec.shape)
        fp8 += count + 4 * spec.shape[0] if is_fp8 else 2 * count
    assert bf16 == pytest.approx(40.9e9, rel=0.01)
    assert fp8 / bf16 <= 0.55


def load_fp8(root: Path) -> torch.nn.Module:
    """The transformer of a checkpoint with FP8 weights."""
    from sglang_ext_gen.checkpoint.build import load_component
    from sglang_ext_gen.models.qwen_image.pipeline_config import (
        QwenImageExtPipelineConfig,
    )

    return load_component(
        checkpoint.TRANSFORMER.at(root),
        dtype=torch.bfloat16,
        device="cpu",
        options=QwenImageExtPipelineConfig(),
    )


def memory_mib(name: str) -> float:
    """Resident memory of this process now (VmRSS), or its highest (VmHWM)."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise AssertionError(name)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads and resets VmHWM")
def test_loading_peaks_two_shards_above_the_weights(runtime, tmp_path: Path) -> None:
    config = {**tiny.TRANSFORMER, "num_attention_heads": 16, "num_layers": 8}
    row = checkpoint.TRANSFORMER
    write_component(tmp_path, row, config, seed=0, streams={"x": 1.0})
    file = row.at(tmp_path).file
    split_into_shards(file, file.stat().st_size // 4)
    files = file.parent.glob("*.safetensors")
    shards = [shard.stat().st_size / 2**20 for shard in files]
    assert 4 <= len(shards) <= 6

    gc.collect()
    before = memory_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest
    model = load_fp8(tmp_path)
    peak = memory_mib("VmHWM") - before
    final = sum(parameter.nbytes for parameter in model.parameters()) / 2**20
    assert final <= 0.55 * sum(shards)
    assert peak <= final + 2 * max(shards)


@pytest.mark.slow
def test_picture_and_parameters(runtime, t2i, t2i_checkpoint, t2i_golden) -> None:
    loaded = load_pipeline(t2i_checkpoint, weight_format="fp8")
    transformer = loaded.pipeline.get_module("transformer")
    names = {name for name, _ in transformer.named_parameters()}
    quantised = [n for n in names if n.endswith(".weight_scale")]
    assert len(quantised) == 3 + 14 * 2
    for name in quantised:
        weight = transformer.get_parameter(name.removesuffix("_scale"))
        assert weight.dtype == torch.float8_e4m3fn
    fields = {
        **{"prompt": "a red circle on white", "negative_prompt": "low quality"},
        **{"width": 256, "height": 256, "num_inference_steps": 4, "seed": 1},
    }
    # Weights lose about 32 dB; guidance 4 amplifies that.
    assert decibels(loaded.pictures(**fields), t2i.pictures(**fields)) > 25


def test_signal_to_noise_of_each_layer(t2i_checkpoint) -> None:
    from sglang_ext_gen.models.qwen_image.fp8_quality import fp8_quality

    quality = dict(fp8_quality(t2i_checkpoint))
    assert len(quality) == 3 + 14 * 2
    assert min(quality.values()) > 29
    assert max(quality.values()) < 40


def test_doctor_reports_it(t2i_checkpoint, capsys) -> None:
    from sglang_ext_gen.cli import doctor

    argv = ["--no-process", "--model", str(t2i_checkpoint), "--fp8-quality"]
    assert doctor.main([*argv, "--json"]) == 0
    quality = json.loads(capsys.readouterr().out)["fp8_quality"]
    assert len(quality) == 3 + 14 * 2
    assert 29 < quality["transformer_blocks.0.attn.to_q.weight"] < 40
    assert doctor.main(argv) == 0
    assert "transformer_blocks.1.img_mlp.net.2.weight" in capsys.readouterr().out


def test_unknown_and_missing_tensors(runtime, tmp_path: Path) -> None:
    from sglang_ext_gen.errors import CheckpointError

    config = {
        **RELEASED,
        **{"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 32},
        **{"joint_attention_dim": 64, "axes_dims_rope": [8, 12, 12]},
    }
    row = checkpoint.TRANSFORMER
    write_component(tmp_path, row, config, seed=0, streams={"x": 1.0})
    file = row.at(tmp_path).file
    tensors = load_file(file)
    cases = (
        ({**tensors, "other.weight": torch.ones(2, 2)}, "other.weight"),
        ({k: v for k, v in tensors.items() if k != "img_in.bias"}, "img_in.bias"),
        ({**tensors, "img_in.bias": torch.ones(3)}, "img_in.bias"),
    )
    for broken, word in cases:
        save_file(broken, file)
        with pytest.raises(CheckpointError, match=word):
            load_fp8(tmp_path)
