# SPDX-License-Identifier: Apache-2.0
"""What a user may ask of Ideogram 4: fields, presets, checks.

Source: the vendor's presets and documented size range; limits of the reference
pipeline. Imports neither torch nor SGLang, so that ``--help`` and the HTTP server's
middleware can use it.

Guidance schedules are in execution order here (the vendor's tuples are indexed
the other way round): the first value belongs to the first, noisiest step.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.request.fields import (
    NUM_OUTPUTS,
    OUR_LOOP,
    SEED,
    RequestField,
    check_given,
    check_prompt,
)

DEFAULT_PRESET = "V4_DEFAULT_20"
# The default where the unconditional transformer is left unloaded.
GUIDANCE_FREE_PRESET = "V4_FAST_20"
DEFAULT_SIZE = 1024
# Template tokens included; the text encoder was never run on longer prompts.
MAX_PROMPT_TOKENS = 2048
MAX_ASPECT_RATIO = 6


@dataclass(frozen=True)
class Preset:
    """A vendor preset: a guidance plateau, then a weaker tail.

    Args:
        num_inference_steps: Denoising steps.
        guidance: Guidance of all steps but the tail.
        tail_guidance: Guidance of the last ``tail_steps`` steps.
        tail_steps: How many steps the tail has at ``num_inference_steps``.
        mu: Mean of the logit-normal schedule at 512 x 512.
        std: Its standard deviation.
    """

    num_inference_steps: int
    guidance: float
    tail_guidance: float
    tail_steps: int
    mu: float
    std: float

    def guidance_schedule(self, num_inference_steps: int) -> tuple[float, ...]:
        """Guidance per step in execution order; the tail scales with the steps."""
        share = self.tail_steps / self.num_inference_steps
        tail = round(num_inference_steps * share)
        plateau = num_inference_steps - tail
        return (self.guidance,) * plateau + (self.tail_guidance,) * tail


PRESETS: dict[str, Preset] = {
    "V4_QUALITY_48": Preset(48, 7.0, 3.0, 3, mu=0.0, std=1.5),
    "V4_DEFAULT_20": Preset(20, 7.0, 3.0, 2, mu=0.0, std=1.75),
    "V4_TURBO_12": Preset(12, 7.0, 3.0, 1, mu=0.5, std=1.75),
    "V4_FAST_20": Preset(20, 1.0, 1.0, 0, mu=0.0, std=1.75),
    "V4_INSTANT_8": Preset(8, 1.0, 1.0, 0, mu=0.0, std=1.75),
}


def _size(name: str, help: str) -> RequestField:
    return RequestField(
        name,
        "int",
        help,
        minimum=256,
        maximum=2048,
        multiple_of=16,
        default=DEFAULT_SIZE,
    )


REQUEST_FIELDS: tuple[RequestField, ...] = (
    RequestField(
        "prompt",
        "strs",
        "What to draw: a JSON caption (best) or plain text.",
        max_length=65_536,
        batched_apart=False,
    ),
    _size("width", "Picture width in pixels."),
    _size("height", "Picture height in pixels."),
    NUM_OUTPUTS,
    SEED,
    RequestField(
        "preset",
        "str",
        "Defaults for steps, guidance, mu and std.",
        choices=tuple(PRESETS),
    ),
    RequestField(
        "num_inference_steps",
        "int",
        "Denoising steps; default from the preset.",
        minimum=1,
        maximum=200,
    ),
    RequestField(
        "guidance_scale",
        "float",
        "One guidance value for all steps; 1 runs the model once a step.",
        minimum=0,
        maximum=100,
    ),
    RequestField(
        "guidance_schedule",
        "floats",
        "Guidance per step in execution order, one value a step.",
        minimum=0,
        maximum=100,
        max_length=200,
    ),
    RequestField(
        "mu",
        "float",
        "Mean of the noise schedule; larger spends more steps on noise.",
        minimum=-10,
        maximum=10,
    ),
    RequestField(
        "std", "float", "Spread of the noise schedule.", minimum=0.01, maximum=10
    ),
    RequestField(
        "negative_prompt",
        "str",
        "Refused: this model has no negative prompt.",
        batched_apart=False,
    ),
    *OUR_LOOP,
)


@dataclass(frozen=True)
class DenoisingPlan:
    """Everything that decides the denoising loop of a request but its size.

    Args:
        guidance: Guidance per step, execution order; its length is the number
            of steps.
        mu: Mean of the logit-normal schedule at 512 x 512.
        std: Its standard deviation.
    """

    guidance: tuple[float, ...]
    mu: float
    std: float

    @property
    def num_inference_steps(self) -> int:
        return len(self.guidance)

    @property
    def needs_unconditional(self) -> bool:
        """Whether any step blends in the unconditional transformer."""
        return any(value != 1.0 for value in self.guidance)


def plan_denoising(
    values: Mapping[str, Any], *, has_unconditional: bool = True
) -> DenoisingPlan:
    """Fill what a request leaves open from its preset.

    Args:
        values: Checked fields; None means not given.
        has_unconditional: Whether the server holds the unconditional transformer;
            without it the default preset is guidance-free.

    Raises:
        RequestError: Both kinds of guidance; a schedule of another length than the
            number of steps; or guidance without the unconditional transformer.
    """
    given = {name: value for name, value in values.items() if value is not None}
    default = DEFAULT_PRESET if has_unconditional else GUIDANCE_FREE_PRESET
    preset = PRESETS[given.get("preset", default)]
    chosen = {**vars(preset), **given}
    steps = chosen["num_inference_steps"]
    guidance = preset.guidance_schedule(steps)
    if "guidance_scale" in given:
        guidance = (given["guidance_scale"],) * steps
    if "guidance_schedule" in given:
        if "guidance_scale" in given:
            raise RequestError(
                "guidance_schedule", "given together with guidance_scale; choose one"
            )
        guidance = tuple(given["guidance_schedule"])
        if len(guidance) != steps:
            raise RequestError(
                "guidance_schedule",
                f"{len(guidance)} values given, expected one for each of "
                f"the {steps} steps (num_inference_steps)",
            )
    plan = DenoisingPlan(guidance, chosen["mu"], chosen["std"])
    if plan.needs_unconditional and not has_unconditional:
        raise RequestError(
            "guidance_scale",
            f"guidance {max(plan.guidance):g} needs the unconditional "
            "transformer, which was left unloaded (--no-unconditional); "
            f"use guidance 1 or preset {GUIDANCE_FREE_PRESET}",
        )
    return plan


def check_request(values: Mapping[str, Any]) -> dict[str, Any]:
    """Check the fields of a request, alone and together; see ``ModelFamily``."""
    checked = check_given(REQUEST_FIELDS, values)
    check_prompt(checked.get("prompt"))
    if checked.get("negative_prompt", "").strip():
        raise RequestError(
            "negative_prompt",
            "Ideogram 4 cannot use one: its guidance compares with a separate "
            "transformer that sees no text. Describe what you want instead",
        )
    width = checked.get("width", DEFAULT_SIZE)
    height = checked.get("height", DEFAULT_SIZE)
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise RequestError(
            "width",
            f"{width}x{height} is beyond the aspect ratio of {MAX_ASPECT_RATIO}:1",
        )
    plan_denoising(checked)
    return checked
