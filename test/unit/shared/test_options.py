# SPDX-License-Identifier: Apache-2.0
"""No option of stock's is ignored: the tables are complete, and loading obeys them.

Arguments go through stock's own parser, for a checkpoint of each family, and end where
SGLang would start its workers.
"""

import argparse
import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from lazy import LazyModule
from sglang_ext_gen.diffusion import options
from sglang_ext_gen.diffusion.options import OptionRow, as_written, stock_options
from sglang_ext_gen.errors import ConfigError
from sglang_ext_gen.registry import FAMILIES, find_family
from sglang_ext_gen.request.fields import CHANGE_NOTHING, SERVED_BY_SGLANG

server_args_of = LazyModule("sglang.multimodal_gen.runtime.server_args")
options_page = LazyModule("sglang_ext_gen.cli.options_page")

REPOSITORY = Path(__file__).parents[3]
NAMES = [family.name for family in FAMILIES]
VARIABLE = re.compile(r"SGLANG_[A-Z0-9_]*[A-Z0-9]")


def table(family: str) -> dict[str, OptionRow]:
    row = find_family(family)
    return stock_options(row.load(row.stock_options))


# What all refuse is asked of one.
REFUSED = [
    (family, name)
    for family in NAMES
    for name, row in table(family).items()
    if row.status == "refused" and (family == NAMES[0] or row not in options.SHARED)
]


@pytest.fixture(scope="module")
def parser() -> Any:
    from sglang.multimodal_gen.runtime.utils.argparse import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    server_args_of.ServerArgs.add_cli_args(parser)
    return parser


@pytest.fixture(scope="module")
def actions(parser: Any) -> dict[str, argparse.Action]:
    """Destination -> flag of stock's parser."""
    found = {action.dest: action for action in parser._actions}
    del found["help"]
    return found


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Family -> a tiny checkpoint."""
    found = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp("tiny") / family.name
        family.load(family.write_tiny)(folder)
        found[family.name] = str(folder)
    return found


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged of options; SGLang replaces the handlers of the root."""
    messages: list[str] = []
    monkeypatch.setattr(
        options.logger, "handle", lambda record: messages.append(record.getMessage())
    )
    return messages


def stocks_variables() -> Iterator[str]:
    """Every variable that is named in the source of the diffusion runtime."""
    import sglang.multimodal_gen as package
    from sglang.multimodal_gen import envs

    yield from filter(VARIABLE.fullmatch, envs.environment_variables)
    root = Path(str(package.__file__)).parent
    for pattern in ("*.py", "configs/**/*.py", "runtime/**/*.py"):
        for file in root.glob(pattern):
            text = file.read_text("utf-8")
            for node in ast.walk(ast.parse(text)) if "SGLANG_" in text else ():
                name = getattr(node, "attr", getattr(node, "value", None))
                if isinstance(name, str) and VARIABLE.fullmatch(name):
                    yield name


# --- the tables -------------------------------------------------------------


def test_the_tables_name_what_stock_has_and_nothing_else(actions: Any) -> None:
    arguments = {field.name for field in fields(server_args_of.ServerArgs)}
    stock = {name for name in arguments if not name.startswith("_")}
    stock |= {*actions, *stocks_variables()}
    assert {"batching_max_size", "vae_config.use_tiling"} < stock
    assert {"SGLANG_CACHE_DIT_SECONDARY_FN", "SGLANG_VARLEN_FA"} < stock
    for family in NAMES:
        assert set(table(family)) == stock, family


def test_each_row_is_written_once_and_says_why() -> None:
    tables = {"SHARED": options.SHARED, "OWN_LOADERS": options.OWN_LOADERS}
    for title, rows in tables.items():
        names = [name for row in rows for name in row.names]
        assert sorted(names) == sorted(set(names)), title
    for family in FAMILIES:
        own = family.load(family.stock_options)
        for row in (*options.SHARED, *own):
            assert bool(row.reason) == (row.status != "works"), row.names
        # What all families have is in one place.
        assert not set(own) & set(options.SHARED)


def test_names_are_written_as_stock_takes_them(actions: Any) -> None:
    flags = {flag: name for name, a in actions.items() for flag in a.option_strings}
    for name in table("lance"):
        written = as_written(name)
        if written.startswith("--") and not written.endswith(".NAME"):
            assert flags[written] == name
        elif not name.isupper():
            assert name not in actions


def test_dense_attention_is_what_stock_calls_so() -> None:
    from sglang.multimodal_gen.runtime.platforms import AttentionBackendEnum

    for name in options.DENSE_BACKENDS:
        assert not AttentionBackendEnum[name.upper()].is_sparse


def test_tables_import_neither_torch_nor_sglang() -> None:
    code = (
        "import sys; from sglang_ext_gen.registry import FAMILIES;"
        "[family.load(family.stock_options) for family in FAMILIES];"
        "print(sorted({'torch', 'sglang', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("family", NAMES)
def test_request_fields_follow_from_what_is_refused(family: str) -> None:
    from sglang.multimodal_gen.configs.sample.sampling_params import SamplingParams

    row = find_family(family)
    rows = options_page.request_options(row)
    assert list(rows) == [field.name for field in fields(SamplingParams)]
    used = row.load(row.sampling_params).used_fields()
    unread = {name for name, row in rows.items() if row.reason == "nothing reads it"}
    assert unread == set(rows) - used
    assert "condition_inputs" in unread
    assert set(CHANGE_NOTHING) <= SERVED_BY_SGLANG


def test_the_page_is_what_the_tables_give() -> None:
    page = (REPOSITORY / "docs" / "options.md").read_text("utf-8")
    assert page == options_page.options_page(), "make docs"


# --- loading ----------------------------------------------------------------

# What asks for something, where that is not any word.
VALUES: dict[str, str] = {
    "attention_backend_config": "sparsity=0.5",
    "component_attention_backends": "transformer=fa",
}
# What stock wants beside them, or says before it asks us: on a CPU, or always.
BESIDE = {
    "cfg_parallel_degree": ["--num-gpus", "8"],
    "enable_cfg_parallel": ["--num-gpus", "2"],
    "component_quantization_ignored_layers": ["--component-quantizations.vae", "fp8"],
}
SAID_BY_STOCK = {
    "component_direct_gpu_weight_loading": "requires CUDA",
    "direct_gpu_weight_loading": "requires CUDA",
    "disagg_role": "only supports monolithic deployment",
    "enable_svdquant": "only supported on NVIDIA CUDA",
}


def python_value(name: str) -> Any:
    """Something to ask for by an argument that has no flag."""
    from sglang.multimodal_gen.runtime.layers.quantization.configs import (
        nunchaku_config,
    )

    return {
        "component_attention_backend_roles": {"transformer": {"self": "fa"}},
        "lora_target_modules": ["to_q"],
        "nunchaku_config": nunchaku_config.NunchakuConfig(),
    }.get(name, True)


def load(checkpoint: str, *words: str, **arguments: Any) -> Any:
    """What ``sglang serve`` makes of the words, or Python of the arguments."""
    if arguments:
        return server_args_of.ServerArgs.from_kwargs(model_path=checkpoint, **arguments)
    return server_args_of.prepare_server_args(["--model-path", checkpoint, *words])


@pytest.mark.parametrize("family", NAMES)
def test_a_plain_start_gives_nothing(
    family: str, checkpoints: Any, said: list[str]
) -> None:
    args = load(checkpoints[family])
    config = find_family(family).load(find_family(family).pipeline_config)
    assert type(args.pipeline_config) is config
    assert said == []


@pytest.mark.parametrize("family", NAMES)
def test_neither_defaults_nor_off_are_refused(
    family: str, checkpoints: Any, actions: Any
) -> None:
    known = {field.name: field.default for field in fields(server_args_of.ServerArgs)}
    defaults = {
        name: default
        for name, default in known.items()
        if name in actions and isinstance(default, str | int | float)
    }
    off = {
        name: False
        for name, action in actions.items()
        if is_switch(action) and name in known
    }
    assert len(defaults) > 60
    load(checkpoints[family], **{**defaults, **off})


def is_switch(action: argparse.Action) -> bool:
    return type(action).__name__ in ("StoreBoolean", "_StoreTrueAction")


def words_for(action: argparse.Action, row: OptionRow) -> list[str]:
    """A flag with a value that asks for something."""
    flag = as_written(action.dest)
    if is_switch(action):
        return [flag] if action.nargs == 0 else [flag, "true"]
    if action.choices:
        chosen = [c for c in action.choices if c not in (action.default, *row.unless)]
        return [flag, str(chosen[0])]
    kinds: dict[Any, str] = {int: "8", float: "0.5"}
    return [flag, VALUES.get(action.dest, kinds.get(action.type, "fp8"))]


@pytest.mark.parametrize(("family", "name"), REFUSED)
def test_each_refused_option_is_refused_by_name(
    family: str,
    name: str,
    checkpoints: Any,
    actions: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row, words, arguments = table(family)[name], BESIDE.get(name, []), {}
    if name.isupper():
        monkeypatch.setenv(name, "0.5")
    elif name in actions:
        words = [*words_for(actions[name], row), *words]
    elif as_written(name).endswith(".NAME"):
        words = [as_written(name).replace("NAME", "vae"), "true", *words]
    else:
        arguments = {name: python_value(name)}
    if name in SAID_BY_STOCK:
        with pytest.raises(ValueError, match=SAID_BY_STOCK[name]):
            load(checkpoints[family], *words, **arguments)
        return
    with pytest.raises(ConfigError, match=re.escape(as_written(name))) as caught:
        load(checkpoints[family], *words, **arguments)
    assert row.reason in str(caught.value)


def test_a_variable_that_is_off_asks_for_nothing(
    checkpoints: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("1.0", "0", ""):
        monkeypatch.setenv("SGLANG_DIFFUSION_CFG_GATE_STEP", value)
        load(checkpoints["ideogram4"])


def test_what_does_not_apply_is_said(
    checkpoints: Any, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_SANA_WM_SKIP_REFINER", "1")
    load(checkpoints["lance"], "--minimax-h3-adaln-online", "true")
    assert [message.split(" does not apply here: ")[0] for message in said] == [
        "--minimax-h3-adaln-online",
        "SGLANG_SANA_WM_SKIP_REFINER",
    ]


@pytest.mark.parametrize(
    ("flag", "component"),
    [
        ("--transfomer-path", "transfomer"),
        ("--component-precisions.scheduler", "scheduler"),
    ],
)
def test_a_component_that_is_not_there_is_refused(
    flag: str, component: str, checkpoints: Any
) -> None:
    expected = rf"{component}: there is no such component; there are .*, tokenizer, vae"
    with pytest.raises(ConfigError, match=expected):
        load(checkpoints["ideogram4"], flag, "fp32")


@pytest.mark.parametrize("family", NAMES)
def test_components_are_those_of_the_pipeline(family: str, checkpoints: Any) -> None:
    row = find_family(family)
    config = row.load(row.pipeline_config)()
    known = {*config.native_only_components, *config.other_components}
    assert known == set(row.load(row.pipeline)._required_config_modules)


def test_a_refusal_comes_before_a_worker_starts(checkpoints: Any) -> None:
    import multiprocessing

    from sglang.multimodal_gen import DiffGenerator

    with pytest.raises(ConfigError, match=r"^--quantization: .*--weight-format fp8$"):
        DiffGenerator.from_pretrained(
            model_path=checkpoints["lance"], quantization="fp8"
        )
    assert multiprocessing.active_children() == []
