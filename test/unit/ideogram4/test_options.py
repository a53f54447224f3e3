# SPDX-License-Identifier: Apache-2.0
"""Load options: one table, which pipeline config and command lines must match."""

import argparse
from dataclasses import fields

import pytest

from lazy import LazyModule
from sglang_ext_gen.cli import serve
from sglang_ext_gen.layers.fp8_linear import FP8_MODES
from sglang_ext_gen.models.ideogram4.options import LOAD_OPTIONS

pipeline_config = LazyModule("sglang_ext_gen.models.ideogram4.pipeline_config")


def test_options_are_fields_of_the_pipeline_config():
    names = {field.name for field in fields(pipeline_config.Ideogram4FP8PipelineConfig)}
    assert {option.name for option in LOAD_OPTIONS} <= names
    [fp8_mode] = [option for option in LOAD_OPTIONS if option.name == "fp8_mode"]
    assert fp8_mode.choices == FP8_MODES


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ([], {"fp8_mode": None, "load_unconditional": None}),
        (
            ["--fp8-mode", "expanded", "--no-unconditional"],
            {"fp8_mode": "expanded", "load_unconditional": False},
        ),
    ],
)
def test_sglang_understands_what_serve_hands_over(ideogram4_golden, words, values):
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-path")
    parser.add_argument("--backend")
    pipeline_config.Ideogram4FP8PipelineConfig.add_pipeline_cli_args(parser)
    argv = serve.sglang_arguments(str(ideogram4_golden.checkpoint), words)
    arguments = vars(parser.parse_args(argv))
    assert {name: arguments[name] for name in values} == values
