# SPDX-License-Identifier: Apache-2.0
"""``sglang-ext-gen demo``: a tiny checkpoint, a real run, a picture, the times."""

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sglang_ext_gen.cli import running
from sglang_ext_gen.errors import ConfigError
from sglang_ext_gen.registry import FAMILIES, ModelFamily, find_family
from sglang_ext_gen.request import flags


def main(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = _parser()
    family = find_family(parser.parse_known_args(argv)[0].family)
    load_options = family.load(family.load_options)
    flags.add_load_flags(parser, family.title, load_options)
    arguments, sglang_arguments = parser.parse_known_args(argv)
    options = flags.load_values(arguments, load_options)
    requests = _requests(family, arguments.steps)
    checkpoint = _checkpoint(family, arguments.output / f"{family.name}-tiny")
    sglang_arguments += flags.precision_arguments(_precision())
    lines, made = [], {}
    with ExitStack() as stack:
        chat = None
        if family.demo_chat is not None:
            found, chat = stack.enter_context(family.load(family.demo_chat)(checkpoint))
            options |= found
        generator = stack.enter_context(
            running.started_generator(
                family, str(checkpoint), options, sglang_arguments
            )
        )
        for number, request in enumerate(requests, start=1):
            # SGLang adds the suffix of what comes out.
            name = {"output_file_name": f"{family.name}-{number}"}
            outputs = running.output_fields(str(arguments.output))
            fields = {**request, **outputs, **name}
            if "image_path" in fields:  # a file, or an earlier picture by its name
                source = fields["image_path"]
                fields["image_path"] = made.get(str(source), source)
            description = running.describe(running.run_request(generator, fields))
            made[name["output_file_name"]] = description["outputs"][0]["path"]
            lines.append(running.report(description))
            if chat is not None and number == 1:
                lines.append(f"  {chat(Path(description['outputs'][0]['path']))}")
    print("\n".join(lines))
    return 0


def _parser() -> argparse.ArgumentParser:
    names = ", ".join(family.name for family in FAMILIES)
    parser = argparse.ArgumentParser(
        prog="sglang-ext-gen demo",
        description="Write a tiny random checkpoint in the released layout and run it "
        "through SGLang's DiffGenerator on whatever device there is, the CPU included. "
        "The weights are random, so what comes out is noise; the path is the real one.",
        epilog="The family's loading options are flags, too, such as --weight-format. "
        "Other flags are passed on to SGLang, for example --num-gpus 2.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "family",
        metavar="FAMILY",
        nargs="?",
        default=FAMILIES[0].name,
        help=f"one of: {names} (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("outputs/demo"),
        metavar="DIR",
        help="for the checkpoint and the pictures (default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps")
    return parser


def _precision() -> flags.Precision | None:
    import torch

    # Convolutions in bfloat16 take a hundred times as long on most CPUs.
    return None if torch.cuda.is_available() else "float32"


def _requests(family: ModelFamily, steps: int | None) -> list[dict[str, Any]]:
    requests = family.load(family.demo_requests)()
    if steps is not None:
        requests = [{**request, "num_inference_steps": steps} for request in requests]
    return [family.load(family.check_request)(request) for request in requests]


def _checkpoint(family: ModelFamily, path: Path) -> Path:
    """The tiny checkpoint in ``path``: written now, or by an earlier demo."""
    if not path.exists():
        print(f"writing a tiny {family.title} checkpoint to {path}")
        family.load(family.write_tiny)(path)
    problems = family.load(family.check_checkpoint)(path)
    if problems:
        raise ConfigError(f"{path} is damaged ({problems[0]}); delete it and try again")
    return path
