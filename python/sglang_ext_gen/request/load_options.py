# SPDX-License-Identifier: Apache-2.0
"""Load options of a family as flags of SGLang's own server."""

import argparse
from collections.abc import Iterable

from sglang_ext_gen.request.fields import RequestField


def add_flags(parser: argparse.ArgumentParser, options: Iterable[RequestField]) -> None:
    """Add a flag for each option, to be called in ``add_pipeline_cli_args``.

    Args:
        parser: Of ``sglang serve --model-path``.
        options: Texts; what is not given stays the pipeline config's default.
    """
    for option in options:
        parser.add_argument(
            "--" + option.name.replace("_", "-"),
            choices=option.choices or None,
            help=option.help,
        )
