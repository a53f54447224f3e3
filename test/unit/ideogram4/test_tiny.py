# SPDX-License-Identifier: Apache-2.0
"""The tiny checkpoint: complete, deterministic, and none of its values dull."""

import ast
import hashlib
import importlib.util
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import Golden
from sglang_ext_gen.checkpoint import tiny as shared_tiny
from sglang_ext_gen.checkpoint.layout import has_float8
from sglang_ext_gen.checkpoint.tiny import quantize_rows
from sglang_ext_gen.errors import ConfigError
from sglang_ext_gen.models.ideogram4 import tiny
from sglang_ext_gen.models.ideogram4.checkpoint import (
    COMPONENTS,
    TRANSFORMER,
    UNCONDITIONAL,
    VAE,
    check_checkpoint,
    recognises,
)
from sglang_ext_gen.models.ideogram4.config import Ideogram4TransformerConfig
from sglang_ext_gen.models.ideogram4.latent_statistics import (
    LATENT_SCALE,
    LATENT_SHIFT,
)
from sglang_ext_gen.models.ideogram4.tensors import transformer_specs


def digests(path: Path) -> dict[str, str]:
    """Hash of every file, by its path inside the folder."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "checkpoint"
    tiny.write_tiny(path)
    return path


def test_it_is_complete(checkpoint: Path) -> None:
    assert recognises(checkpoint)
    assert check_checkpoint(checkpoint) == []
    plain = [part for part in COMPONENTS if not has_float8(part.at(checkpoint).stored)]
    assert plain == [VAE]


def test_its_files_are_those_of_the_release(
    checkpoint: Path, ideogram4_golden: Golden
) -> None:
    # The golden checkpoint also has the two files of the older tokenizer format.
    older = {"tokenizer/vocab.json", "tokenizer/merges.txt"}
    assert (
        digests(checkpoint).keys()
        == digests(ideogram4_golden.checkpoint).keys() - older
    )


def test_same_seed_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    tiny.write_tiny(tmp_path / "again")
    assert digests(tmp_path / "again") == digests(checkpoint)
    tiny.write_tiny(tmp_path / "other", seed=1)
    other, first = digests(tmp_path / "other"), digests(checkpoint)
    changed = {name for name in first if first[name] != other[name]}
    assert changed == {f"{part.name}/{part.file}" for part in COMPONENTS}


def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", "utf-8")
    with pytest.raises(ConfigError, match="exists already"):
        tiny.write_tiny(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failed_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(shared_tiny, "write_tensors", no_space)
    with pytest.raises(OSError, match="No space"):
        tiny.write_tiny(tmp_path / "checkpoint")
    assert list(tmp_path.iterdir()) == []


def test_values_hide_no_bug(checkpoint: Path) -> None:
    conditional, unconditional = (
        load_file(part.at(checkpoint).file) for part in (TRANSFORMER, UNCONDITIONAL)
    )
    for name, tensor in conditional.items():
        assert tensor.float().std() > 0, name
        assert not torch.equal(tensor.float(), unconditional[name].float()), name
    scale = conditional["layers.0.attention.qkv.weight_scale"]
    weight = conditional["layers.0.attention.qkv.weight"].float() * scale[:, None]
    assert float(weight.std() * weight.shape[1] ** 0.5) == pytest.approx(1, abs=0.05)


def test_row_quantisation() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    quantized, scale = quantize_rows(weight)
    assert quantized.float().abs().amax(dim=1)[[0, 1, 2]].tolist() == [448.0] * 3
    error = (quantized.float() * scale[:, None] - weight).abs()
    # e4m3 has 3 mantissa bits: half a step is 1/16 of the value at most.
    assert bool((error <= weight.abs() / 16 + scale[:, None] * 2**-10).all())


def test_tokenizer_reads_any_text(checkpoint: Path, ideogram4_golden: Golden) -> None:
    from transformers import AutoTokenizer

    tokenizer, golden = (
        AutoTokenizer.from_pretrained(path / "tokenizer")
        for path in (checkpoint, ideogram4_golden.checkpoint)
    )
    text = 'the cat,\n {"a":1} \t Grüße 日本 🙂 <|im_end|>'
    messages = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    rendered, expected = (
        t.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for t in (tokenizer, golden)
    )
    assert rendered == expected
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == rendered
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2
    assert tokenizer.decode(tokenizer("e\u0301")["input_ids"]) == "\u00e9"  # NFC


def test_latent_statistics(checkpoint: Path, ideogram4_golden: Golden) -> None:
    for path in (checkpoint, ideogram4_golden.checkpoint):
        stored = load_file(VAE.at(path).file)
        shift = torch.tensor(LATENT_SHIFT)
        scale = (stored["bn.running_var"] + 1e-4).sqrt()
        torch.testing.assert_close(stored["bn.running_mean"], shift)
        torch.testing.assert_close(scale, torch.tensor(LATENT_SCALE))


def test_latent_statistics_are_those_of_stock() -> None:
    # Read from SGLang's source: importing the module takes half a minute.
    package = importlib.util.find_spec("sglang")
    assert package is not None
    assert package.origin is not None
    file = Path(package.origin).with_name("multimodal_gen")
    source = (file / "configs/pipeline_configs/ideogram.py").read_text("utf-8")
    stock = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in ("LATENT_SHIFT", "LATENT_SCALE")
    }
    assert stock == {"LATENT_SHIFT": LATENT_SHIFT, "LATENT_SCALE": LATENT_SCALE}


@pytest.mark.parametrize("sizes", [tiny.TINY, tiny.MID_SIZE], ids=["tiny", "mid-size"])
def test_sizes_can_be_shared_by_two_ranks(sizes: tiny.Dimensions) -> None:
    assert sizes.num_attention_heads % 2 == 0
    assert sizes.text_num_attention_heads > sizes.text_num_key_value_heads
    assert sizes.text_num_key_value_heads % 2 == 0
    # As in the release, the sections cover half of the rotary frequencies.
    assert sum(sizes.mrope_section) * 4 == sizes.attention_head_dim
    assert sum(sizes.text_mrope_section) * 2 == sizes.text_head_dim


def test_mid_size_has_about_100_million_parameters() -> None:
    values = tiny.transformer_config(tiny.MID_SIZE)
    config = Ideogram4TransformerConfig.from_dict(values, "")
    specs = transformer_specs(config, names="vendor", is_fp8=False)
    assert sum(math.prod(spec.shape) for spec in specs) == pytest.approx(1e8, rel=0.05)
