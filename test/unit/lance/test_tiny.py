# SPDX-License-Identifier: Apache-2.0
"""The tiny checkpoint is complete, loads strictly and is reproducible."""

import pytest
import torch
from safetensors.torch import load_file

from sglang_ext_gen.errors import ConfigError
from sglang_ext_gen.models.lance import checkpoint
from sglang_ext_gen.models.lance.tiny import write_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "lance"
    write_tiny(path)
    return path


def test_it_is_recognised_and_complete(tiny):
    assert checkpoint.recognises(tiny)
    assert checkpoint.check_checkpoint(tiny) == []


def test_every_component_loads(tiny, lance):
    files = checkpoint.find_files(tiny)
    for variant in checkpoint.VARIANTS:
        lance.load(files.transformer(variant))
        lance.load(files.vision(variant))
    lance.load(checkpoint.VAE.at(tiny))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny / "Lance_3B")
    assert None not in tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|video_pad|>"])


def test_same_seed_same_tensors(tiny, tmp_path):
    write_tiny(tmp_path / "again")
    write_tiny(tmp_path / "other", seed=1)
    name = "Lance_3B/model.safetensors"
    first, again, other = (
        load_file(path / name)["vae2llm.weight"]
        for path in (tiny, tmp_path / "again", tmp_path / "other")
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with pytest.raises(ConfigError, match="exists already"):
        write_tiny(tiny)
