# SPDX-License-Identifier: Apache-2.0
"""Load options: one table, which pipeline config and command lines must match."""

import argparse
from dataclasses import fields
from typing import Any

import pytest

from sglang_ext_gen.cli import serve
from sglang_ext_gen.models.qwen_image.options import LOAD_OPTIONS

CONFIGS = ("QwenImageExtPipelineConfig", "QwenImageEditExtPipelineConfig")


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> Any:
    """The class of a pipeline config."""
    from sglang_ext_gen.models.qwen_image import pipeline_config

    return getattr(pipeline_config, request.param)


def test_options_are_fields_of_the_pipeline_config(config) -> None:
    names = {field.name for field in fields(config)}
    assert {option.name for option in LOAD_OPTIONS} <= names


@pytest.mark.parametrize(
    ("words", "value"), [([], None), (["--weight-format", "fp8"], "fp8")]
)
def test_sglang_understands_what_serve_hands_over(
    config, t2i_checkpoint, words, value
) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-path")
    parser.add_argument("--backend")
    config.add_pipeline_cli_args(parser)
    argv = serve.sglang_arguments(str(t2i_checkpoint), words)
    assert parser.parse_args(argv).weight_format == value
