# SPDX-License-Identifier: Apache-2.0
"""FP8 weights while loading: numbers, sizes, host memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qwen_image_runtime import decibels, load_pipeline
from sglang_ext_gen.models.qwen_image.layout import transformer_specs

# The released transformer's config (Qwen/Qwen-Image).
RELEASED = {
    "attention_head_dim": 128,
    "in_channels": 64,
    "joint_attention_dim": 3584,
    "num_attention_heads": 24,
    "num_layers": 60,
    "out_channels": 16,
    "patch_size": 2,
}
MEMORY_SCRIPT = """
import json, sys, threading, time
from pathlib import Path
import torch
from qwen_image_runtime import start_runtime

start_runtime()
from sglang.multimodal_gen.configs.models.dits.qwenimage import QwenImageDitConfig
from sglang_ext_gen.models.qwen_image.loaders import load_fp8_transformer

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(l.split()[1]) * 1024 for l in lines if l.startswith("VmRSS"))

before, peak, done = resident(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, resident())
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
model = load_fp8_transformer(
    Path(sys.argv[1]), QwenImageDitConfig(), torch.bfloat16, torch.device("cpu")
)
done = True
thread.join()
size = sum(p.nbytes for p in model.parameters())
bf16 = sum(2 * p.numel() for n, p in model.named_parameters() if "scale" not in n)
print(json.dumps({"peak": peak - before, "size": size, "bf16": bf16}))
"""


def test_released_weights_shrink_to_055() -> None:
    from sglang_ext_gen.models.qwen_image.fp8_quality import is_quantized_weight

    fp8 = bf16 = 0
    for spec in transformer_specs(RELEASED):
        count = torch.Size(spec.shape).numel()
        bf16 += 2 * count
        is_fp8 = is_quantized_weight(spec.name, spec.shape)
        fp8 += count + 4 * spec.shape[0] if is_fp8 else 2 * count
    assert bf16 == pytest.approx(40.9e9, rel=0.01)
    assert fp8 / bf16 <= 0.55


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


@pytest.mark.slow
def test_host_memory_while_loading(tmp_path: Path) -> None:
    config = {
        **RELEASED,
        **{"_class_name": "QwenImageTransformer2DModel", "num_layers": 10},
        **{"num_attention_heads": 8, "attention_head_dim": 64},
        **{"joint_attention_dim": 512, "axes_dims_rope": [16, 24, 24]},
    }
    shard_bytes = write_shards(tmp_path, config, shards=5)
    command = [sys.executable, "-c", MEMORY_SCRIPT, str(tmp_path)]
    search = os.pathsep.join(path for path in sys.path if path)
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": search},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    measured = json.loads(result.stdout.splitlines()[-1])
    assert measured["size"] <= 0.55 * measured["bf16"]
    assert measured["peak"] <= measured["size"] + 2 * shard_bytes, measured


def write_shards(folder: Path, config: dict, shards: int) -> int:
    """Random bf16 weights in several files; returns the bytes of the largest."""
    generator = torch.Generator().manual_seed(0)
    specs = list(transformer_specs(config))
    size = -(-len(specs) // shards)
    weight_map = {}
    largest = 0
    for shard in range(shards):
        name = f"diffusion_pytorch_model-{shard + 1:05}-of-{shards:05}.safetensors"
        tensors = {
            spec.name: torch.randn(spec.shape, generator=generator).bfloat16()
            for spec in specs[shard * size : (shard + 1) * size]
        }
        save_file(tensors, folder / name)
        largest = max(largest, (folder / name).stat().st_size)
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": {}, "weight_map": weight_map}
    file = folder / "diffusion_pytorch_model.safetensors.index.json"
    file.write_text(json.dumps(index), "utf-8")
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return largest


def test_unknown_and_missing_tensors(runtime, tmp_path: Path) -> None:
    from sglang.multimodal_gen.configs.models.dits.qwenimage import QwenImageDitConfig

    from sglang_ext_gen.errors import CheckpointError
    from sglang_ext_gen.models.qwen_image.loaders import load_fp8_transformer

    config = {
        **RELEASED,
        **{"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 32},
        **{"joint_attention_dim": 64, "axes_dims_rope": [8, 12, 12]},
    }
    generator = torch.Generator().manual_seed(0)
    tensors = {
        spec.name: torch.randn(spec.shape, generator=generator).bfloat16()
        for spec in transformer_specs(config)
    }
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    cases = (
        ({**tensors, "other.weight": torch.ones(2, 2)}, "other.weight"),
        ({k: v for k, v in tensors.items() if k != "img_in.bias"}, "img_in.bias"),
        ({**tensors, "img_in.bias": torch.ones(3)}, "img_in.bias"),
    )
    for broken, word in cases:
        save_file(broken, file)
        with pytest.raises(CheckpointError, match=word):
            load_fp8_transformer(
                tmp_path, QwenImageDitConfig(), torch.bfloat16, torch.device("cpu")
            )
