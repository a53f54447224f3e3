# SPDX-License-Identifier: Apache-2.0
"""Every environment variable of this package: type, default, effect.

How a model is loaded is set by its pipeline config (``fp8_mode=...`` in Python,
``--fp8-mode`` on a command line), not here: SGLang carries that to its workers.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from sglang_ext_gen.errors import ConfigError

PREFIX = "SGLANG_EXT_GEN_"


@dataclass(frozen=True)
class EnvironmentVariable:
    """One variable, as ``doctor`` and the documentation show it."""

    name: str
    kind: str
    default: str
    effect: str


DISABLE = EnvironmentVariable(
    name="SGLANG_EXT_GEN_DISABLE",
    kind="comma-separated names of families",
    default="",
    effect="Leaves these families to stock SGLang, as if this package lacked them.",
)

ALLOW_CONTROL_ROUTES = EnvironmentVariable(
    name="SGLANG_EXT_GEN_ALLOW_CONTROL_ROUTES",
    kind="0 or 1",
    default="0",
    effect="Opens the HTTP routes that change weights, adapters or memory of a "
    "running server or record rollouts, and the request fields for profiling and "
    "upscaling. Some load what a client names: for trusted networks only.",
)

MEDIA_HOSTS = EnvironmentVariable(
    name="SGLANG_EXT_GEN_MEDIA_HOSTS",
    kind="comma-separated host names",
    default="",
    effect="Media may be fetched from these hosts even if their address is private.",
)

MEDIA_FOLDER = EnvironmentVariable(
    name="SGLANG_EXT_GEN_MEDIA_FOLDER",
    kind="folder",
    default="",
    effect="Requests to the language model runtime may name media files in this "
    "folder; without it they may name none.",
)

VARIABLES: tuple[EnvironmentVariable, ...] = (
    DISABLE,
    ALLOW_CONTROL_ROUTES,
    MEDIA_HOSTS,
    MEDIA_FOLDER,
)


def disabled_families(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Names given in ``SGLANG_EXT_GEN_DISABLE``, unchecked."""
    names = environ.get(DISABLE.name, DISABLE.default).split(",")
    return tuple(name.strip() for name in names if name.strip())


def allows_control_routes(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether ``SGLANG_EXT_GEN_ALLOW_CONTROL_ROUTES`` is 1.

    Raises:
        ConfigError: It is neither 0 nor 1.
    """
    name = ALLOW_CONTROL_ROUTES.name
    value = environ.get(name, ALLOW_CONTROL_ROUTES.default)
    if value not in ("0", "1"):
        raise ConfigError(f"{name}: {value!r} given, expected 0 or 1")
    return value == "1"


def media_hosts(environ: Mapping[str, str] = os.environ) -> frozenset[str]:
    """Host names given in ``SGLANG_EXT_GEN_MEDIA_HOSTS``, in lower case."""
    names = environ.get(MEDIA_HOSTS.name, MEDIA_HOSTS.default).split(",")
    return frozenset(name.strip().lower() for name in names if name.strip())


def media_folder(environ: Mapping[str, str] = os.environ) -> str | None:
    """The folder given in ``SGLANG_EXT_GEN_MEDIA_FOLDER``, or None."""
    return environ.get(MEDIA_FOLDER.name) or None


def unknown_variables(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Variables that carry our prefix and mean nothing, most likely misspelt."""
    known = {variable.name for variable in VARIABLES}
    return tuple(
        sorted(
            name for name in environ if name.startswith(PREFIX) and name not in known
        )
    )


def refuse_unknown_variables(environ: Mapping[str, str] = os.environ) -> None:
    """Raise for variables with our prefix that this package does not know.

    Raises:
        ConfigError: Names them and the known ones.
    """
    unknown = unknown_variables(environ)
    if unknown:
        known = ", ".join(variable.name for variable in VARIABLES)
        raise ConfigError(
            f"unknown environment variable {', '.join(unknown)}; known: {known}"
        )
