# SPDX-License-Identifier: Apache-2.0
"""What SGLang calls: entry points, and every stock symbol whose behaviour we change.

    entry_points.py     functions that SGLang loads, one a runtime
    early.py            our families known before SGLang loads plugins
    hooks.py            the ledger: each hook, its reason, when it can go
    compat.py           is the installed SGLang the one that we rely on
    stock_uses.py       what our source takes from SGLang
    couplings.py        what we rely on and no import shows
    resolution.py       whose checkpoint is this; replacements that ask first
    language_models.py  our models on the language model runtime
    generate.py         ``DiffGenerator.generate`` for our families

Only what ``hooks.py`` lists changes a function of SGLang's; ``early.py`` sees to it
that this comes in time.
"""
