# SPDX-License-Identifier: Apache-2.0
"""``sglang-ext-gen generate``: one request, from flags to files.

Which flags there are depends on the model, so MODEL comes first.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from sglang_ext_gen.cli import running
from sglang_ext_gen.cli.parser import command_parser
from sglang_ext_gen.errors import ConfigError, RequestError
from sglang_ext_gen.registry import (
    ModelFamily,
    enabled_families,
    family_of,
    near_misses,
)
from sglang_ext_gen.request import flags

_DESCRIPTION = """\
Generate from the command line. MODEL is a local checkpoint or a Hugging Face id.

Any other flag of SGLang's diffusion server is passed on, for example --num-gpus 2
--tp-size 2, --ulysses-degree 2 or --enable-cfg-parallel; all of them are listed by
`sglang serve --model-type diffusion --help`.
"""


def main(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    has_model = bool(argv) and not argv[0].startswith("-")
    family = _find(argv[0]) if has_model else None
    parser = _parser(family)
    arguments, sglang_arguments = parser.parse_known_args(argv)
    if family is None:
        parser.error(
            "MODEL must come first: sglang-ext-gen generate MODEL --prompt ..."
        )

    request = _request(arguments, family)
    load_options = flags.load_values(arguments, family.load(family.load_options))
    sglang_arguments += flags.precision_arguments(arguments.precision)
    if not arguments.json:
        description = _run(arguments, family, request, load_options, sglang_arguments)
        print(running.report(description))
        return 0
    with running.stdout_to_stderr() as stdout:
        description = _run(arguments, family, request, load_options, sglang_arguments)
        os.write(stdout, (json.dumps(description, ensure_ascii=False) + "\n").encode())
    return 0


def _find(model: str) -> ModelFamily:
    """The family of a model; what else it is, or lacks, is said on stderr.

    Raises:
        ConfigError: It is none of ours; says what it is, where that can be told.
    """
    family = family_of(model)
    notes = near_misses(Path(model)) if Path(model).exists() else []
    if family is None:
        titles = ", ".join(family.title for family in enabled_families())
        kind = "folder" if Path(model).is_dir() else "name"
        told = "".join(f"; {note}" for note in notes)
        raise ConfigError(
            f"the {kind} {model} is no checkpoint of {titles}{told}; for other models "
            "use `sglang generate`"
        )
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return family


def _parser(family: ModelFamily | None) -> argparse.ArgumentParser:
    """The parser for a model of ``family``; without one it can only print help."""
    usage = "MODEL --prompt TEXT [flags] [SGLang's flags]"
    parser = command_parser("generate", usage, _DESCRIPTION, family, _add_family_flags)
    parser.add_argument("model", metavar="MODEL", nargs="?")
    parser.add_argument(
        "--output",
        default="outputs",
        metavar="PATH",
        help="a directory, or the name of a .png, .jpg, .webp or .mp4 file "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--prompt-file",
        metavar="FILE",
        help="read one prompt from a file, - for stdin; handy for JSON captions",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object and nothing else; the log goes to stderr",
    )
    flags.add_precision_flag(parser)
    if family:
        _add_family_flags(parser, family)
    return parser


def _add_family_flags(parser: argparse.ArgumentParser, family: ModelFamily) -> None:
    flags.add_request_flags(parser, family.title, family.load(family.request_fields))
    flags.add_load_flags(parser, family.title, family.load(family.load_options))


def _request(arguments: argparse.Namespace, family: ModelFamily) -> dict[str, Any]:
    """The checked request fields.

    Raises:
        RequestError: Names the field and what is allowed.
    """
    fields = family.load(family.request_fields)
    values = flags.request_values(arguments, fields)
    if arguments.prompt_file is not None:
        if "prompt" in values:
            raise RequestError("prompt", "also given as --prompt-file; choose one")
        values["prompt"] = _read_prompt(arguments.prompt_file)
    return family.load(family.check_request)(values)


def _read_prompt(file: str) -> str:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError("prompt", f"cannot be read from {file}: {error}") from error
    return text.strip()


def _run(
    arguments: argparse.Namespace,
    family: ModelFamily,
    request: dict[str, Any],
    load_options: dict[str, Any],
    sglang_arguments: list[str],
) -> dict[str, Any]:
    fields = {**request, **running.output_fields(arguments.output)}
    with running.started_generator(
        family, arguments.model, load_options, sglang_arguments, [fields]
    ) as generator:
        description = running.describe(running.run_request(generator, fields))
    return {
        "model": arguments.model,
        "family": family.name,
        "request": request,
        **description,
    }
