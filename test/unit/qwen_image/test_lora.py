# SPDX-License-Identifier: Apache-2.0
"""Adapters: every key accounted for, alpha honoured, never the previous merge."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_image_runtime import (
    LoadedPipeline,
    copy_checkpoint,
    load_pipeline,
    write_adapter,
)
from sglang_ext_gen.errors import RequestError

pytestmark = pytest.mark.slow

BLOCK = "transformer.transformer_blocks.0"
WEIGHTS = Path("transformer") / "diffusion_pytorch_model.safetensors"
FIELDS = {
    **{"prompt": "a cat", "width": 128, "height": 160, "num_inference_steps": 2},
    **{"seed": 4},
}


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
    # By its nickname alone too.
    adapted.pipeline.set_lora("alpha", lora_alpha=8)
    assert (adapted.pictures(**FIELDS) - before).abs().max() > 1e-2
    adapted.pipeline.set_lora("alpha")
    assert (adapted.pictures(**FIELDS) - before).abs().max() < 1e-4


def test_an_alpha_beside_the_files_own_is_refused(adapted, base, tmp_path) -> None:
    path = tmp_path / "own.safetensors"
    write_adapter(path, 12, 3.0, base)
    with pytest.raises(RequestError, match="lora_alpha: 8 given"):
        adapted.pipeline.set_lora("own", str(path), lora_alpha=8)


def test_a_failed_change_does_not_leave_the_previous_merge(
    adapted, base, tmp_path
) -> None:
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    bad.write_bytes(b"no tensors")
    write_adapter(good, 20, None, base)
    adapted.pipeline.set_lora("good", str(good))
    old = adapted.pictures(**FIELDS)
    write_adapter(good, 21, None, base)
    with pytest.raises(RequestError, match="lora_path"):
        adapted.pipeline.set_lora(["good", "bad"], [str(good), str(bad)])
    adapted.pipeline.set_lora("good", str(good))
    assert (adapted.pictures(**FIELDS) - old).abs().max() > 1e-2


def test_two_at_once_add_up(adapted, base, t2i_checkpoint, tmp_path) -> None:
    changes: dict[str, torch.Tensor] = {}
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for seed, (path, strength) in enumerate(zip(paths, (0.5, 2.0), strict=True)):
        for name, change in write_adapter(path, 30 + seed, 3.0, base).items():
            changes[name] = changes.get(name, 0) + strength * change
    expected = merged(t2i_checkpoint, tmp_path / "ab", base, changes)
    names = [str(path) for path in paths]
    adapted.pipeline.set_lora(["a", "b"], names, strength=[0.5, 2.0])
    assert (adapted.pictures(**FIELDS) - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("names", "fields", "word"),
    [
        (["a", "b"], {"lora_path": ["x"]}, "lora_nickname: Length mismatch"),
        (["a", "b"], {"lora_path": "x"}, "lora_nickname: Length mismatch"),
        (["a"], {"lora_path": ["x"], "lora_alpha": [1, 2]}, "Length mismatch"),
        (["a"], {"lora_path": ["x"], "strength": [1, 2]}, "Length mismatch"),
        (["a", "a"], {"lora_path": ["x", "y"]}, "expected each once"),
        (["a"], {"lora_path": ["x"], "lora_alpha": 0}, "positive"),
        (["a"], {"lora_path": ["x"], "target": "vae"}, "target"),
        (["nobody"], {}, "lora_path: .*nobody"),
        (["a"], {"lora_path": ["/nowhere/a.safetensors"]}, "lora_path: "),
    ],
)
def test_bad_arguments_are_refused(adapted, names, fields, word) -> None:
    with pytest.raises(RequestError, match=word):
        adapted.pipeline.set_lora(names, **fields)


def test_a_start_with_an_adapter_sees_a_changed_file(
    runtime, base, t2i_checkpoint, tmp_path
) -> None:
    """Stock keeps merged weights on disk, by the adapter's path, size and time."""
    path = tmp_path / "start.safetensors"
    pictures = []
    for seed in (40, 41):
        change = write_adapter(path, seed, 0.5, base)
        os.utime(path, ns=(0, 0))
        loaded = load_pipeline(t2i_checkpoint, lora_path=str(path))
        pictures.append(loaded.pictures(**FIELDS))
        expected = merged(t2i_checkpoint, tmp_path / str(seed), base, change)
        assert (pictures[-1] - expected).abs().max() < 1e-4
    assert (pictures[0] - pictures[1]).abs().max() > 1e-2


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
    with pytest.raises(
        RequestError, match=r"lora_path: .*match no layer .*transformer"
    ):
        adapted.pipeline.set_lora("bad", str(path))
    assert torch.equal(adapted.pictures(**FIELDS), before)
    loaded = adapted.pipeline.get_lora_status()["loaded_adapters"]
    assert "bad" not in [entry["nickname"] for entry in loaded]


def test_fp8_weights_take_no_adapter(runtime, t2i_checkpoint, base, tmp_path) -> None:
    path = tmp_path / "one.safetensors"
    write_adapter(path, 14, None, base)
    loaded = load_pipeline(t2i_checkpoint, weight_format="fp8")
    with pytest.raises(RequestError, match=r"lora_path: .*FP8 weights"):
        loaded.pipeline.set_lora("one", str(path))
