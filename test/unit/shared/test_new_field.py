# SPDX-License-Identifier: Apache-2.0
"""In every family a new request field is declared in one table; the rest follows."""

import argparse
from dataclasses import dataclass, fields
from typing import Any

import pytest

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.http.images import PATH, checked_image_body
from sglang_ext_gen.http.served_model import ServedModel
from sglang_ext_gen.registry import FAMILIES
from sglang_ext_gen.request import flags
from sglang_ext_gen.request.fields import RequestField, carries, check_given

GLOW = RequestField("glow", "float", "Of the light.", maximum=1, default=0.5)


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def grown(request) -> Any:
    """A family's sampling params whose table has one row more."""
    family = request.param
    table = (*family.load(family.request_fields), GLOW)

    @dataclass
    @carries(table)
    class Params(family.load(family.sampling_params)):
        request_fields = table

    return Params


def test_python_has_the_field_with_its_default_and_checks_it(grown):
    assert {field.name: field.default for field in fields(grown)}["glow"] == 0.5
    assert grown(glow=1).values()["glow"] == 1.0
    with pytest.raises(RequestError, match="glow: 2 given"):
        grown(glow=2)


def test_http_takes_it(grown):
    own = super(grown, grown).image_request_extra_fields()
    assert "glow" in own
    assert "glow" in grown.video_request_extra_fields()
    model = ServedModel(
        title="",
        table=grown.request_fields,
        routes=frozenset({PATH}),
        check=lambda values: check_given(grown.request_fields, values),
    )
    assert checked_image_body({"prompt": "a", "glow": 1}, model)["glow"] == 1.0
    with pytest.raises(RequestError, match="glow: 2 given"):
        checked_image_body({"prompt": "a", "glow": 2}, model)


def test_the_command_line_has_a_flag(grown):
    parser = argparse.ArgumentParser()
    flags.add_request_flags(parser, "", grown.request_fields)
    arguments = parser.parse_args(["--glow", "0.25"])
    assert flags.request_values(arguments, grown.request_fields) == {"glow": 0.25}


def test_it_keeps_requests_apart_and_what_only_conditions_does_not(grown):
    assert grown(glow=0.1).batch_key() != grown().batch_key()
    assert grown(prompt="a", seed=1).batch_key() == grown(prompt="b").batch_key()


def test_defaults_are_those_of_the_table(grown):
    for field in grown.request_fields:
        value = getattr(grown(), field.name)
        assert value == (None if field.default is None else field.check(field.default))
