# SPDX-License-Identifier: Apache-2.0
"""Which checkpoints get one port, and what its flags make of the two servers."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sglang_ext_gen.cli import serve
from sglang_ext_gen.errors import ConfigError, RequestError
from sglang_ext_gen.gateway import arguments
from sglang_ext_gen.gateway.launch import (
    GatewayOptions,
    generator_command,
    thinker_command,
)
from sglang_ext_gen.plugin import resolution
from sglang_ext_gen.registry import (
    FAMILIES,
    LANGUAGE_MODELS,
    composed_family_of,
    find_family,
)

LANCE_ID = "bytedance-research/Lance"


@pytest.fixture
def lance(golden_dir: Callable[[str], Path]) -> str:
    return str(golden_dir("lance") / "checkpoint")


def options(*argv: str) -> GatewayOptions:
    return arguments.parse(find_family("lance"), "DIR", list(argv))


def test_rows_name_language_models_and_options_that_exist():
    composed = [family for family in FAMILIES if family.language_model]
    assert composed
    for family in composed:
        assert family.language_model in [model.name for model in LANGUAGE_MODELS]
        options = [option.name for option in family.load(family.load_options)]
        assert family.thinker_url_option in (None, *options)


def test_a_checkpoint_with_both_models_gets_one_port(lance, golden_dir, monkeypatch):
    assert composed_family_of(golden_dir("ming_omni") / "checkpoint") is find_family(
        "ming_omni"
    )
    family = find_family("lance")
    assert composed_family_of(lance) is family
    assert composed_family_of(f"{lance}/Lance_3B") is family
    assert composed_family_of(LANCE_ID) is family
    monkeypatch.setenv("SGLANG_EXT_GEN_DISABLE", "lance")
    assert composed_family_of(lance) is None


def test_a_checkpoint_with_one_model_does_not(ideogram4_golden, golden_dir, tmp_path):
    for path in (ideogram4_golden.checkpoint, golden_dir("ming_thinker")):
        assert path.is_dir()
        assert composed_family_of(path) is None
    assert composed_family_of(tmp_path) is None
    assert composed_family_of("ideogram-ai/ideogram-4-fp8") is None


def test_only_one_backend_says_that_it_is_its_own(lance, ideogram4_golden, tmp_path):
    from sglang.cli.serve_backends import ServeBackendDetection, ServeRequest

    from sglang_ext_gen.gateway import backend

    ideogram = str(ideogram4_golden.checkpoint)
    detect = backend.one_port().detect
    assert detect is not None
    for path, is_composed, is_diffusion in (
        (lance, True, False),
        (LANCE_ID, True, False),
        (ideogram, False, True),
        (str(tmp_path), False, False),
    ):
        request = ServeRequest(argv=("--model-path", path), model_path=path)
        assert (detect(request) is ServeBackendDetection.MATCH) is is_composed
        found = resolution.get_is_diffusion_model(lambda _: False, path)
        assert found is is_diffusion
    nothing = ServeRequest(argv=(), model_path=None)
    assert detect(nothing) is ServeBackendDetection.UNKNOWN


def test_flags_of_an_upstream_and_of_the_family_reach_their_server():
    given = options(
        *("--port", "8000", "--served-model-name", "lance", "--precision", "float32"),
        *("--thinker-tp", "2", "--thinker-devices", "0,1"),
        *("--thinker-args=--context-length 2048 --x '{\"a\": 1}'",),
        *("--generator-devices", "2", "--tasks", "t2i"),
        *("--generator-args", "--vae-precision fp32"),
    )
    assert (given.host, given.port) == ("127.0.0.1", 8000)
    assert given.thinker.devices == "0,1"
    words = thinker_command(given, "DIR")
    assert words[2:6] == ["--model-path", "DIR", "--served-model-name", "lance"]
    assert words[-8:] == [
        *("--tp-size", "2", "--dtype", "float32"),
        *("--context-length", "2048", "--x", '{"a": 1}'),
    ]
    assert given.generator.devices == "2"
    words = generator_command(given, "DIR", "http://t")
    assert words[2:6] == ["serve", "DIR", "--model-type", "diffusion"]
    assert words[-8:] == [
        *("--num-gpus", "1", "--precision", "float32"),
        *("--tasks", "t2i", "--vae-precision", "fp32"),
    ]
    # Lance draws without its language model, and is not told where it is.
    assert "http://t" not in words


def test_a_generator_that_needs_the_thinker_is_told_where_it_is():
    ming = find_family("ming_omni")
    argv = ["--thinker-args=--dtype float32", "--thinker-timeout-s", "60"]
    given = arguments.parse(ming, "DIR", argv)
    assert thinker_command(given, "DIR")[-2:] == ["--dtype", "float32"]
    words = generator_command(given, "DIR", "http://127.0.0.1:7")
    assert "--thinker-args" not in words
    assert words[words.index("--thinker-url") + 1] == "http://127.0.0.1:7"
    assert words[-2:] == ["--thinker-timeout-s", "60.0"]


def test_without_flags_the_upstreams_get_none():
    given = options()
    assert given.served_model_name == "DIR"
    assert (given.thinker.arguments, given.thinker.devices) == ((), None)
    assert options("--thinker-devices", "3,4").thinker.arguments == ("--tp-size", "2")


def test_upstreams_that_run_elsewhere():
    given = options("--thinker-url", "http://10.0.0.7:30000/", "--generator-devices=0")
    assert given.thinker.url == "http://10.0.0.7:30000"
    assert given.generator.url is None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dit-precision", "fp32"], "--dit-precision: not a flag of the one port"),
        (["--thinker-args=--port 7"], "--port is not for a part to choose"),
        (["--generator-args=--host=0.0.0.0"], "--host is not for a part to choose"),
        (["--thinker-args=--a 'b"], "No closing quotation"),
        (["--thinker-devices", "0,0"], "expected different devices"),
        (["--generator-devices", "0 1"], "expected different devices"),
        (["--generator-devices", ""], "expected different devices"),
        (["--thinker-tp", "0"], "--thinker-tp: 0 given"),
        (["--thinker-tp", "3", "--thinker-devices", "0,1"], "3 given, expected 1 to 2"),
        (["--thinker-url", "10.0.0.7"], "expected an address without a path"),
        (["--generator-url", "http://h/v1"], "expected an address without a path"),
        (["--thinker-url", "http://h", "--thinker-tp", "2"], "runs elsewhere"),
        (["--generator-url", "http://h", "--tasks", "t2i"], "runs elsewhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_flag_is_refused(argv, message):
    with pytest.raises(ConfigError, match=message):
        options(*argv)


def test_a_wrong_load_option_is_refused_here():
    with pytest.raises(RequestError, match="variant"):
        options("--variant", "Lance_7B")


def test_our_command_chooses_as_sglangs(lance, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(arguments, "run", asked.append)
    assert serve.main([lance, "--port", "8000"]) == 0
    assert serve.main([lance, "--model-type", "one-port"]) == 0
    assert [given.port for given in asked] == [8000, 30000]
    assert serve.main([lance, "--help"]) == 0
    shown = capsys.readouterr().out
    for flag in ("--thinker-tp", "--generator-url", "--tasks"):
        assert flag in shown
    with pytest.raises(ConfigError, match="does not hold both"):
        serve.main(["ideogram-ai/ideogram-4-fp8", "--model-type", "one-port"])


def test_one_of_the_servers_can_be_forced(lance):
    llm = ["--model-type", "llm", "--dtype", "float32"]
    assert serve.sglang_arguments(lance, llm) == ["--model-path", lance, *llm]
    words = serve.sglang_arguments(lance, ["--model-type=diffusion", "--tasks", "t2i"])
    assert words == [
        *("--model-path", lance, "--backend", "sglang", "--tasks", "t2i"),
        "--model-type=diffusion",
    ]


def test_the_backend_forwards_all_words():
    from sglang_ext_gen.gateway import backend

    argv = ("--model-path", "DIR", "--port", "1", "--model=DIR", "--thinker-args=--a b")
    assert backend._without_model_path(argv) == ["--port", "1", "--thinker-args=--a b"]
