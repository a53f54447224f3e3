# SPDX-License-Identifier: Apache-2.0
"""Environment variables: reading, and refusing what means nothing."""

from pathlib import Path

import pytest

from sglang_ext_gen import envs
from sglang_ext_gen.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (None, ()),
        ("", ()),
        (" , ", ()),
        ("ideogram4", ("ideogram4",)),
        ("ideogram4, lance,", ("ideogram4", "lance")),
    ],
)
def test_disabled_families(value, names):
    environ = {} if value is None else {"SGLANG_EXT_GEN_DISABLE": value}
    assert envs.disabled_families(environ) == names


def test_unknown_variables_are_named():
    environ = {
        "SGLANG_EXT_GEN_DISABLED": "1",
        "SGLANG_EXT_GEN_A": "",
        "SGLANG_EXT_GEN_DISABLE": "",
        "SGLANG_PLUGINS": "x",
    }
    unknown = ("SGLANG_EXT_GEN_A", "SGLANG_EXT_GEN_DISABLED")
    assert envs.unknown_variables(environ) == unknown
    with pytest.raises(
        ConfigError, match=r"SGLANG_EXT_GEN_DISABLED; known: .*_DISABLE"
    ):
        envs.refuse_unknown_variables(environ)


def test_known_variables_pass():
    envs.refuse_unknown_variables({variable.name: "" for variable in envs.VARIABLES})


def test_each_variable_is_described():
    readme = Path(__file__).parents[3].joinpath("README.md").read_text("utf-8")
    names = [variable.name for variable in envs.VARIABLES]
    assert len(set(names)) == len(names)
    for variable in envs.VARIABLES:
        assert variable.name.startswith(envs.PREFIX)
        assert variable.kind
        assert variable.effect.endswith(".")
        assert f"| `{variable.name}` |" in readme
