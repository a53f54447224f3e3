# SPDX-License-Identifier: Apache-2.0
"""Counts how often a test run starts SGLang: each time costs a minute of imports.

One start is one tree of processes: a server, an engine, a ``DiffGenerator``, a pair of
ranks, a command. ``test/conftest.py`` prints the list and refuses too long a one.
"""

import os

# What a run on two cores can afford in three quarters of an hour.
MAX_STARTS = 38

started: list[str] = []


def count_start(what: str) -> None:
    """Note that the running test starts ``what``."""
    test, _, _ = os.environ.get("PYTEST_CURRENT_TEST", "?").partition("::")
    started.append(f"{test}: {what}")
