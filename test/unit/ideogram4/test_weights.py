# SPDX-License-Identifier: Apache-2.0
"""Where the golden checkpoint's tensors go, by either layout of names.

The modules here are bare trees of parameters with the names that ``dit.py`` and
``text_encoder.py`` use; the parity tests load the real ones.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import checkpoint_damage as damages
from checkpoint_repacks import edit_tensors, split_attention
from conftest import Golden
from sglang_ext_gen.checkpoint.component import WEIGHTS
from sglang_ext_gen.checkpoint.layout import (
    FLOAT8,
    FLOAT32,
    TensorSpec,
    linear_specs,
    read_tensors,
)
from sglang_ext_gen.checkpoint.load import load_weights
from sglang_ext_gen.checkpoint.rules import Rule
from sglang_ext_gen.errors import CheckpointError
from sglang_ext_gen.models.ideogram4.checkpoint import (
    TEXT_ENCODER,
    TRANSFORMER,
    UNCONDITIONAL,
)
from sglang_ext_gen.models.ideogram4.config import Ideogram4TextEncoderConfig
from sglang_ext_gen.models.ideogram4.tensors import transformer_specs
from sglang_ext_gen.models.ideogram4.weights import text_encoder_rules


def parameter_tree(specs: Iterable[TensorSpec]) -> nn.Module:
    """Empty parameters with the names, shapes and dtypes of ``specs``, on meta."""
    dtypes = {FLOAT8: torch.float8_e4m3fn, FLOAT32: torch.float32}
    root = nn.Module()
    for spec in specs:
        *path, leaf = spec.name.split(".")
        owner = root
        for part in path:
            if part not in dict(owner.named_children()):
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        dtype = dtypes.get(spec.dtypes, torch.bfloat16)
        empty = torch.empty(spec.shape, dtype=dtype, device="meta")
        owner.register_parameter(leaf, nn.Parameter(empty, requires_grad=False))
    return root


def load_transformer(folder: Path) -> dict[str, Tensor]:
    """Parameters of one transformer, loaded under its own rules."""
    has_text = folder.name == "transformer"
    part = (TRANSFORMER if has_text else UNCONDITIONAL).at(folder.parent)
    module = parameter_tree(
        spec
        for spec in transformer_specs(part.config, names="vendor", is_fp8=True)
        if has_text or not spec.name.startswith("llm_cond")
    )
    return loaded(module, part.file, part.rules)


def loaded(module: nn.Module, file: Path, rules: tuple[Rule, ...]) -> dict[str, Tensor]:
    load_weights(module, file, rules, where=f"{file.parent.name}/")
    return dict(module.named_parameters())


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor.float(), right[name].float()), name


@pytest.fixture
def checkpoint(ideogram4_golden: Golden, tmp_path: Path) -> Path:
    return damages.copy_checkpoint(ideogram4_golden.checkpoint, tmp_path / "checkpoint")


def test_vendor_names_stay(ideogram4_golden: Golden) -> None:
    folder = ideogram4_golden.checkpoint / "transformer"
    assert_same(load_transformer(folder), load_file(folder / WEIGHTS))


def test_diffusers_names_give_the_same_parameters(checkpoint: Path) -> None:
    folder = checkpoint / "transformer"
    vendor = load_transformer(folder)
    edit_tensors(folder / WEIGHTS, split_attention)
    assert "layers.0.attention.to_k.weight_scale" in read_tensors(folder / WEIGHTS)
    assert_same(load_transformer(folder), vendor)


def test_mixed_names_are_refused(checkpoint: Path) -> None:
    folder = checkpoint / "transformer"
    edit_tensors(
        folder / WEIGHTS,
        lambda name, tensor: {**split_attention(name, tensor), name: tensor},
    )
    with pytest.raises(CheckpointError, match=r"both fill layers\.0\.attention\."):
        load_transformer(folder)


def test_unconditional_transformer_has_no_text_input(ideogram4_golden: Golden) -> None:
    folder = ideogram4_golden.checkpoint / "unconditional_transformer"
    stored = load_file(folder / WEIGHTS)
    text = {name for name in stored if name.startswith("llm_cond")}
    assert len(text) == 4
    without_text = {name: stored[name] for name in stored.keys() - text}
    assert_same(load_transformer(folder), without_text)


@pytest.mark.parametrize(
    "damage",
    [
        damages.truncated_weights,
        damages.missing_tensor,
        damages.missing_scale,
        damages.stray_scale,
        damages.extra_tensor,
        damages.wrong_shape,
        damages.wrong_dtype,
    ],
    ids=lambda damage: damage.__name__,
)
def test_damage_stops_the_load_and_is_named(
    checkpoint: Path, damage: Callable[[Path], str]
) -> None:
    named = damage(checkpoint)
    with pytest.raises(CheckpointError) as caught:  # noqa: PT012  (either may be it)
        load_transformer(checkpoint / "transformer")
        load_transformer(checkpoint / "unconditional_transformer")
    assert named in str(caught.value)


def merged_text_encoder(config: Ideogram4TextEncoderConfig) -> nn.Module:
    """The language tower as our module names it: q, k, v and gate, up merged."""
    hidden, inner = config.hidden_size, config.intermediate_size
    head_dim = config.head_dim
    queries = config.num_attention_heads * head_dim
    rows = queries + 2 * config.num_key_value_heads * head_dim
    specs = [TensorSpec("embed_tokens.weight", (config.vocab_size, hidden))]
    for i in range(config.num_hidden_layers):
        layer = f"layers.{i}"
        for name, out_features, in_features in (
            ("self_attn.qkv_proj", rows, hidden),
            ("self_attn.o_proj", hidden, queries),
            ("mlp.gate_up_proj", 2 * inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ):
            specs += linear_specs(
                f"{layer}.{name}", out_features, in_features, bias=False, is_fp8=True
            )
        for norm, width in (
            ("self_attn.q_norm", head_dim),
            ("self_attn.k_norm", head_dim),
            ("input_layernorm", hidden),
            ("post_attention_layernorm", hidden),
        ):
            specs.append(TensorSpec(f"{layer}.{norm}.weight", (width,)))
    return parameter_tree(specs)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_text_encoder(checkpoint: Path, prefix: str) -> None:
    part = TEXT_ENCODER.at(checkpoint)
    file = part.file
    stored = load_file(file)
    save_file({f"{prefix}{name}": tensor for name, tensor in stored.items()}, file)
    module = merged_text_encoder(part.config)
    found = loaded(module, file, text_encoder_rules(read_tensors(file)))
    layer = "language_model.layers.35"
    for target, parts in {
        "self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj"),
        "mlp.gate_up_proj": ("gate_proj", "up_proj"),
    }.items():
        group = target.partition(".")[0]
        for suffix in ("weight", "weight_scale"):
            rows = [
                stored[f"{layer}.{group}.{part}.{suffix}"].float() for part in parts
            ]
            got = found[f"layers.35.{target}.{suffix}"]
            assert torch.equal(got.float(), torch.cat(rows))
    embedding = stored["language_model.embed_tokens.weight"]
    assert torch.equal(found["embed_tokens.weight"], embedding)
