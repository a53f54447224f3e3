# SPDX-License-Identifier: Apache-2.0
"""Imports that wait until a test runs, so that collecting tests is fast."""

from importlib import import_module
from typing import Any


class LazyModule:
    """A module by its name, imported when a public name of it is first used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):  # pytest looks for marks of its own
            raise AttributeError(attribute)
        return getattr(import_module(self._name), attribute)
