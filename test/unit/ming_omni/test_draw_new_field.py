# SPDX-License-Identifier: Apache-2.0
"""A new request field is declared in the table and used; the rest follows."""

import argparse
from dataclasses import dataclass, fields
from typing import Any

import pytest

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.models.ming_omni import request
from sglang_ext_gen.models.ming_omni.pipeline_config import MingOmniPipelineConfig
from sglang_ext_gen.models.ming_omni.sampling_params import MingOmniSamplingParams
from sglang_ext_gen.request import flags
from sglang_ext_gen.request.fields import RequestField, carries

INVENTED = RequestField("invented", "float", "Nothing.", maximum=1, default=0.5)
TABLE = (*request.REQUEST_FIELDS, INVENTED)


@dataclass
@carries(TABLE)
class Params(MingOmniSamplingParams):
    request_fields = TABLE


# Types know nothing of what the table declares.
make: Any = Params


def test_a_declared_field_reaches_python_and_http(monkeypatch):
    defaults = {field.name: field.default for field in fields(Params)}
    assert defaults["invented"] == 0.5
    assert make(invented=1).values()["invented"] == 1.0
    with pytest.raises(RequestError, match="invented: 2 given"):
        make(invented=2)
    extra = {"byt5_text", "highres", "image_path"}
    assert MingOmniSamplingParams.image_request_extra_fields() == extra
    assert Params.image_request_extra_fields() == {*extra, "invented"}
    monkeypatch.setattr(request, "REQUEST_FIELDS", TABLE)
    assert request.check_request({"prompt": "a", "invented": 1})["invented"] == 1.0


def test_a_declared_field_is_a_flag():
    parser = argparse.ArgumentParser()
    flags.add_request_flags(parser, "Ming-flash-omni 2.0", TABLE)
    arguments = parser.parse_args(["--invented", "0.25"])
    assert flags.request_values(arguments, TABLE) == {"invented": 0.25}


def test_a_declared_field_keeps_requests_apart():
    """What only conditions does not: each request has conditions of its own."""
    assert make(invented=0.1).batch_key() != Params().batch_key()
    assert Params(width=64, height=96).batch_key() != Params().batch_key()
    conditions = {
        "prompt": "a",
        "negative_prompt": "b",
        "byt5_text": "c",
        "image_path": "d.png",
        "seed": 1,
    }
    assert make(**conditions).batch_key() == Params().batch_key()


def test_defaults_are_the_tables():
    params = MingOmniSamplingParams()
    assert (params.num_inference_steps, params.guidance_scale) == (30, 2.0)
    assert params.width is params.height is params.negative_prompt is None
    assert (params.seed, params.num_outputs_per_prompt, params.num_frames) == (42, 1, 1)
    assert MingOmniPipelineConfig().thinker_timeout_s == 300.0
    assert MingOmniPipelineConfig().thinker_url is None
