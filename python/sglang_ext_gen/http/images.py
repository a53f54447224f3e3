# SPDX-License-Identifier: Apache-2.0
"""Fields of ``POST /v1/images/generations``: OpenAI's, stock's and the family's.

A request leaves here as a flat body that holds checked values only, so what was
checked is what runs. Every name is in one of four groups:

- the family's own fields, under their own names, except that ``n`` means
  ``num_outputs_per_prompt`` and ``size`` may stand for ``width`` and ``height``; a
  name that the family gives a meaning has none of the following;
- ``FORWARDED``: fields of the protocol that stock honours, and ``OPERATORS`` where the
  operator opened the control routes;
- ``WITHOUT_EFFECT``: fields that common clients send and that ask for nothing;
- all others are refused. ``REFUSED`` says why for those that stock would have taken.

Differences from stock: ``n`` is refused outside its range instead of clamped; there
is no default size but the family's. As in stock, ``model`` may be any name: a server
serves one model.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sglang_ext_gen.envs import ALLOW_CONTROL_ROUTES
from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.http.bodies import unwrap_fields
from sglang_ext_gen.http.errors import Refusal, shorten
from sglang_ext_gen.http.served_model import ServedModel
from sglang_ext_gen.request.fields import RequestField, check_given

PATH = "/v1/images/generations"

OUTPUT_COMPRESSION = RequestField(
    "output_compression",
    "int",
    "JPEG and WebP quality, PNG effort.",
    minimum=0,
    maximum=100,
)
ENHANCE_PROMPT = RequestField(
    "enhance_prompt",
    "bool",
    "Let the operator's prompt enhancer rewrite the prompt.",
)
FORWARDED: tuple[RequestField, ...] = (
    RequestField(
        "response_format",
        "str",
        "Pictures as base64 text or as paths on this server.",
        choices=("url", "b64_json"),
    ),
    RequestField(
        "output_format",
        "str",
        "File format.",
        choices=("png", "jpeg", "jpg", "webp"),
    ),
    OUTPUT_COMPRESSION,
    RequestField(
        "output_quality",
        "str",
        "Named levels of output_compression.",
        choices=("default", "maximum", "high", "medium", "low"),
    ),
    ENHANCE_PROMPT,
)

# Fields of the protocol that make the server write files, load models or work more than
# the family's limits say.
OPERATORS: tuple[RequestField, ...] = (
    RequestField("profile", "bool", "Write a trace of the denoising steps."),
    RequestField("profile_all_stages", "bool", "Write a trace of all stages."),
    RequestField("num_profiled_timesteps", "int", "Steps to trace.", minimum=1),
    RequestField("perf_dump_path", "str", "File on the server for timings."),
    RequestField("enable_upscaling", "bool", "Enlarge the result by Real-ESRGAN."),
    RequestField("upscaling_model_path", "str", "Its weights, a path or an id."),
    RequestField("upscaling_scale", "int", "How much larger.", minimum=1, maximum=8),
)

WITHOUT_EFFECT: tuple[RequestField, ...] = (
    RequestField("model", "str", "A server serves one model.", max_length=512),
    # SGLang's clients send it; our noise is drawn on the CPU for any of them.
    RequestField("generator_device", "str", "Noise.", choices=("cpu", "cuda")),
    RequestField("user", "str", "OpenAI's end-user label.", max_length=512),
    # Pictures have no alpha channel: only "transparent" would ask for something.
    RequestField("background", "str", "Opaque.", choices=("auto", "opaque")),
    # Steps and presets are the family's own fields.
    RequestField("quality", "str", "The family's default.", choices=("auto",)),
)

# What clients send where the user said nothing, also to a family with its own levels.
_NO_WISH = ("quality", "auto")
_SIZE = RequestField("size", "str", "WIDTHxHEIGHT, or auto for the family's own.")
# Fields of the protocol whose kind a form must know.
FIELDS = (*FORWARDED, *OPERATORS, *WITHOUT_EFFECT, _SIZE)

_SERVER_PATH = "a request cannot choose a path or a model on the server"
_SWITCH = ALLOW_CONTROL_ROUTES.name
_OPERATOR = f"only the operator of the server can switch this on, by {_SWITCH}"
REFUSED: dict[str, str] = {
    "diffusers_kwargs": "arguments cannot be handed to diffusers; use named fields",
    "enable_spectrum": "this model has no Spectrum",
    "image_path": _SERVER_PATH,
    "lora_path": _SERVER_PATH,
    "moderation": "this server does not moderate",
    "num_outputs_per_prompt": "over HTTP this is n",
    "output_file_name": _SERVER_PATH,
    "output_path": _SERVER_PATH,
    "partial_images": "pictures are not streamed",
    "prompt_path": _SERVER_PATH,
    "stream": "pictures are not streamed",
    "style": "describe the style in the prompt",
    **{field.name: _OPERATOR for field in OPERATORS},
}

_SIZE_PATTERN = re.compile(r"(\d{1,6})x(\d{1,6})", re.ASCII)


def checked_image_body(
    body: Mapping[str, Any],
    model: ServedModel,
    *,
    sources: Mapping[str, str | list[str]] | None = None,
    spelling: Mapping[str, str] | None = None,
    forwarded: tuple[RequestField, ...] = FORWARDED,
) -> dict[str, Any]:
    """Check an image request and rewrite it as a flat body.

    Args:
        body: The JSON object that the client sent.
        model: The model that would run it.
        sources: Family fields that are set from the client's uploads.
        spelling: The family's name of such a field -> the client's, for messages.
        forwarded: Fields of the protocol that stock honours on the route.

    Returns:
        The body for stock: names of the protocol, checked values.

    Raises:
        RequestError: Names the field, in the client's spelling.
        Refusal: 400, a field that is not known.
    """
    given = dict(item for item in unwrap_fields(body).items() if item != _NO_WISH)
    if model.allows_control:
        forwarded = (*forwarded, *OPERATORS)
    protocol = [
        field
        for field in (*forwarded, *WITHOUT_EFFECT)
        if field.name not in model.fields
    ]
    known = {"n", "size"} | model.fields - {"num_outputs_per_prompt"}
    _check_names(given, known | {field.name for field in protocol})
    passed = check_given(protocol, given)
    given = {name: value for name, value in given.items() if name not in passed}
    for field in WITHOUT_EFFECT:
        passed.pop(field.name, None)
    _check_prompt_type(given.get("prompt"))
    names = {**(spelling or {}), **_spell_as_family(given)}
    try:
        checked = model.check({**given, **(sources or {})})
    except RequestError as error:
        raise _spell_as_client(error, names) from error
    if "num_outputs_per_prompt" in checked:
        checked["n"] = checked.pop("num_outputs_per_prompt")
    # Stock's default of 1024x1024 would replace the family's own default.
    return {"size": None, **passed, **checked}


def _check_names(given: Iterable[str], known: Collection[str]) -> None:
    for name in given:
        if name in known:
            continue
        reason = REFUSED.get(name, f"known fields: {', '.join(sorted(known))}")
        shown = shorten(name)
        raise Refusal(
            400, f"{shown}: unknown field; {reason}", param=shown, code="unknown_field"
        )


def _check_prompt_type(prompt: Any) -> None:
    """HTTP takes one prompt a request, unlike Python and the command line."""
    if prompt is not None and not isinstance(prompt, str):
        kind = type(prompt).__name__
        raise RequestError("prompt", f"a {kind} given, expected a string")


def _spell_as_family(given: dict[str, Any]) -> dict[str, str]:
    """Rename ``n`` and ``size`` in place; returns family name -> client's name."""
    spelling: dict[str, str] = {}
    if "n" in given:
        given["num_outputs_per_prompt"] = given.pop("n")
        spelling["num_outputs_per_prompt"] = "n"
    if ("width" in given) != ("height" in given):
        alone = "width" if "width" in given else "height"
        raise RequestError(alone, "given alone; give both width and height, or size")
    size = given.pop("size", "auto")
    if size == "auto":
        return spelling
    if "width" in given:
        raise RequestError("size", "given together with width and height; choose one")
    sides = _SIZE_PATTERN.fullmatch(size) if isinstance(size, str) else None
    if sides is None:
        raise RequestError(
            "size",
            f"{shorten(repr(size))} given, expected WIDTHxHEIGHT such as 1024x768, "
            "or auto",
        )
    given["width"], given["height"] = int(sides[1]), int(sides[2])
    return {**spelling, "width": "size", "height": "size"}


def _spell_as_client(error: RequestError, spelling: Mapping[str, str]) -> RequestError:
    name = spelling.get(error.field, error.field)
    if name == "size":
        return RequestError("size", f"{error.field} {error.message}")
    return RequestError(name, error.message)
