# SPDX-License-Identifier: Apache-2.0
"""A new request field is declared in the table and used; the rest follows."""

import argparse
from dataclasses import dataclass, fields

import pytest

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.models.qwen_image import request
from sglang_ext_gen.models.qwen_image.sampling_params import (
    QwenImageEditExtSamplingParams,
    QwenImageExtSamplingParams,
)
from sglang_ext_gen.request import flags
from sglang_ext_gen.request.fields import RequestField, carries

INVENTED = RequestField("invented", "float", "Nothing.", maximum=1, default=0.5)


@pytest.mark.parametrize(
    ("name", "base", "check"),
    [
        ("REQUEST_FIELDS", QwenImageExtSamplingParams, request.check_request),
        (
            "EDIT_REQUEST_FIELDS",
            QwenImageEditExtSamplingParams,
            request.check_edit_request,
        ),
    ],
)
def test_a_declared_field_reaches_everything(name, base, check, monkeypatch) -> None:
    table = (*getattr(request, name), INVENTED)

    @dataclass
    @carries(table)
    class Params(base):
        request_fields = table

    # Python: a field with its default, checked before anything else.
    defaults = {field.name: field.default for field in fields(Params)}
    assert defaults["invented"] == 0.5
    assert Params(invented=1).values()["invented"] == 1.0
    with pytest.raises(RequestError, match="invented"):
        Params(invented=2)
    # HTTP.
    extra = base.image_request_extra_fields()
    assert Params.image_request_extra_fields() == extra | {"invented"}
    monkeypatch.setattr(request, name, table)
    assert check({"prompt": "a", "invented": 1})["invented"] == 1.0
    # The command line.
    parser = argparse.ArgumentParser()
    flags.add_request_flags(parser, "Qwen-Image", table)
    arguments = parser.parse_args(["--invented", "0.25"])
    assert flags.request_values(arguments, table) == {"invented": 0.25}
    # Batches.
    assert Params(invented=0.1).batch_key() != Params().batch_key()
    assert Params(prompt="a", seed=1).batch_key() == Params(prompt="b").batch_key()


def test_defaults_are_the_tables() -> None:
    drawn, edit = QwenImageExtSamplingParams(), QwenImageEditExtSamplingParams()
    assert (drawn.width, drawn.height, drawn.num_inference_steps) == (1024, 1024, 50)
    assert (edit.width, edit.height, edit.num_inference_steps) == (None, None, 40)
    for params in (drawn, edit):
        assert params.negative_prompt is None
        assert params.true_cfg_scale is None
        assert params.guidance_scale == 1.0
        assert params.output_compression == 75


def test_a_warm_up_keeps_the_fewest_steps() -> None:
    for params in (QwenImageExtSamplingParams, QwenImageEditExtSamplingParams):
        assert params.min_num_inference_steps == 2
