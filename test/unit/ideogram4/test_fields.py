# SPDX-License-Identifier: Apache-2.0
"""What follows from the table of request fields."""

import argparse
from dataclasses import fields

from lazy import LazyModule
from sglang_ext_gen.models.ideogram4.request import REQUEST_FIELDS
from sglang_ext_gen.request.flags import add_request_flags

sampling_params = LazyModule("sglang_ext_gen.models.ideogram4.sampling_params")


def test_defaults_are_those_of_the_table() -> None:
    params = sampling_params.Ideogram4FP8SamplingParams()
    declared = params.values()
    given = {name: value for name, value in declared.items() if value is not None}
    size = {"width": 1024, "height": 1024}
    own = {"seed": 42, "num_outputs_per_prompt": 1, "enable_teacache": False}
    assert given == {**size, **own}
    assert params.data_type.name == "IMAGE"
    names = [field.name for field in fields(params)]
    assert set(declared) <= set(names)


def test_interfaces_are_derived_from_the_table() -> None:
    assert sampling_params.Ideogram4FP8SamplingParams.image_request_extra_fields() == {
        *("preset", "guidance_schedule", "mu", "std", "teacache_params")
    }
    parser = argparse.ArgumentParser()
    add_request_flags(parser, "Ideogram 4", REQUEST_FIELDS)
    flags = vars(parser.parse_args([]))
    assert set(flags) == {field.name for field in REQUEST_FIELDS}
