# SPDX-License-Identifier: Apache-2.0
"""Flags of one port for two servers, and the options that they make.

``sglang serve MODEL`` and ``sglang-ext-gen serve MODEL`` read the same flags. Each flag
belongs to the port, to a part by its name, or to the family's way of loading; what is
left for a part is given in ``--thinker-args`` and ``--generator-args``. A flag that is
none of these is refused: it would be unclear which server it is meant for.
"""

import argparse
import re
import shlex
from urllib.parse import urlsplit

from sglang_ext_gen.errors import ConfigError
from sglang_ext_gen.gateway.launch import OnePortOptions, PartOptions, run
from sglang_ext_gen.registry import ModelFamily, composed_family_of
from sglang_ext_gen.request import flags

BACKEND = "one-port"
_OWNED = ("--model-path", "--model", "--host", "--port", "--served-model-name")
_DEVICES = re.compile(r"[\w-]+(,[\w-]+)*", re.ASCII)
_DESCRIPTION = """\
Serve a checkpoint that holds a language model (the thinker: chats) and a generator
(pictures, videos): both start here, behind one port. `--model-type diffusion` and
`--model-type llm` serve one of them alone.
"""


def main(model: str | None, argv: list[str]) -> int:
    """Serve until a signal comes; returns the exit code."""
    family = None if model is None else composed_family_of(model)
    if model is None or any(word in ("-h", "--help") for word in argv):
        print(help_text(family))
        return 0
    if family is None:
        raise ConfigError(
            f"{model} does not hold both a language model and a generator of this "
            "package; serve it without --model-type"
        )
    run(parse(family, model, argv))
    return 0


def help_text(family: ModelFamily | None) -> str:
    """Help on all flags; with a family, on its load options, too."""
    return _parser(family).format_help()


def parse(family: ModelFamily, model: str, argv: list[str]) -> OnePortOptions:
    """The options that the flags make.

    Raises:
        ConfigError: A flag is unknown, or its value is not allowed.
        RequestError: A load option of the family has a value that is not allowed.
    """
    parser = _parser(family)
    # A flag without its value, or a number that is none, ends the process with usage.
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ConfigError(
            f"{unknown[0]}: not a flag of the one port; give it to the server that it "
            f'is meant for, as in --thinker-args="{unknown[0]} ..." or '
            f'--generator-args="{unknown[0]} ..."'
        )
    return OnePortOptions(
        family=family,
        model=model,
        served_model_name=arguments.served_model_name or model,
        host=arguments.host,
        port=arguments.port,
        thinker=_thinker(arguments),
        generator=_generator(arguments, family),
    )


def _parser(family: ModelFamily | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"sglang serve MODEL --model-type {BACKEND}",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        # A flag of a part wins over a load option of the same name and meaning.
        conflict_handler="resolve",
    )
    if family is not None:
        flags.add_load_flags(parser, family.title, family.load(family.load_options))
    group = parser.add_argument_group("the port")
    group.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1")
    group.add_argument("--port", type=int, default=30000, help="default: 30000")
    group.add_argument(
        "--served-model-name", metavar="NAME", help="default: MODEL as it is given"
    )
    flags.add_precision_flag(group)
    group = parser.add_argument_group("the thinker")
    group.add_argument(
        "--thinker-tp",
        type=int,
        metavar="N",
        help="devices that share the weights; default: as many as --thinker-devices",
    )
    for part, runtime in (
        ("thinker", "sglang.launch_server"),
        ("generator", "sglang serve --model-type diffusion"),
    ):
        if part == "generator":
            group = parser.add_argument_group("the generator")
        group.add_argument(
            f"--{part}-devices",
            metavar="LIST",
            help="as CUDA_VISIBLE_DEVICES, such as 0,1; default: all",
        )
        group.add_argument(
            f"--{part}-args",
            metavar="TEXT",
            default="",
            help=f"further flags of `{runtime}`, quoted as in a shell",
        )
        group.add_argument(
            f"--{part}-url",
            metavar="URL",
            help="where it runs already; then it is not started here",
        )
    return parser


def _thinker(arguments: argparse.Namespace) -> PartOptions:
    url = _url("thinker", arguments.thinker_url)
    devices = _devices("thinker", arguments.thinker_devices)
    given = _words("thinker", arguments.thinker_args)
    size = arguments.thinker_tp
    if url is not None:
        _refuse_beside_url("thinker", devices or given or size)
        return PartOptions(url=url)
    count = None if devices is None else len(devices.split(","))
    size = count if size is None else size
    if size is not None and not 1 <= size <= (count or size):
        raise ConfigError(f"--thinker-tp: {size} given, expected 1 to {count or 'N'}")
    words = [*_flag("--tp-size", size), *_flag("--dtype", arguments.precision)]
    return PartOptions(devices=devices, arguments=(*words, *given))


def _generator(arguments: argparse.Namespace, family: ModelFamily) -> PartOptions:
    url = _url("generator", arguments.generator_url)
    devices = _devices("generator", arguments.generator_devices)
    given = _words("generator", arguments.generator_args)
    # The names of a part's own flags are not options of the family here.
    options = [
        option
        for option in family.load(family.load_options)
        if option.name not in _FLAGS_OF_PARTS
    ]
    loading = flags.load_words(flags.load_values(arguments, options))
    if url is not None:
        _refuse_beside_url("generator", devices or given or loading)
        return PartOptions(url=url)
    count = None if devices is None else len(devices.split(","))
    words = [
        *_flag("--num-gpus", count),
        *_flag("--precision", arguments.precision),
        *loading,
    ]
    return PartOptions(devices=devices, arguments=(*words, *given))


_FLAGS_OF_PARTS = frozenset(
    f"{part}_{name}"
    for part in ("thinker", "generator")
    for name in ("args", "devices", "tp", "url")
)


def _flag(name: str, value: object) -> list[str]:
    return [] if value is None else [name, str(value)]


def _words(part: str, text: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise ConfigError(f"--{part}-args: {text!r} given: {error}") from error
    for word in words:
        name = word.partition("=")[0]
        if name in _OWNED:
            raise ConfigError(f"--{part}-args: {name} is not for a part to choose")
    return words


def _devices(part: str, text: str | None) -> str | None:
    if text is None:
        return None
    names = text.split(",")
    if not _DEVICES.fullmatch(text) or len(set(names)) != len(names):
        raise ConfigError(
            f"--{part}-devices: {text!r} given, expected different devices separated "
            "by commas, such as 0,1"
        )
    return text


def _url(part: str, text: str | None) -> str | None:
    if text is None:
        return None
    url = urlsplit(text)
    if url.scheme not in ("http", "https") or not url.netloc or url.path.strip("/"):
        raise ConfigError(
            f"--{part}-url: {text!r} given, expected an address without a path, such "
            "as http://10.0.0.7:30000"
        )
    return f"{url.scheme}://{url.netloc}"


def _refuse_beside_url(part: str, given: object) -> None:
    if given:
        raise ConfigError(
            f"--{part}-url: the {part} runs elsewhere; its devices, arguments and "
            "weights are chosen there"
        )
