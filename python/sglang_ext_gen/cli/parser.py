# SPDX-License-Identifier: Apache-2.0
"""The parser of a command whose flags depend on the model."""

import argparse
from collections.abc import Callable

from sglang_ext_gen.registry import ModelFamily, enabled_families


def command_parser(
    command: str,
    usage: str,
    description: str,
    family: ModelFamily | None,
    add_flags: Callable[[argparse.ArgumentParser, ModelFamily], None],
) -> argparse.ArgumentParser:
    """The parser of a command whose flags depend on the model.

    Args:
        command: Its name.
        usage: What follows the name.
        description: Shown as it is.
        family: Of the model; without one the help lists the flags of all families.
        add_flags: Adds a family's flags. The caller does so for ``family``, last.
    """
    return argparse.ArgumentParser(
        prog=f"sglang-ext-gen {command}",
        usage=f"sglang-ext-gen {command} {usage}",
        description=description,
        epilog=None if family else help_of_families(add_flags),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def help_of_families(
    add_flags: Callable[[argparse.ArgumentParser, ModelFamily], None],
) -> str:
    """Help on the flags of every enabled family, as the end of a help text.

    One parser each, because two families may have a field of the same name.
    """
    texts = []
    for family in enabled_families():
        parser = argparse.ArgumentParser(add_help=False, usage=argparse.SUPPRESS)
        add_flags(parser, family)
        texts.append(parser.format_help().strip())
    return "\n\n".join(texts)
