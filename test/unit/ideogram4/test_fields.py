# SPDX-License-Identifier: Apache-2.0
"""A new request field is declared in ``request.py`` and travels by itself."""

import argparse
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from sglang_ext_gen.models.ideogram4.request import REQUEST_FIELDS
from sglang_ext_gen.models.ideogram4.sampling_params import Ideogram4FP8SamplingParams
from sglang_ext_gen.request.flags import add_request_flags

# What a developer would do: one row more in the table, before anything reads it.
DECLARE = """
from sglang_ext_gen.models.ideogram4 import request
from sglang_ext_gen.request.fields import RequestField
row = RequestField("grain", "float", "Of the film.", minimum=0, maximum=1)
request.REQUEST_FIELDS += (row,)
"""
TRAVELS = """
import argparse
from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.http.images import PATH, checked_image_body
from sglang_ext_gen.http.served_model import ServedModel
from sglang_ext_gen.models.ideogram4.sampling_params import (
    Ideogram4FP8SamplingParams as Params,
)
from sglang_ext_gen.request.flags import add_request_flags

assert Params().grain is None
assert Params(grain=1).values()["grain"] == 1.0
assert "grain" in Params.image_request_extra_fields()
assert Params(grain=0.1).batch_key() != Params(grain=0.2).batch_key()
parser = argparse.ArgumentParser()
add_request_flags(parser, "", request.REQUEST_FIELDS)
assert parser.parse_args(["--grain", "0.5"]).grain == 0.5
model = ServedModel(
    title="", table=request.REQUEST_FIELDS, routes={PATH}, check=request.check_request
)
assert checked_image_body({"prompt": "a", "grain": 1}, model)["grain"] == 1.0
for refused in (
    lambda: Params(grain=2),
    lambda: checked_image_body({"prompt": "a", "grain": 2}, model),
    lambda: request.check_request({"prompt": "a", "grain": 2}),
):
    try:
        refused()
    except RequestError as error:
        assert error.field == "grain"
    else:
        raise AssertionError("not refused")
"""


def test_a_declared_field_reaches_python_http_command_line_and_batches() -> None:
    result = subprocess.run(
        [sys.executable, "-c", DECLARE + TRAVELS],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(Path(__file__).parents[3] / "python")},
    )
    assert result.returncode == 0, result.stderr[-2000:]


def test_defaults_are_those_of_the_table() -> None:
    params = Ideogram4FP8SamplingParams()
    declared = {field.name: field.default for field in REQUEST_FIELDS}
    assert params.values() == declared
    given = {name: value for name, value in declared.items() if value is not None}
    size = {"width": 1024, "height": 1024}
    assert given == {**size, "seed": 42, "num_outputs_per_prompt": 1}
    assert params.data_type.name == "IMAGE"
    names = [field.name for field in fields(params)]
    assert set(declared) <= set(names)


def test_interfaces_are_derived_from_the_table() -> None:
    assert Ideogram4FP8SamplingParams.image_request_extra_fields() == {
        *("preset", "guidance_schedule", "mu", "std")
    }
    parser = argparse.ArgumentParser()
    add_request_flags(parser, "Ideogram 4", REQUEST_FIELDS)
    flags = vars(parser.parse_args([]))
    assert set(flags) == {field.name for field in REQUEST_FIELDS}
