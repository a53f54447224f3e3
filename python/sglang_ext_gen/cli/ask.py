# SPDX-License-Identifier: Apache-2.0
"""``sglang-ext-gen ask``: one question about files, answered on the command line.

Starts SGLang's language model server for as long as it takes, and asks it as any client
of OpenAI's API would, so that prompt and sampling are the server's.
"""

import argparse
import base64
import json
import mimetypes
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sglang_ext_gen.errors import ConfigError, GenerationError, RequestError
from sglang_ext_gen.media import limits
from sglang_ext_gen.process.child_server import ChildServer
from sglang_ext_gen.registry import (
    LANGUAGE_MODELS,
    composed_family_of,
    find_row,
    language_model_of,
    near_misses,
)
from sglang_ext_gen.request import flags
from sglang_ext_gen.request.fields import RequestField, check_given, check_prompt

MEDIA = ("image", "video", "audio")
FIELDS = (
    RequestField("prompt", "str", "The question."),
    RequestField("max_tokens", "int", "Longest answer; 256 by default.", minimum=1),
    RequestField(
        "temperature",
        "float",
        "0 for the likeliest answer; by default the model's own.",
        minimum=0,
        maximum=2,
    ),
)
_MAX_TOKENS = 256
# Loading 200 GB from a slow disk takes a while.
_START_SECONDS = 3600.0
_MODEL = "model"

_DESCRIPTION = """\
Ask a question about pictures, videos or sounds. MODEL is a local checkpoint or a
Hugging Face id. The answer is printed as it comes; the server's log goes to stderr.

Any other flag of SGLang's language model server is passed on, for example --tp-size 4
or --dtype float32; `python -m sglang.launch_server --help` lists them. To ask more than
once, start a server: `sglang-ext-gen serve MODEL --model-type llm`.
"""


def main(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = _parser()
    arguments, sglang_arguments = parser.parse_known_args(argv)
    if not argv or argv[0].startswith("-"):
        parser.error("MODEL must come first: sglang-ext-gen ask MODEL --prompt ...")
    title = _title(arguments.model)
    request = _request(arguments)
    server = ChildServer(
        "server",
        [
            *("-m", "sglang.launch_server", "--model-path", arguments.model),
            *("--served-model-name", _MODEL, "--skip-server-warmup"),
            *("--log-level", "warning", *sglang_arguments),
        ],
    )
    print(f"Starting {title} ...", file=sys.stderr)
    server.start()
    try:
        server.wait_until_healthy(_START_SECONDS)
        words = []
        for word in _answer(server.url, request):
            words.append(word)
            if not arguments.json:
                print(word, end="", flush=True)
    finally:
        server.stop()
    if arguments.json:
        answer = {"model": arguments.model, "answer": "".join(words)}
        print(json.dumps(answer, ensure_ascii=False))
    else:
        print()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sglang-ext-gen ask",
        usage="sglang-ext-gen ask MODEL --prompt TEXT [flags] [SGLang's flags]",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", nargs="?")
    flags.add_request_flags(parser, "a question", FIELDS)
    for medium in MEDIA:
        parser.add_argument(
            f"--{medium}",
            action="append",
            default=[],
            metavar="FILE",
            help="a local file; may be repeated",
        )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object and nothing else",
    )
    return parser


def _title(model: str) -> str:
    """The model's name for people.

    Raises:
        ConfigError: It is none of ours.
    """
    if Path(model).is_dir():
        found = language_model_of(Path(model))
    else:
        family = composed_family_of(model)
        found = None if family is None else find_row(family.name)
    if found is None:
        titles = ", ".join(row.title for row in LANGUAGE_MODELS)
        notes = "".join(f"; {note}" for note in near_misses(Path(model)))
        raise ConfigError(f"{model} is no checkpoint of {titles}{notes}")
    return found.title


def _request(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments of OpenAI's client.

    Raises:
        RequestError: A field is missing or not allowed, or a file cannot be read.
    """
    fields = check_given(FIELDS, flags.request_values(arguments, FIELDS))
    prompt = fields.pop("prompt", None)
    check_prompt(prompt)
    content = [
        {
            "type": f"{medium}_url",
            f"{medium}_url": {"url": _data_url(medium, Path(file))},
        }
        for medium in MEDIA
        for file in getattr(arguments, medium)
    ]
    content.append({"type": "text", "text": prompt})
    return {
        "model": _MODEL,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": _MAX_TOKENS,
        "stream": True,
        **fields,
    }


def _data_url(medium: str, file: Path) -> str:
    try:
        size = file.stat().st_size
        content = file.read_bytes() if size <= limits.MAX_MEDIA_BYTES else None
    except OSError as error:
        raise RequestError(
            medium, f"{file} cannot be read: {error.strerror}"
        ) from error
    if content is None:
        raise RequestError(
            medium, f"{file} has {size} bytes, at most {limits.MAX_MEDIA_BYTES}"
        )
    kind = mimetypes.guess_type(file.name)[0] or f"{medium}/*"
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _answer(url: str, request: dict[str, Any]) -> Iterator[str]:
    """The answer in pieces.

    Raises:
        RequestError: The server refuses the question.
        GenerationError: It fails.
    """
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    try:
        for part in client.chat.completions.create(**request):
            if part.choices:
                yield part.choices[0].delta.content or ""
    except openai.BadRequestError as error:
        raise RequestError(error.param or "request", error.message) from error
    except openai.OpenAIError as error:
        raise GenerationError(str(error)) from error
