# SPDX-License-Identifier: Apache-2.0
"""The understanding side without a server: view, prompt, weights."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from safetensors import safe_open
from torch import nn

from sglang_ext_gen.checkpoint.layout import TensorSpec
from sglang_ext_gen.errors import CheckpointError, RequestError
from sglang_ext_gen.models.lance.packing import SpecialTokens
from sglang_ext_gen.models.lance.thinker import prompt, weights
from sglang_ext_gen.models.lance.thinker.view import make_view, prepare_arguments


@pytest.fixture(scope="module")
def tokenizer(lance):
    tokenizer = lance.tokenizer()
    tokenizer.chat_template = prompt.chat_template()
    return tokenizer


def render(tokenizer, *messages) -> str:
    return tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=True
    )


def user(*parts) -> dict:
    return {"role": "user", "content": list(parts)}


def text(value: str) -> dict:
    return {"type": "text", "text": value}


@pytest.mark.parametrize("name", ["x2t_image", "x2t_video"])
def test_chat_gives_the_official_tokens_and_positions(name, lance, tokenizer):
    case = lance.case(name)
    medium = {"type": "image" if name == "x2t_image" else "video"}
    rendered = render(tokenizer, user(text(case.json["prompt"]), medium))
    assert rendered == prompt.wrap_question(case.json["prompt"], medium["type"])
    ids = tokenizer.encode(rendered, add_special_tokens=False)
    _, grid = lance.vision_features(case)
    expanded = prompt.expand(ids, grid, SpecialTokens.from_tokenizer(tokenizer))
    got = torch.cat([segment.token_ids for segment in expanded.segments])
    assert torch.equal(got, case.tensor("input_ids"))
    positions = torch.cat(
        [segment.position_ids for segment in expanded.segments], dim=1
    )
    assert torch.equal(positions, case.tensor("position_ids")[:, : len(got)])
    assert expanded.offsets is not None
    first, last = expanded.offsets
    special = SpecialTokens.from_tokenizer(tokenizer)
    assert [int(got[first]), int(got[last])] == [
        special.vision_start,
        special.vision_end,
    ]


def test_text_alone_has_no_instruction(tokenizer):
    assert render(tokenizer, {"role": "user", "content": "Hi"}) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_system_message_replaces_the_instruction(tokenizer):
    own = {"role": "system", "content": "Be brief."}
    rendered = render(tokenizer, own, user({"type": "image"}, text("Well?")))
    assert rendered.startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    assert rendered.count("<|im_start|>system") == 1


@pytest.mark.parametrize("token", prompt.RESERVED)
def test_forged_tokens_are_refused(token, tokenizer):
    with pytest.raises(Exception, match="is not allowed in text"):
        render(tokenizer, {"role": "user", "content": f"a {token} b"})
    with pytest.raises(RequestError, match="is not allowed"):
        prompt.wrap_question(f"a {token} b", "image")


def test_blocks_and_media_must_agree(tokenizer):
    special = SpecialTokens.from_tokenizer(tokenizer)
    ids = tokenizer.encode(prompt.wrap_question("x", "image"))
    with pytest.raises(RequestError, match="1 visual blocks in the prompt and 0 media"):
        prompt.expand(ids, None, special)
    with pytest.raises(RequestError, match="2 visual blocks"):
        prompt.expand(ids + ids, (1, 2, 2), special)


class TestView:
    """A folder that SGLang can open, without a copy of anything."""

    def test_bundled_tower(self, lance):
        view = make_view(lance.path / "Lance_3B_Video")
        config = json.loads((view / "config.json").read_text("utf-8"))
        assert config["architectures"] == ["LanceForConditionalGeneration"]
        assert config["vocab_size"] == lance.golden.json["tokenizer_len"]
        assert config["stored_vocab_size"] == 452
        assert config["vision_weights"] is None
        assert config["tie_word_embeddings"] is False
        weights_file = view / "model.safetensors"
        assert weights_file.resolve().parent.name == "Lance_3B_Video"

    def test_standalone_tower(self, lance):
        view = make_view(lance.path / "Lance_3B")
        config = json.loads((view / "config.json").read_text("utf-8"))
        assert config["vision_weights"].endswith("Qwen2.5-VL-ViT/vit.safetensors")
        # SGLang takes every safetensors file of the folder for the decoder's.
        assert [file.name for file in view.glob("*.safetensors")] == [
            "model.safetensors"
        ]

    def test_root_is_the_video_variant_as_in_the_official_script(self, lance):
        weights_file = make_view(lance.path) / "model.safetensors"
        assert weights_file.resolve().parent.name == "Lance_3B_Video"

    def test_hugging_face_id_is_the_downloaded_release(
        self, lance, tmp_path, monkeypatch
    ):
        repository = tmp_path / "models--bytedance-research--Lance"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("a" * 40)
        snapshot = repository / "snapshots" / ("a" * 40)
        shutil.copytree(lance.path, snapshot)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        arguments = SimpleNamespace(
            model_path="bytedance-research/Lance",
            revision=None,
            download_dir=str(tmp_path),
            served_model_name=None,
            chunked_prefill_size=None,
        )
        prepare_arguments(arguments)
        weights_file = Path(arguments.model_path) / "model.safetensors"
        assert weights_file.resolve() == snapshot / "Lance_3B_Video/model.safetensors"
        assert arguments.served_model_name == "bytedance-research/Lance"

    def test_incomplete_checkpoint_is_refused(self, lance, tmp_path):
        shutil.copytree(lance.path, tmp_path / "lance")
        (tmp_path / "lance" / "Qwen2.5-VL-ViT" / "vit.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"vit\.safetensors is missing"):
            make_view(tmp_path / "lance")


@pytest.mark.parametrize("variant", ["Lance_3B", "Lance_3B_Video"])
def test_no_generation_weight_is_used(variant, lance):
    with safe_open(lance.files.transformer(variant).file, framework="pt") as file:
        names = list(file.keys())
    used = [name for name in names if weights.is_used(name)]
    targets = {weights.target_of(name).name for name in used}
    assert not any("moe_gen" in name or "vae" in name for name in targets)
    # Two layers: q, k, v fill one parameter, and so do gate and up.
    assert "model.layers.1.self_attn.qkv_proj.bias" in targets
    assert "model.layers.0.mlp.gate_up_proj.weight" in targets
    has_vision = any(name.startswith("visual.") for name in targets)
    assert has_vision == (variant == "Lance_3B_Video")


def test_padding_rows_of_the_vocabulary_stay_on_disk():
    module = nn.Module()
    module.lm_head = nn.Linear(3, 2, bias=False)
    stored = torch.randn(5, 3)
    name = "language_model.lm_head.weight"
    weights.load(module, [(name, stored)], [TensorSpec(name, (5, 3))], 2)
    assert torch.equal(module.lm_head.weight, stored[:2])


def test_loading_proves_completeness():
    module = nn.Module()
    module.lm_head = nn.Linear(3, 2, bias=False)
    specs = [TensorSpec("language_model.lm_head.weight", (2, 3))]
    good = ("language_model.lm_head.weight", torch.ones(2, 3))
    assert weights.load(module, [good], specs, 2) == {"lm_head.weight"}
    assert torch.equal(module.lm_head.weight, good[1])
    for given, message in (
        ([], "is missing"),
        ([good, good], "came twice"),
        ([(good[0], torch.ones(3, 2))], "has shape"),
        ([good, ("language_model.extra", torch.ones(1))], "has no place"),
    ):
        with pytest.raises(CheckpointError, match=message):
            weights.load(module, given, specs, 2)
