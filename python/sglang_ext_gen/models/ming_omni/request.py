# SPDX-License-Identifier: Apache-2.0
"""What a user may ask of the image generator: fields, defaults, checks.

Source: the official code's arguments and defaults. Imports neither torch nor SGLang.

Deviations from the official code: a real negative prompt is used (the official sampler
computes it and then ignores it); without a seed SGLang's default holds, not the time.
"""

from collections.abc import Mapping
from typing import Any

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.media.images import as_paths
from sglang_ext_gen.models.ming_omni.sizes import BUCKETS
from sglang_ext_gen.models.ming_omni.thinker_protocol import refuse_reserved
from sglang_ext_gen.request.fields import (
    NUM_OUTPUTS,
    OUR_LOOP,
    SEED,
    RequestField,
    check_given,
    check_prompt,
)

DEFAULT_SIDE = 1024
DEFAULT_HIGHRES = 1024
# Each costs the thinker up to 4096 tokens; the first is the one that is redrawn.
MAX_REFERENCES = 10
PIXELS_PER_TOKEN = 16

_SIDE: dict[str, Any] = {
    "minimum": 64,
    "maximum": 2048,
    "multiple_of": PIXELS_PER_TOKEN,
}

REQUEST_FIELDS: tuple[RequestField, ...] = (
    RequestField(
        "prompt",
        "strs",
        "What to draw, or how to change the picture.",
        max_length=16_384,
        batched_apart=False,
    ),
    RequestField(
        "negative_prompt",
        "str",
        "What not to draw; costs a second run of the thinker. None by default.",
        max_length=16_384,
        batched_apart=False,
    ),
    RequestField(
        "byt5_text",
        "str",
        "Words to letter into the picture, instead of those that the prompt quotes; "
        "empty for none.",
        max_length=4096,
        batched_apart=False,
    ),
    RequestField(
        "image_path",
        "strs",
        "Picture to edit: a local file. May be repeated: the thinker sees all, the "
        "first is redrawn.",
        max_length=4096,
        interfaces="cli",
        batched_apart=False,
    ),
    RequestField("width", "int", "Width in pixels.", **_SIDE),
    RequestField("height", "int", "Height in pixels.", **_SIDE),
    RequestField(
        "highres",
        "int",
        "Which of the trained sizes (512, 672 or 1024) an edit without a size takes.",
        minimum=min(BUCKETS),
        maximum=max(BUCKETS),
        batched_apart=False,
    ),
    NUM_OUTPUTS,
    SEED,
    RequestField(
        "num_inference_steps",
        "int",
        "Euler steps.",
        minimum=1,
        maximum=200,
        default=30,
    ),
    RequestField(
        "guidance_scale",
        "float",
        "How far to go beyond the unguided picture; 1 and less run the model once a "
        "step.",
        minimum=0,
        maximum=100,
        default=2.0,
    ),
    *OUR_LOOP,
)


def check_request(values: Mapping[str, Any]) -> dict[str, Any]:
    """Check the fields of a request, alone and together; see ``ModelFamily``."""
    checked = check_given(REQUEST_FIELDS, values)
    check_prompt(checked.get("prompt"))
    for prompt in as_paths(checked["prompt"]):
        refuse_reserved(prompt, "prompt")
    if "negative_prompt" in checked:
        refuse_reserved(checked["negative_prompt"], "negative_prompt")
    if ("width" in checked) != ("height" in checked):
        alone = "width" if "width" in checked else "height"
        raise RequestError(alone, "given alone; give both width and height")
    _check_highres(checked)
    references = len(as_paths(checked.get("image_path")))
    if references > MAX_REFERENCES:
        raise RequestError(
            "image_path", f"{references} pictures given, at most {MAX_REFERENCES}"
        )
    return checked


def _check_highres(checked: Mapping[str, Any]) -> None:
    if "highres" not in checked:
        return
    if checked["highres"] not in BUCKETS:
        known = ", ".join(map(str, sorted(BUCKETS)))
        raise RequestError(
            "highres", f"{checked['highres']} given, expected one of {known}"
        )
    if "width" in checked:
        raise RequestError("highres", "given together with a size; choose one")
