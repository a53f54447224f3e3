# SPDX-License-Identifier: Apache-2.0
"""``sglang-ext-gen serve``: our flags in SGLang's words, then SGLang's own server."""

import argparse
import sys
from typing import Any

from sglang_ext_gen.cli import flags
from sglang_ext_gen.registry import ModelFamily, family_of, resolve

_DESCRIPTION = """\
Start SGLang's HTTP server with the families of this package. MODEL is a local
checkpoint or a Hugging Face id; models of stock SGLang are served as `sglang serve`
would serve them.

Every other flag is SGLang's; the ones of its diffusion server (--host, --port,
--num-gpus, ...) are listed by `sglang serve --model-type diffusion --help`.
"""


def main(argv: list[str]) -> int:
    """Run the server until it ends; returns the exit code."""
    if not argv or argv[0].startswith("-"):
        parser = _parser(None)
        parser.parse_known_args(argv)  # for --help
        parser.error("MODEL must come first: sglang-ext-gen serve MODEL [flags]")
    arguments = sglang_arguments(argv[0], argv[1:])

    # SGLang reads the command line again in several places.
    sys.argv = ["sglang", "serve", *arguments]
    from sglang.cli.serve import serve

    serve(None, arguments)
    return 0


def sglang_arguments(model: str, argv: list[str]) -> list[str]:
    """The arguments of ``sglang serve`` for a model and our arguments.

    Raises:
        RequestError: A load option has a value that is not allowed.
    """
    family = family_of(model)
    if family is None:
        return ["--model-path", model, *argv]
    arguments, rest = _parser(family).parse_known_args(argv)
    options = flags.load_values(arguments, resolve(family.load_options))
    # Without --backend SGLang runs whatever it cannot resolve through diffusers.
    backend = [] if "--backend" in rest else ["--backend", "sglang"]
    return [
        *("--model-path", model, *backend),
        *flags.precision_arguments(arguments.precision),
        *(word for name, value in options.items() for word in _flag(name, value)),
        *rest,
    ]


def _parser(family: ModelFamily | None) -> argparse.ArgumentParser:
    usage = "MODEL [flags] [SGLang's flags]"
    parser = flags.command_parser(
        "serve", usage, _DESCRIPTION, family, _add_family_flags
    )
    flags.add_precision_flag(parser)
    if family:
        _add_family_flags(parser, family)
    return parser


def _add_family_flags(parser: argparse.ArgumentParser, family: ModelFamily) -> None:
    flags.add_load_flags(parser, family.title, resolve(family.load_options))


def _flag(name: str, value: Any) -> list[str]:
    # The words that the pipeline config's own flags expect (add_pipeline_cli_args).
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return ["--" + name.replace("_", "-"), text]
