# SPDX-License-Identifier: Apache-2.0
"""What SGLang calls: entry points, and every stock symbol whose behaviour we change.

entry_points.py     functions that SGLang loads, one a runtime
early.py            our families known before SGLang loads plugins
hooks.py            the ledger: each hook, its reason, when it can go
compat.py           the SGLang release, its symbols and their parameters
resolution.py       whose checkpoint is this; replacements that ask first
language_models.py  our models on the language model runtime
generate.py         ``DiffGenerator.generate`` for our families
"""
