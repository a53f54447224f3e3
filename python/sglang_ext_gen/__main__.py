# SPDX-License-Identifier: Apache-2.0
"""``python -m sglang_ext_gen COMMAND``: finds the command and turns errors into codes.

SGLang starts its workers by importing this module again, so importing it does nothing.
"""

import pkgutil
import sys
import textwrap

from sglang_ext_gen import __version__, envs
from sglang_ext_gen.errors import ConfigError, ExtGenError, RequestError

COMMANDS = {
    "generate": "make pictures or videos from the command line",
    "ask": "ask a question about pictures, videos or sounds",
    "serve": "start SGLang's HTTP server",
    "doctor": "check the installation, or a checkpoint",
    "convert": "write the pickles of a checkpoint as safetensors",
    "demo": "write a tiny checkpoint and run it, on any device",
    "tiny": "write a tiny random checkpoint in a family's released layout",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    command, arguments = (argv[0], argv[1:]) if argv else ("--help", [])
    if command in ("-h", "--help"):
        print(_help())
        return 0
    if command == "--version":
        print(f"sglang-ext-gen {__version__}")
        return 0
    if command not in COMMANDS:
        print(f"sglang-ext-gen: unknown command {command!r}\n", file=sys.stderr)
        print(_help(), file=sys.stderr)
        return 2
    try:
        envs.refuse_unknown_variables()
        return pkgutil.resolve_name(f"sglang_ext_gen.cli.{command}:main")(arguments)
    except ExtGenError as error:
        print(f"sglang-ext-gen {command}: {error}", file=sys.stderr)
        return 2 if isinstance(error, (RequestError, ConfigError)) else 1


def _help() -> str:
    commands = "\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items())
    variables = "\n".join(
        f"  {variable.name} ({variable.kind})\n"
        + textwrap.indent(textwrap.fill(variable.effect, 76), "      ")
        for variable in envs.VARIABLES
    )
    return (
        "usage: sglang-ext-gen COMMAND [ARGUMENTS]\n\n"
        "Image and video generation families for stock SGLang.\n\n"
        f"commands:\n{commands}\n\n"
        "sglang-ext-gen COMMAND --help says more; --version prints the version.\n\n"
        f"environment:\n{variables}"
    )


if __name__ == "__main__":
    sys.exit(main())
