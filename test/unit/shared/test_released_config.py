# SPDX-License-Identifier: Apache-2.0
"""One policy for the keys of all released configs."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest

from sglang_ext_gen.checkpoint.released_config import (
    StrictConfig,
    unused_keys_noted,
    with_rope_scaling,
)
from sglang_ext_gen.errors import ConfigError


@dataclass(frozen=True)
class Config(StrictConfig):
    width: int

    fixed: ClassVar[Mapping[str, object]] = {"act": "silu"}
    off: ClassVar[Mapping[str, str]] = {"norm": "a further norm"}
    ignored: ClassVar[Mapping[str, str]] = {"seed": "training"}


DESCRIBING = {
    "_use_default_values": ["x"],
    "attn_implementation": "sdpa",
    "attention_dropout": 0.1,
    "image_token_id": 1,
    "audio_end_token": 2,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}


def test_keys_that_describe_are_taken_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    values = {"width": 4, "seed": 1, "act": "silu", "norm": False, **DESCRIBING}
    with caplog.at_level(logging.WARNING):
        assert Config.from_dict(values, "one.json") == Config(4)
        assert Config.from_dict(values, "one.json") == Config(4)
    assert caplog.messages == [f"one.json: not used: {', '.join(DESCRIBING)}"]


def test_a_program_may_show_the_warning_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with unused_keys_noted() as noted:
        for _ in range(2):
            Config.from_dict({"width": 4, "use_cache": True}, "shown.json")
    assert noted == ["shown.json: not used: use_cache"]
    assert caplog.messages == []
    Config.from_dict({"width": 4, "use_cache": True}, "shown.json")
    assert caplog.messages == noted


def test_listed_keys_are_taken_silently(caplog: pytest.LogCaptureFixture) -> None:
    Config.from_dict({"width": 4, "seed": 1}, "two.json")
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"num_experts": 8}, "x.json: unknown key 'num_experts'"),
        ({"use_cache": True, "depth": 8}, "x.json: unknown key 'depth'"),
        ({"num_query_token": 8}, "x.json: unknown key 'num_query_token'"),
        ({"act": "gelu"}, "x.json: act is 'gelu', expected 'silu'"),
        ({"norm": True}, "x.json: norm is True: a further norm, which is not supp"),
    ],
)
def test_keys_that_may_change_the_arithmetic_are_refused(
    extra: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.from_dict({"width": 4, **extra}, "x.json")


def test_rope_parameters_are_read_as_rope_scaling() -> None:
    parameters = {"rope_theta": 1e6, "type": "mrope", "partial_rotary_factor": 0.5}
    assert with_rope_scaling({"rope_parameters": parameters, "width": 4}, "x") == {
        "rope_theta": 1e6,
        "partial_rotary_factor": 0.5,
        "rope_scaling": {"type": "mrope"},
        "width": 4,
    }
    assert with_rope_scaling({"rope_scaling": None}, "x") == {"rope_scaling": None}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rope_parameters": 3}, "rope_parameters is 3, expected an object"),
        ({"rope_parameters": {}, "rope_scaling": {"factor": 2}}, "disagree"),
    ],
)
def test_rotations_that_cannot_be_read_are_refused(
    values: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        with_rope_scaling(values, "x")
