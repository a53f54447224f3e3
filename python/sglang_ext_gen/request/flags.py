# SPDX-License-Identifier: Apache-2.0
"""Command-line flags made from tables of ``RequestField``.

A flag only turns text into a value; whether the value is allowed is the field's own
check, so that every interface refuses the same, in the same words.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from sglang_ext_gen.request.fields import RequestField

Precision = Literal["float32", "bfloat16", "float16"]

# Ours -> SGLang's; one flag for all components instead of one for each.
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def add_request_flags(
    parser: argparse.ArgumentParser, title: str, fields: Iterable[RequestField]
) -> None:
    """Add one flag per request field that the command line may set."""
    group = parser.add_argument_group(f"request fields of {title}")
    for field in fields:
        if field.interfaces == "python":
            continue
        flag = "--" + field.name.replace("_", "-")
        help_text = f"{field.help} Expected: {field.allowed()}."
        if field.kind == "bool":
            group.add_argument(
                flag, action=argparse.BooleanOptionalAction, help=_escape(help_text)
            )
        elif field.kind == "strs":
            group.add_argument(
                flag,
                action="append",
                metavar="TEXT",
                help=_escape(f"{field.help} May be repeated."),
            )
        else:
            group.add_argument(
                flag,
                nargs="+" if field.kind == "floats" else None,
                type=_READERS.get(field.kind, _number),
                metavar=_METAVARS.get(field.kind, "X"),
                help=_escape(help_text),
            )


def request_values(
    arguments: argparse.Namespace, fields: Iterable[RequestField]
) -> dict[str, Any]:
    """The request fields given on the command line, unchecked."""
    values = {
        field.name: vars(arguments)[field.name]
        for field in fields
        if field.interfaces != "python" and vars(arguments)[field.name] is not None
    }
    for field in fields:
        # One text is the usual case; a list of one means the same.
        if field.kind == "strs" and len(values.get(field.name, ())) == 1:
            values[field.name] = values[field.name][0]
    return values


def add_load_flags(
    parser: argparse.ArgumentParser, title: str, options: Iterable[RequestField]
) -> None:
    """Add one flag per load option; a ``load_x`` option becomes ``--no-x``."""
    group = parser.add_argument_group(f"how {title} is loaded")
    for option in options:
        if option.kind == "bool":
            group.add_argument(
                "--no-" + option.name.removeprefix("load_").replace("_", "-"),
                dest=option.name,
                action="store_const",
                const=False,
                help=_escape(option.help),
            )
        else:
            group.add_argument(
                "--" + option.name.replace("_", "-"),
                dest=option.name,
                type=_number if option.kind in ("int", "float") else str,
                metavar="|".join(option.choices) or "TEXT",
                help=_escape(option.help),
            )


def load_values(
    arguments: argparse.Namespace, options: Iterable[RequestField]
) -> dict[str, Any]:
    """The load options given on the command line, checked.

    Raises:
        RequestError: Names the option and what is allowed.
    """
    return {
        option.name: option.check(vars(arguments)[option.name])
        for option in options
        if vars(arguments)[option.name] is not None
    }


def load_words(options: Mapping[str, Any]) -> list[str]:
    """Load options as the words that the pipeline config's own flags expect."""
    words = []
    for name, value in options.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        words += ["--" + name.replace("_", "-"), text]
    return words


def add_precision_flag(parser: argparse._ActionsContainer) -> None:
    """Add ``--precision``, one word for all components of a pipeline."""
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="compute in this type in all components (default: the model's own)",
    )


def precision_arguments(precision: Precision | None) -> list[str]:
    """SGLang's flags for ``--precision``."""
    if precision is None:
        return []
    name = PRECISIONS[precision]
    flags = (
        *("--dit-precision", "--vae-precision"),
        *("--text-encoder-precisions", "--image-encoder-precision"),
    )
    return [word for flag in flags for word in (flag, name)]


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _object(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


# How the text of a flag is read and what stands for it in the help; numbers otherwise.
_READERS = {"str": str, "object": _object}
_METAVARS = {"str": "TEXT", "int": "N", "object": "JSON"}


def _escape(text: str) -> str:
    # argparse expands % in help texts.
    return text.replace("%", "%%")
