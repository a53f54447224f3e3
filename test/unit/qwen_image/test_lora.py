# SPDX-License-Identifier: Apache-2.0
"""Adapters: every key accounted for, alpha honoured, never the previous merge."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_image_runtime import LoadedPipeline, copy_checkpoint, load_pipeline
from sglang_ext_gen.errors import CheckpointError, ConfigError

pytestmark = pytest.mark.slow

LAYERS = (
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.1.img_mlp.net.2",
    "transformer_blocks.1.attn.add_k_proj",
    "transformer_blocks.1.attn.add_q_proj",
    "transformer_blocks.1.attn.add_v_proj",
)
BLOCK = "transformer.transformer_blocks.0"
RANK = 2
WEIGHTS = Path("transformer") / "diffusion_pytorch_model.safetensors"
FIELDS = {
    **{"prompt": "a cat", "width": 128, "height": 160, "num_inference_steps": 2},
    **{"seed": 4},
}


def write_adapter(path: Path, seed: int, alpha: float | None, base: dict) -> dict:
    """An adapter for ``LAYERS``; returns what it adds to each weight at strength 1."""
    generator = torch.Generator().manual_seed(seed)
    tensors, change = {}, {}
    for layer in LAYERS:
        out_features, in_features = base[f"{layer}.weight"].shape
        down = torch.randn(RANK, in_features, generator=generator) / in_features**0.5
        up = torch.randn(out_features, RANK, generator=generator)
        tensors[f"transformer.{layer}.lora_A.weight"] = down
        tensors[f"transformer.{layer}.lora_B.weight"] = up
        if alpha is not None:
            tensors[f"transformer.{layer}.alpha"] = torch.tensor(alpha)
        change[f"{layer}.weight"] = (alpha or RANK) / RANK * (up @ down)
    save_file(tensors, path)
    return change


@pytest.fixture(scope="module")
def base(t2i_checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(t2i_checkpoint / WEIGHTS)


@pytest.fixture(scope="module")
def adapted(runtime, t2i_checkpoint: Path) -> LoadedPipeline:
    return load_pipeline(t2i_checkpoint)


def merged(checkpoint: Path, folder: Path, base: dict, change: dict) -> torch.Tensor:
    """The picture of a checkpoint whose weights were changed by hand."""
    copy = copy_checkpoint(checkpoint, folder)
    weights = {k: v.float() + change.get(k, 0) for k, v in base.items()}
    save_file(weights, copy / WEIGHTS)
    return load_pipeline(copy).pictures(**FIELDS)


def test_three_adapters_in_turn(adapted, base, t2i, t2i_checkpoint, tmp_path) -> None:
    plain = t2i.pictures(**FIELDS)
    alphas = {"one": None, "two": 3.0, "half": 0.5}
    changes = {
        name: write_adapter(tmp_path / f"{name}.safetensors", seed, alpha, base)
        for seed, (name, alpha) in enumerate(alphas.items())
    }
    expected = {
        name: merged(t2i_checkpoint, tmp_path / name, base, change)
        for name, change in changes.items()
    }
    for name in ("one", "two", "half", "one", "half", "two"):
        path = tmp_path / f"{name}.safetensors"
        adapted.pipeline.set_lora(name, str(path))
        image = adapted.pictures(**FIELDS)
        assert (image - expected[name]).abs().max() < 1e-4, name
        assert (image - plain).abs().max() > 1e-2
    status = adapted.pipeline.get_lora_status()
    counts = {
        entry["nickname"]: entry["matched_layers"]
        for entry in status["loaded_adapters"]
    }
    # The three projections of the text stream are one layer in stock's transformer.
    assert counts == {"one": 3, "two": 3, "half": 3}

    adapted.pipeline.unmerge_lora_weights()
    assert (adapted.pictures(**FIELDS) - plain).abs().max() < 1e-4


def test_a_changed_file_is_loaded_again(adapted, base, tmp_path) -> None:
    path = tmp_path / "same.safetensors"
    pictures = []
    for seed in (10, 11):
        write_adapter(path, seed, None, base)
        adapted.pipeline.set_lora("same", str(path))
        pictures.append(adapted.pictures(**FIELDS))
    assert (pictures[0] - pictures[1]).abs().max() > 1e-2


def test_an_overruled_alpha_does_not_stay(adapted, base, tmp_path) -> None:
    path = tmp_path / "alpha.safetensors"
    write_adapter(path, 12, None, base)
    adapted.pipeline.set_lora("alpha", str(path))
    before = adapted.pictures(**FIELDS)
    adapted.pipeline.set_lora("alpha", str(path), lora_alpha=8)
    assert (adapted.pictures(**FIELDS) - before).abs().max() > 1e-2
    adapted.pipeline.set_lora("alpha", str(path))
    assert (adapted.pictures(**FIELDS) - before).abs().max() < 1e-4


@pytest.mark.parametrize(
    "extra",
    [
        {"transformer.blocks.7.attn.to_q.lora_A.weight": torch.ones(2, 64)},
        {"transformer.transformer_blocks.0.attn.to_k.lora_A.weight": torch.ones(2, 64)},
        {"transformer.transformer_blocks.0.attn.to_q.diff_b": torch.ones(64)},
        {
            f"{BLOCK}.attn.add_q_proj.lora_A.weight": torch.ones(2, 64),
            f"{BLOCK}.attn.add_q_proj.lora_B.weight": torch.ones(64, 2),
        },
    ],
    ids=["unknown layer", "A without B", "unknown kind", "one of three"],
)
def test_unmatched_keys_are_an_error(adapted, base, tmp_path, extra) -> None:
    path = tmp_path / "bad.safetensors"
    write_adapter(path, 13, None, base)
    save_file({**load_file(path), **extra}, path)
    before = adapted.pictures(**FIELDS)
    with pytest.raises(CheckpointError, match=r"match no layer .*transformer"):
        adapted.pipeline.set_lora("bad", str(path))
    assert torch.equal(adapted.pictures(**FIELDS), before)
    loaded = adapted.pipeline.get_lora_status()["loaded_adapters"]
    assert "bad" not in [entry["nickname"] for entry in loaded]


def test_fp8_weights_take_no_adapter(runtime, t2i_checkpoint, base, tmp_path) -> None:
    path = tmp_path / "one.safetensors"
    write_adapter(path, 14, None, base)
    loaded = load_pipeline(t2i_checkpoint, weight_format="fp8")
    with pytest.raises(ConfigError, match="released weights"):
        loaded.pipeline.set_lora("one", str(path))
