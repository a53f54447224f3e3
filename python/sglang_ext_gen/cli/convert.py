# SPDX-License-Identifier: Apache-2.0
"""``sglang-ext-gen convert``: write a checkpoint's pickles as safetensors, once.

The loaders take the converted files from then on and never open the pickles again.
"""

import argparse
from pathlib import Path

from sglang_ext_gen.errors import ConfigError
from sglang_ext_gen.registry import family_of


def main(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="sglang-ext-gen convert",
        description="Read the .pt and .pth files of a checkpoint without running any "
        "code in them and write the same tensors as .safetensors beside them. The "
        "pickles stay; they are not needed any more.",
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="a checkpoint")
    directory = parser.parse_args(argv).directory
    family = family_of(directory) if directory.is_dir() else None
    if family is None:
        raise ConfigError(f"{directory} is no checkpoint of an enabled family")
    written = [] if family.convert is None else family.load(family.convert)(directory)
    for path in written:
        print(path)
    if not written:
        print(f"{family.title}: there are no pickles in {directory}")
    return 0
