# SPDX-License-Identifier: Apache-2.0
"""Flags of one port for two servers, and the options that they make.

``sglang serve MODEL`` and ``sglang-ext-gen serve MODEL`` read the same flags. Each flag
belongs to the port, to an upstream by its name, or to the family's way of loading; what
is left for an upstream is given in ``--thinker-args`` and ``--generator-args``. A flag
that is none of these is refused: it would be unclear which server it is meant for.
"""

import argparse
import re
import shlex
from dataclasses import replace
from urllib.parse import urlsplit

from sglang_ext_gen.errors import ConfigError
from sglang_ext_gen.gateway.launch import GatewayOptions, UpstreamOptions, run
from sglang_ext_gen.registry import ModelFamily, composed_family_of
from sglang_ext_gen.request import flags
from sglang_ext_gen.request.fields import RequestField

BACKEND = "one-port"
_OWNED = ("--model-path", "--model", "--host", "--port", "--served-model-name")
_DEVICES = re.compile(r"[\w-]+(,[\w-]+)*", re.ASCII)
# Title of an upstream -> the command that runs it.
_UPSTREAMS = {
    "thinker": "sglang.launch_server",
    "generator": "sglang serve --model-type diffusion",
}
# Flags here; of a load option with the same name, this is the meaning.
_FLAGS = ("args", "devices", "tp", "url")
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


def parse(family: ModelFamily, model: str, argv: list[str]) -> GatewayOptions:
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
    return GatewayOptions(
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
    )
    if family is not None:
        flags.add_load_flags(parser, family.title, _load_options(family))
    group = parser.add_argument_group("the port")
    group.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1")
    group.add_argument("--port", type=int, default=30000, help="default: 30000")
    group.add_argument(
        "--served-model-name", metavar="NAME", help="default: MODEL as it is given"
    )
    flags.add_precision_flag(group)
    for title, command in _UPSTREAMS.items():
        group = parser.add_argument_group(f"the {title}")
        if title == "thinker":
            group.add_argument(
                "--thinker-tp",
                type=int,
                metavar="N",
                help="devices that share the weights; default: as many as "
                "--thinker-devices",
            )
        group.add_argument(
            f"--{title}-devices",
            metavar="LIST",
            help="as CUDA_VISIBLE_DEVICES, such as 0,1; default: all",
        )
        group.add_argument(
            f"--{title}-args",
            metavar="TEXT",
            default="",
            help=f"further flags of `{command}`, quoted as in a shell",
        )
        group.add_argument(
            f"--{title}-url",
            metavar="URL",
            help="where it runs already; then it is not started here",
        )
    return parser


def _load_options(family: ModelFamily) -> list[RequestField]:
    """Load options of the family, but for those that the gateway's flags replace."""
    replaced = {f"{title}_{flag}" for title in _UPSTREAMS for flag in _FLAGS}
    options = family.load(family.load_options)
    return [option for option in options if option.name not in replaced]


def _thinker(arguments: argparse.Namespace) -> UpstreamOptions:
    size = arguments.thinker_tp
    given = _given("thinker", arguments, size)
    if given.url is not None:
        return given
    count = _device_count(given)
    size = count if size is None else size
    if size is not None and not 1 <= size <= (count or size):
        raise ConfigError(f"--thinker-tp: {size} given, expected 1 to {count or 'N'}")
    words = [*_flag("--tp-size", size), *_flag("--dtype", arguments.precision)]
    return replace(given, arguments=(*words, *given.arguments))


def _generator(arguments: argparse.Namespace, family: ModelFamily) -> UpstreamOptions:
    options = flags.load_values(arguments, _load_options(family))
    given = _given("generator", arguments, options)
    if given.url is not None:
        return given
    words = [
        *_flag("--num-gpus", _device_count(given)),
        *_flag("--precision", arguments.precision),
        *flags.load_words(options),
    ]
    return replace(given, arguments=(*words, *given.arguments))


def _given(
    title: str, arguments: argparse.Namespace, further: object
) -> UpstreamOptions:
    """What an upstream's own flags say.

    Args:
        title: Of the upstream.
        arguments: Of the command line.
        further: Other flags that only a server that is started here could follow.
    """
    values = vars(arguments)
    options = UpstreamOptions(
        url=_url(title, values[f"{title}_url"]),
        devices=_devices(title, values[f"{title}_devices"]),
        arguments=_words(title, values[f"{title}_args"]),
    )
    if options.url is not None and (options.devices or options.arguments or further):
        raise ConfigError(
            f"--{title}-url: the {title} runs elsewhere; its devices, arguments and "
            "weights are chosen there"
        )
    return options


def _device_count(options: UpstreamOptions) -> int | None:
    return None if options.devices is None else len(options.devices.split(","))


def _flag(name: str, value: object) -> list[str]:
    return [] if value is None else [name, str(value)]


def _words(title: str, text: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise ConfigError(f"--{title}-args: {text!r} given: {error}") from error
    for word in words:
        name = word.partition("=")[0]
        if name in _OWNED:
            raise ConfigError(f"--{title}-args: {name} is not for a part to choose")
    return words


def _devices(title: str, text: str | None) -> str | None:
    if text is None:
        return None
    names = text.split(",")
    if not _DEVICES.fullmatch(text) or len(set(names)) != len(names):
        raise ConfigError(
            f"--{title}-devices: {text!r} given, expected different devices separated "
            "by commas, such as 0,1"
        )
    return text


def _url(title: str, text: str | None) -> str | None:
    if text is None:
        return None
    url = urlsplit(text)
    if url.scheme not in ("http", "https") or not url.netloc or url.path.strip("/"):
        raise ConfigError(
            f"--{title}-url: {text!r} given, expected an address without a path, such "
            "as http://10.0.0.7:30000"
        )
    return f"{url.scheme}://{url.netloc}"
