# SPDX-License-Identifier: Apache-2.0
"""Only the weights that the served tasks need are loaded, counted byte by byte."""

import pytest
import torch
from torch import nn

from lazy import LazyModule
from sglang_ext_gen.checkpoint.layout import TensorSpec
from sglang_ext_gen.models.lance.checkpoint import VAE, VAE_DECODER, VISION
from sglang_ext_gen.models.lance.options import place_tasks, takes_sources
from sglang_ext_gen.models.lance.tensors import transformer_specs, vision_specs
from sglang_ext_gen.models.lance.thinker import weights as thinker_weights

vae = LazyModule("sglang_ext_gen.models.lance.vae")

PARTS = {
    "t2i": {"transformer", "vae", "tokenizer"},
    "image_edit": {"transformer", "image_encoder", "vae", "tokenizer"},
    "t2v": {"transformer_2", "vae", "tokenizer"},
    "i2v": {"transformer_2", "vae", "tokenizer"},
    "t2i,video_edit": {
        *("transformer", "transformer_2", "image_encoder_2"),
        *("vae", "tokenizer"),
    },
}


def nbytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def count(specs: list[TensorSpec]) -> int:
    return sum(torch.Size(spec.shape).numel() for spec in specs)


@pytest.mark.parametrize("tasks", list(PARTS))
def test_components_of_tasks(tasks, lance):
    from sglang_ext_gen.models.lance.pipeline import needed_components

    assert needed_components(place_tasks(lance.files, None, tasks)) == PARTS[tasks]


def test_decoder_holds_the_layers_and_no_head(lance):
    config = lance.files.transformer("Lance_3B").config
    specs = [s for s in transformer_specs(config) if "lm_head" not in s.name]
    loaded = lance.load(lance.files.transformer("Lance_3B"))
    assert nbytes(loaded) == 4 * count(specs)


def test_fp8_halves_the_linears(lance):
    released, fp8 = (
        lance.load(
            lance.files.transformer("Lance_3B"),
            torch.bfloat16,
            weight_format=weight_format,
        )
        for weight_format in ("released", "fp8")
    )
    assert nbytes(fp8.layers) < 0.6 * nbytes(released.layers)


def test_vae_of_tasks_without_a_source_has_no_encoder(lance):
    assert not takes_sources("t2i,t2v")
    assert takes_sources("t2i,i2v")
    assert takes_sources(None)
    whole, half = (lance.load(row.at(lance.path)) for row in (VAE, VAE_DECODER))
    assert nbytes(half) == nbytes(whole) - nbytes(whole.encoder)
    latents = torch.randn(1, 2, 3, 48)
    with torch.no_grad():
        assert torch.equal(vae.decode(half, latents), vae.decode(whole, latents))


def test_understanding_takes_the_plain_weights_and_one_tower(lance):
    """What the loader takes of the file is what its parameters hold."""
    config = lance.files.transformer("Lance_3B_Video").config
    tower = count(list(vision_specs(VISION.at(lance.path).config)))
    stored = lance.files.transformer("Lance_3B_Video").stored
    used = [
        TensorSpec(name, tensor.shape)
        for name, tensor in stored.items()
        if thinker_weights.is_used(name)
    ]
    plain = [s for s in transformer_specs(config) if thinker_weights.is_used(s.name)]
    assert count(used) == count(plain) + tower
    both = [s for s in transformer_specs(config) if ".layers." in s.name]
    half = [spec for spec in both if thinker_weights.is_used(spec.name)]
    assert 2 * count(half) == count(both)
