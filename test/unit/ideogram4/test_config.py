# SPDX-License-Identifier: Apache-2.0
"""Released config files become dataclasses, key by key."""

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import Golden
from sglang_ext_gen.errors import ConfigError
from sglang_ext_gen.models.ideogram4.config import (
    TAP_LAYERS,
    Ideogram4TextEncoderConfig,
    Ideogram4TransformerConfig,
)


def read(golden: Golden, component: str) -> dict[str, Any]:
    path: Path = golden.checkpoint / component / "config.json"
    return json.loads(path.read_text("utf-8"))


def test_transformer_config_reads_every_dimension(ideogram4_golden: Golden) -> None:
    values = read(ideogram4_golden, "transformer")
    config = Ideogram4TransformerConfig.from_dict(values, "transformer/config.json")
    for key in values.keys() - {"_class_name", "_diffusers_version"}:
        expected = tuple(values[key]) if key == "mrope_section" else values[key]
        assert getattr(config, key) == expected
    assert config.hidden_size == 3 * 32


def test_text_encoder_config_reads_both_styles(ideogram4_golden: Golden) -> None:
    values = read(ideogram4_golden, "text_encoder")
    config = Ideogram4TextEncoderConfig.from_dict(values, "config.json")
    assert config.rope_theta == 5_000_000
    assert config.features_dim == len(TAP_LAYERS) * 32
    text = dict(values["text_config"])
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope["rope_theta"]}
    text |= {"rope_scaling": {"mrope_section": [4, 2, 2], "mrope_interleaved": True}}
    older = Ideogram4TextEncoderConfig.from_dict(
        {**values, "text_config": text}, "config.json"
    )
    assert older == config


@pytest.mark.parametrize("component", ["transformer", "text_encoder"])
def test_an_unknown_key_is_named(ideogram4_golden: Golden, component: str) -> None:
    values = {**read(ideogram4_golden, component), "num_experts": 8}
    cls = {
        "transformer": Ideogram4TransformerConfig,
        "text_encoder": Ideogram4TextEncoderConfig,
    }[component]
    with pytest.raises(ConfigError, match="unknown key 'num_experts'"):
        cls.from_dict(values, "config.json")


def test_a_missing_key_is_named(ideogram4_golden: Golden) -> None:
    values = read(ideogram4_golden, "transformer")
    del values["norm_eps"]
    with pytest.raises(ConfigError, match="key 'norm_eps' is missing"):
        Ideogram4TransformerConfig.from_dict(values, "config.json")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_act", "gelu", "hidden_act is 'gelu', expected 'silu'"),
        ("attention_bias", True, "attention_bias is True, expected False"),
        ("num_hidden_layers", 28, "num_hidden_layers is 28, at least 36"),
        ("rope_parameters", {"rope_type": "yarn"}, "rope_type is 'yarn'"),
    ],
)
def test_another_text_tower_is_refused(
    ideogram4_golden: Golden, key: str, value: object, message: str
) -> None:
    values = read(ideogram4_golden, "text_encoder")
    values["text_config"] |= {key: value}
    with pytest.raises(ConfigError, match=message):
        Ideogram4TextEncoderConfig.from_dict(values, "config.json")
