# SPDX-License-Identifier: Apache-2.0
"""What follows from one declaration of a request field or a load option."""

import argparse
import pickle
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lazy import LazyModule
from sglang_ext_gen.errors import CheckpointError, ConfigError, RequestError
from sglang_ext_gen.request.flags import add_request_flags, request_values

small = LazyModule("small_family")

# --- request fields ---


def test_a_row_is_a_dataclass_field_with_its_default() -> None:
    params = small.Params()
    assert params.values() == {
        **dict.fromkeys((field.name for field in small.FIELDS), None),
        **{"height": 64, "seed": 42, "num_outputs_per_prompt": 1, "grain": 0.5},
    }
    from sglang.multimodal_gen.configs.sample.sampling_params import SamplingParams

    names = [field.name for field in fields(small.Params)]
    assert len(names) == len(set(names))
    assert set(names) == {f.name for f in fields(SamplingParams)} | {
        field.name for field in small.FIELDS
    }
    assert SamplingParams().height is None  # stock's own class stays as it is
    changed = replace(params, grain=1)
    assert (changed.grain, type(changed.grain)) == (1.0, float)
    assert pickle.loads(pickle.dumps(changed)) == changed


def test_http_takes_what_sglang_does_not_take_itself() -> None:
    ours = {"grain", "weights"}
    assert small.Params.image_request_extra_fields() == ours | {"image_path"}
    assert small.Params.video_request_extra_fields() == ours


def test_the_command_line_has_a_flag_for_each() -> None:
    parser = argparse.ArgumentParser()
    add_request_flags(parser, "Small", small.FIELDS)
    words = ["--grain", "0.25", "--weights", "1", "2", "--prompt", "a"]
    values = request_values(parser.parse_args(words), small.FIELDS)
    assert values == {"grain": 0.25, "weights": [1, 2], "prompt": "a"}


@pytest.mark.parametrize(
    ("changes", "is_apart"),
    [
        ({"grain": 0.1}, True),
        ({"weights": [1.0]}, True),
        ({"height": 32}, True),
        ({"guidance_scale": 2.0}, True),
        ({"prompt": "b"}, False),
        ({"seed": 3}, False),
        ({"num_outputs_per_prompt": 2}, False),
        ({"negative_prompt": "x"}, False),
    ],
    ids=str,
)
def test_requests_are_batched_apart_by_the_table(changes: Any, is_apart: bool) -> None:
    params, other = small.Params(prompt="a"), small.Params(**{"prompt": "a", **changes})
    assert (params.batch_key() != other.batch_key()) == is_apart
    # SGLang's own scheduler goes by a mark on the field.
    [name] = changes
    [field] = [field for field in fields(small.Params) if field.name == name]
    assert field.metadata.get("batch_sig_exclude", False) != is_apart


def test_a_batch_key_is_hashable_and_of_equal_lists_equal() -> None:
    lists: list[dict[str, Any]] = [{"weights": [1, 2]}, {"weights": [1.0, 2.0]}]
    keys = {small.Params(**values).batch_key() for values in lists}
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"grain": 2}, "grain"),
        ({"height": 0}, "height"),
        ({"num_outputs_per_prompt": 0}, "num_outputs_per_prompt"),
        ({"seed": [1, -1]}, "seed"),
        ({"fps": 3, "true_cfg_scale": 2.0}, "true_cfg_scale"),
    ],
    ids=str,
)
def test_a_request_is_refused_by_field_before_it_is_queued(
    values: Any, name: str
) -> None:
    with pytest.raises(ValueError, match=name):
        small.adjusted(prompt="a", **values)


def test_sglang_changes_neither_guidance_nor_negative_prompt() -> None:
    params = small.adjusted(prompt="a", negative_prompt=" b ", seed=[4, 5], fps=3)
    assert (params.guidance_scale, params.negative_prompt) == (None, " b ")
    assert not params.should_use_classifier_free_guidance()


# --- load options ---


def validate(config: Any, model_path: str = "a/b", **arguments: Any) -> None:
    from sglang.multimodal_gen.runtime.server_args import ServerArgs

    # Any model that stock knows will do: the config is another one.
    server_args = ServerArgs.from_kwargs(model_path="Qwen/Qwen-Image", backend="sglang")
    server_args.model_path, server_args.pipeline_config = model_path, config
    server_args._explicit_arg_names = set(arguments)
    for name, value in arguments.items():
        setattr(server_args, name, value)
    config.validate_server_args(server_args)


def test_an_option_is_a_field_of_the_pipeline_config() -> None:
    config = small.Config()
    values = [getattr(config, option.name) for option in small.OPTIONS]
    assert values == ["a", True, None, None]
    assert pickle.loads(pickle.dumps(config)) == config
    validate(config)


def test_options_are_flags_of_sglang_serve(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    small.Config.add_pipeline_cli_args(parser)
    nothing = dict.fromkeys((option.name for option in small.OPTIONS), None)
    assert vars(parser.parse_args([])) == nothing
    words = "--fp8-mode b --load-half false --share 0.5 --slots 3".split()
    given = vars(parser.parse_args(words))
    assert given == {"fp8_mode": "b", "load_half": False, "share": 0.5, "slots": 3}
    validate(small.Config(**{**given, "load_half": True}))
    with pytest.raises(SystemExit):
        parser.parse_args(["--fp8-mode", "c"])
    assert "If false: Leave 50% on disk." in parser.format_help()


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({"fp8_mode": "c"}, {}, "fp8_mode: 'c' given, expected one of a, b"),
        ({"share": 2.0}, {}, "share: 2.0 given"),
        ({"slots": 1, "load_half": False}, {}, "slots: needs both halves"),
        ({}, {"lora_path": "x"}, "--lora-path: LoRA is not supported"),
        ({}, {"component_paths": {"a": "b"}}, "--component-paths.a: there is no such"),
    ],
    ids=str,
)
def test_options_are_refused_by_name(
    options: Any, arguments: Any, message: str
) -> None:
    with pytest.raises((ConfigError, RequestError), match=message):
        validate(small.Config(**options), **arguments)


def test_only_a_local_checkpoint_is_checked(tmp_path: Path) -> None:
    validate(small.Config(), model_path="owner/name")
    with pytest.raises(CheckpointError, match="is damaged"):
        validate(small.Config(), model_path=str(tmp_path))


def test_a_config_of_another_family_is_not_taken() -> None:
    assert (
        small.Config.of(SimpleNamespace(pipeline_config=small.Config()))
        == small.Config()
    )
    with pytest.raises(AssertionError, match="ImagePipelineConfig is not ours"):
        small.Config.of(SimpleNamespace(pipeline_config=small.ImagePipelineConfig()))
