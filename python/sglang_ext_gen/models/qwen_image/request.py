# SPDX-License-Identifier: Apache-2.0
"""What a user may ask of Qwen-Image and Qwen-Image-Edit: fields and checks.

Source: call signatures and checks of the diffusers 0.37 pipelines; sizes are bounded
by the transformer's table of positions. Imports neither torch nor SGLang, so that
``--help`` and the HTTP interface can use it.
"""

import functools
import itertools
import logging
from collections.abc import Mapping
from typing import Any

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.request.fields import (
    NUM_OUTPUTS,
    SEED,
    STOCKS_LOOP,
    RequestField,
    check_given,
    check_prompt,
)

logger = logging.getLogger(__name__)

DEFAULT_SIZE = 1024
DEFAULT_TRUE_CFG_SCALE = 4.0
DEFAULT_MAX_SEQUENCE_LENGTH = 512
# The reference encodes every reference picture at about this many pixels.
DEFAULT_REFERENCE_PIXELS = 1024 * 1024
# One token is 16 x 16 pixels.
PIXELS_PER_TOKEN = 16

# The released schedules end at ``shift_terminal``, which takes two.
_MIN_STEPS = 2


def _common(size: int | None, steps: int) -> tuple[RequestField, ...]:
    """Fields of both kinds of request, with their own defaults."""
    side: dict[str, Any] = {"minimum": 128, "maximum": 4096, "multiple_of": 16}
    return (
        RequestField("width", "int", "Picture width in pixels.", default=size, **side),
        RequestField(
            "height", "int", "Picture height in pixels.", default=size, **side
        ),
        NUM_OUTPUTS,
        SEED,
        RequestField(
            "num_inference_steps",
            "int",
            "Denoising steps; 50 by default, 40 for edits.",
            minimum=_MIN_STEPS,
            maximum=200,
            default=steps,
        ),
        RequestField(
            "negative_prompt",
            "str",
            "What to avoid. Guidance runs only where one is given; it may be empty.",
            max_length=16_384,
            batched_apart=False,
        ),
        RequestField(
            "true_cfg_scale",
            "float",
            "Guidance towards the prompt and away from the negative prompt; 1 is none.",
            minimum=1,
            maximum=100,
        ),
        RequestField(
            "guidance_scale",
            "float",
            "Another name of true_cfg_scale, as in stock SGLang.",
            minimum=1,
            maximum=100,
            default=1.0,  # SGLang wants a number
        ),
        RequestField(
            "sigmas",
            "floats",
            "Noise levels of the steps, falling, before the shift that depends on "
            "size.",
            minimum=1e-4,
            maximum=1,
            max_length=200,
        ),
        RequestField(
            "max_sequence_length",
            "int",
            "Most prompt tokens; a longer prompt is cut (edits: refused).",
            minimum=1,
            maximum=1024,
            batched_apart=False,
        ),
        RequestField(
            "flow_shift",
            "float",
            "Time shift of the schedule, instead of the one that depends on size; "
            "more spends more steps on the composition.",
            minimum=0.1,
            maximum=100,
        ),
        *STOCKS_LOOP,
    )


_GROWING = ("dct", "dct_rewind")
_PROMPT: dict[str, Any] = {"max_length": 16_384, "batched_apart": False}

REQUEST_FIELDS: tuple[RequestField, ...] = (
    RequestField("prompt", "strs", "What to draw.", **_PROMPT),
    *_common(DEFAULT_SIZE, steps=50),
    RequestField(
        "progressive_mode",
        "str",
        "Draw small first: at full size from the start (fullres), or grow by cosine "
        "transform (dct), with a step back in time (dct_rewind).",
        choices=("fullres", *_GROWING),
        default="fullres",
    ),
    RequestField(
        "progressive_levels",
        "int",
        "How often the picture doubles its size.",
        minimum=1,
        maximum=3,
        default=1,
    ),
    RequestField(
        "progressive_delta",
        "float",
        "Noise to signal at which the next size begins.",
        minimum=1e-4,
        maximum=0.5,
        default=0.01,
    ),
)

EDIT_REQUEST_FIELDS: tuple[RequestField, ...] = (
    RequestField("prompt", "strs", "What to change.", **_PROMPT),
    RequestField(
        "image_path",
        "strs",
        "The pictures to work from, in order.",
        interfaces="cli",
        batched_apart=False,
    ),
    # Without a size a picture takes the shape of the last reference.
    *_common(None, steps=40),
    RequestField(
        "reference_pixels",
        "int",
        "Pixels at which each reference picture is encoded; 256 make a token.",
        minimum=128 * 128,
        maximum=2048 * 2048,
    ),
)


def check_request(values: Mapping[str, Any]) -> dict[str, Any]:
    """``check_given`` and what fields mean together; ``guidance_scale`` is merged."""
    return _check(values, REQUEST_FIELDS)


def check_edit_request(values: Mapping[str, Any]) -> dict[str, Any]:
    """As ``check_request``, for an edit; the pictures are checked elsewhere."""
    return _check(values, EDIT_REQUEST_FIELDS)


def _check(
    values: Mapping[str, Any], fields: tuple[RequestField, ...]
) -> dict[str, Any]:
    checked = check_given(fields, values)
    check_prompt(checked.get("prompt"))
    _check_sigmas(checked)
    _merge_guidance(checked)
    _check_growth(checked)
    return checked


def _check_sigmas(checked: dict[str, Any]) -> None:
    sigmas = checked.get("sigmas")
    if sigmas is None:
        return
    if len(sigmas) < _MIN_STEPS:
        raise RequestError(
            "sigmas",
            f"{len(sigmas)} given, expected one a step and at least {_MIN_STEPS}",
        )
    if any(after >= before for before, after in itertools.pairwise(sigmas)):
        raise RequestError("sigmas", f"{sigmas} given, expected falling values")
    steps = checked.setdefault("num_inference_steps", len(sigmas))
    if steps != len(sigmas):
        raise RequestError(
            "sigmas",
            f"{len(sigmas)} values given, expected one for each of the {steps} steps "
            "(num_inference_steps)",
        )


def grows(progressive_mode: str | None) -> bool:
    """Whether a picture is drawn small first."""
    return progressive_mode in _GROWING


def _check_growth(checked: Mapping[str, Any]) -> None:
    if not grows(checked.get("progressive_mode")):
        return
    multiple = PIXELS_PER_TOKEN * 2 ** checked.get("progressive_levels", 1)
    for name in ("width", "height"):
        if checked.get(name, DEFAULT_SIZE) % multiple:
            raise RequestError(
                name,
                f"{checked[name]} given, expected a multiple of {multiple} with "
                f"progressive_mode {checked['progressive_mode']}",
            )


def _merge_guidance(checked: dict[str, Any]) -> None:
    other = checked.pop("guidance_scale", None)
    if other is None:
        return
    scale = checked.setdefault("true_cfg_scale", other)
    if scale != other:
        raise RequestError(
            "guidance_scale",
            f"{other:g} given together with true_cfg_scale {scale:g}; both mean the "
            "same, choose one",
        )


def uses_guidance(true_cfg_scale: float, negative_prompt: str | None) -> bool:
    """Whether a request runs the negative branch; the reference's rule.

    It takes both a scale above 1 and a negative prompt, which may be empty. One
    without the other draws without guidance, and a warning says so once.
    """
    if true_cfg_scale > 1 and negative_prompt is None:
        _warn_once(
            "true_cfg_scale is above 1 but there is no negative prompt: drawing "
            "without guidance. Give negative_prompt, for example ' ', to use it"
        )
    if true_cfg_scale <= 1 and negative_prompt is not None:
        _warn_once(
            "a negative prompt is given but true_cfg_scale is 1: drawing without "
            "guidance"
        )
    return true_cfg_scale > 1 and negative_prompt is not None


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)
