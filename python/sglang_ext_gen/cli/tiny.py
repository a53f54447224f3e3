# SPDX-License-Identifier: Apache-2.0
"""``sglang-ext-gen tiny``: write a tiny checkpoint in a family's released layout."""

import argparse
from pathlib import Path

from sglang_ext_gen.registry import FAMILIES, LANGUAGE_MODELS, find_row


def main(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="sglang-ext-gen tiny",
        description="Write a tiny checkpoint: every file and tensor name of the "
        "release, small shapes, random weights. The same seed gives the same bytes.",
    )
    names = ", ".join(row.name for row in (*FAMILIES, *LANGUAGE_MODELS))
    parser.add_argument("family", metavar="FAMILY", help=f"one of: {names}")
    parser.add_argument("directory", metavar="DIR", type=Path, help="new or empty")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    family = find_row(arguments.family)
    family.load(family.write_tiny)(arguments.directory, seed=arguments.seed)
    print(f"wrote a tiny {family.title} checkpoint to {arguments.directory}")
    return 0
