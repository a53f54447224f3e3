# SPDX-License-Identifier: Apache-2.0
"""``sglang-ext-gen serve``: our flags in SGLang's words, then SGLang's own server."""

import argparse
import sys

from sglang_ext_gen.cli.parser import command_parser
from sglang_ext_gen.gateway import arguments as gateway
from sglang_ext_gen.registry import (
    ModelFamily,
    composed_family_of,
    family_of,
)
from sglang_ext_gen.request import flags

_DESCRIPTION = """\
Start SGLang's HTTP server with the families of this package. MODEL is a local
checkpoint or a Hugging Face id; models of stock SGLang are served as `sglang serve`
would serve them. A checkpoint that holds a language model and a generator is served
as a whole, behind one port: `sglang-ext-gen serve MODEL --help` lists the flags of
that. --model-type diffusion or llm serves one of the two.

Every other flag is SGLang's; the ones of its diffusion server (--host, --port,
--num-gpus, ...) are listed by `sglang serve --model-type diffusion --help`.
"""


def main(argv: list[str]) -> int:
    """Run the server until it ends; returns the exit code."""
    if not argv or argv[0].startswith("-"):
        parser = _parser(None)
        parser.parse_known_args(argv)  # for --help
        parser.error("MODEL must come first: sglang-ext-gen serve MODEL [flags]")
    model, words = argv[0], argv[1:]
    backend, rest = _split_model_type(words)
    if backend is None and composed_family_of(model) is not None:
        backend = gateway.BACKEND
    if backend == gateway.BACKEND:
        return gateway.main(model, rest)
    arguments = sglang_arguments(model, words)

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
    backend, _ = _split_model_type(argv)
    if family is None or backend not in (None, "diffusion"):
        return ["--model-path", model, *argv]
    arguments, rest = _parser(family).parse_known_args(argv)
    options = flags.load_values(arguments, family.load(family.load_options))
    # Without --backend SGLang runs whatever it cannot resolve through diffusers.
    backend = [] if "--backend" in rest else ["--backend", "sglang"]
    return [
        *("--model-path", model, *backend),
        *flags.precision_arguments(arguments.precision),
        *flags.load_words(options),
        *rest,
    ]


def _split_model_type(argv: list[str]) -> tuple[str | None, list[str]]:
    """SGLang's choice of a server, and the other words; None means that it chooses."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model-type")
    arguments, rest = parser.parse_known_args(argv)
    chosen = None if arguments.model_type == "auto" else arguments.model_type
    return chosen, rest


def _parser(family: ModelFamily | None) -> argparse.ArgumentParser:
    usage = "MODEL [flags] [SGLang's flags]"
    parser = command_parser("serve", usage, _DESCRIPTION, family, _add_family_flags)
    flags.add_precision_flag(parser)
    if family:
        _add_family_flags(parser, family)
    return parser


def _add_family_flags(parser: argparse.ArgumentParser, family: ModelFamily) -> None:
    flags.add_load_flags(parser, family.title, family.load(family.load_options))
