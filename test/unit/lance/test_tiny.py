# SPDX-License-Identifier: Apache-2.0
"""The tiny checkpoint is complete, loads strictly and is reproducible."""

import pytest
import torch
from safetensors.torch import load_file

from lazy import LazyModule
from sglang_ext_gen.errors import ConfigError
from sglang_ext_gen.models.lance import layout
from sglang_ext_gen.models.lance.tiny import write_tiny

loaders = LazyModule("sglang_ext_gen.models.lance.loaders")
vae = LazyModule("sglang_ext_gen.models.lance.vae")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "lance"
    write_tiny(path)
    return path


def test_it_is_recognised_and_complete(tiny):
    assert layout.recognises(tiny)
    assert layout.check_checkpoint(tiny) == []


def test_every_component_loads(tiny):
    files = layout.find_files(tiny)
    for variant in layout.VARIANTS:
        loaders.load_transformer(files, variant, dtype=torch.float32, device=CPU)
        loaders.load_vision(
            files, variant, "checkpoint", dtype=torch.float32, device=CPU
        )
    vae.load_vae(tiny, dtype=torch.float32, device=CPU)
    tokenizer = loaders.load_tokenizer(tiny / "Lance_3B")
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
