# SPDX-License-Identifier: Apache-2.0
"""What a user may ask of Lance: fields, defaults of the tasks, checks.

Source: the official script's flags and defaults. Imports neither torch nor SGLang.

Deviations from the official code, each a refusal where it would do something else
than it says: a side above 1024 pixels (65 latents and more share rows of the position
table with the next line, so columns are confused), a size for tasks whose result takes
the size of its source, more than one source.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.models.lance.config import (
    FRAMES_PER_LATENT,
    MAX_LATENT_FRAMES,
    MAX_LATENT_SIDE,
    PIXELS_PER_LATENT,
)
from sglang_ext_gen.models.lance.tasks import (
    FPS,
    GENERATION_TASKS,
    RESOLUTIONS,
    TASKS,
    Task,
)
from sglang_ext_gen.request.fields import (
    NUM_OUTPUTS,
    SEED,
    STEP_CACHES,
    RequestField,
    carries,
    check_given,
    check_prompt,
)

MAX_SIDE = MAX_LATENT_SIDE * PIXELS_PER_LATENT
MAX_FRAMES = (MAX_LATENT_FRAMES - 1) * FRAMES_PER_LATENT + 1
# A video has at least one latent frame behind the first.
MIN_VIDEO_FRAMES = FRAMES_PER_LATENT + 1

# SGLang's names of the tasks -> the official ones.
TASK_TYPES = {
    "t2i": "t2i",
    "i2i": "image_edit",
    "t2v": "t2v",
    "i2v": "i2v",
    "v2v": "video_edit",
}
# Height and width where the request decides: README and web UI of the release.
DEFAULT_SIZES = {"t2i": (768, 768), "t2v": (480, 848)}
DEFAULT_FRAMES = {"t2v": 121, "i2v": 61}

_SIDE: dict[str, Any] = {
    "minimum": 2 * PIXELS_PER_LATENT,
    "maximum": MAX_SIDE,
    "multiple_of": PIXELS_PER_LATENT,
}

REQUEST_FIELDS: tuple[RequestField, ...] = (
    RequestField(
        "prompt",
        "strs",
        "What to make, or how to change the source.",
        max_length=16_384,
        batched_apart=False,
    ),
    RequestField(
        "task_type",
        "str",
        "The task; by default it follows from the sources and num_frames.",
        choices=(*GENERATION_TASKS, *sorted(set(TASK_TYPES) - set(GENERATION_TASKS))),
    ),
    RequestField(
        "image_path",
        "strs",
        "Source picture of image_edit or i2v: a local file.",
        max_length=4096,
        interfaces="cli",
        batched_apart=False,
    ),
    RequestField(
        "video_path",
        "strs",
        "Source video of video_edit: a local file.",
        max_length=4096,
        interfaces="cli",
    ),
    RequestField("width", "int", "Width in pixels (t2i, t2v).", **_SIDE),
    RequestField("height", "int", "Height in pixels (t2i, t2v).", **_SIDE),
    RequestField(
        "resolution",
        "str",
        "Size preset of tasks with a source; the result has the source's ratio.",
        choices=tuple(RESOLUTIONS),
    ),
    RequestField(
        "num_frames",
        "int",
        "Frames of a video (t2v, i2v); what exceeds 4 k + 1 is dropped, 50 gives 49.",
        minimum=1,
        maximum=MAX_FRAMES,
        default=1,
    ),
    RequestField(
        "fps",
        "int",
        f"Frames per second of the video file; the model moves at {FPS}.",
        minimum=1,
        maximum=60,
        default=FPS,
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
        "Text guidance; 1 and less run the model once a step.",
        minimum=0,
        maximum=100,
        default=4.0,
    ),
    RequestField(
        "cfg_interval",
        "floats",
        "Guidance acts at times above the first and up to the second value.",
        minimum=0,
        maximum=1,
        max_length=2,
        default=(0.4, 1.0),
    ),
    RequestField(
        "cfg_renorm_type",
        "str",
        "Norm that guidance may not exceed: of all latents, of each token, or none.",
        choices=("global", "channel", "none"),
        default="global",
    ),
    RequestField(
        "cfg_renorm_min",
        "float",
        "Smallest factor of that correction.",
        minimum=0,
        maximum=1,
        default=0.0,
    ),
    RequestField(
        "timestep_shift",
        "float",
        "Above 1 spends more steps on noise.",
        minimum=0.01,
        maximum=100,
        default=3.5,
    ),
    RequestField(
        "system_prompt",
        "str",
        "Replaces the task's own instruction before the prompt.",
        max_length=4096,
    ),
    RequestField(
        "source_latents",
        "str",
        "The source's latents: a sample (official) or the mean of its posterior.",
        choices=("sample", "mean"),
        default="sample",
    ),
    RequestField(
        "negative_prompt",
        "str",
        "Refused: guidance compares with the same prompt without the user's text.",
    ),
    *STEP_CACHES,
)


@dataclass(frozen=True)
@carries(REQUEST_FIELDS)
class LancePlan:
    """The fields of a request with every default filled in, and its task."""

    task: Task

    if TYPE_CHECKING:  # the fields that ``carries`` declares

        def __getattr__(self, name: str) -> Any: ...

    @property
    def latent_grid(self) -> tuple[int, int, int]:
        """Frames, height and width of the result in latents."""
        return (
            (self.num_frames - 1) // FRAMES_PER_LATENT + 1,
            self.height // PIXELS_PER_LATENT,
            self.width // PIXELS_PER_LATENT,
        )


def resolve_task(values: Mapping[str, Any]) -> Task:
    """The task of a request: what it says, or what follows from its inputs.

    Args:
        values: Fields of the request; absent and None mean not given.

    Raises:
        RequestError: The named task and the sources do not go together.
    """
    image, video = values.get("image_path"), values.get("video_path")
    wants_video = (values.get("num_frames") or 1) > 1
    name = values.get("task_type")
    if name is None:
        if video:
            name = "video_edit"
        elif image:
            name = "i2v" if wants_video else "image_edit"
        else:
            name = "t2v" if wants_video else "t2i"
    task = TASKS[TASK_TYPES.get(name, name)]
    for medium, given in (("image", image), ("video", video)):
        if task.source == medium and not given:
            raise RequestError(f"{medium}_path", f"missing, {task.name} needs one")
        if task.source != medium and given:
            raise RequestError(f"{medium}_path", f"{task.name} takes no {medium}")
    return task


def check_request(values: Mapping[str, Any]) -> dict[str, Any]:
    """Check the fields of a request, alone and together; see ``ModelFamily``."""
    checked = check_given(REQUEST_FIELDS, values)
    check_prompt(checked.get("prompt"))
    if checked.get("negative_prompt", "").strip():
        raise RequestError(
            "negative_prompt",
            "Lance has none: its guidance compares with the same request without "
            "your text. Describe what you want instead",
        )
    _check_interval(checked.get("cfg_interval"))
    _check_sources(checked)
    _check_size(resolve_task(checked), checked)
    return checked


def make_plan(task: Task, values: Mapping[str, Any]) -> LancePlan:
    """Fill what a checked request leaves open with the task's defaults.

    Args:
        task: See ``resolve_task``.
        values: Checked fields; height, width and num_frames of tasks with a source
            are those of the resized source.
    """
    height, width = DEFAULT_SIZES.get(task.name, DEFAULT_SIZES["t2i"])
    of_task = {
        "height": height,
        "width": width,
        "num_frames": DEFAULT_FRAMES.get(task.name, 1),
        "resolution": task.resolution,
        "system_prompt": task.system_prompt,
    }
    given = {name: value for name, value in values.items() if value is not None}
    plan = LancePlan(task, **{**of_task, **given})
    return replace(plan, num_frames=round_frames(plan.num_frames))


def round_frames(num_frames: int) -> int:
    """The 4 k + 1 frames that the VAE makes of a wish, as officially: 50 -> 49."""
    return (num_frames - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1


def check_target_size(height: int, width: int) -> None:
    """Refuse a result that the position table does not reach.

    Raises:
        RequestError: Says which presets stay below.
    """
    if max(height, width) > MAX_SIDE:
        raise RequestError(
            "resolution",
            f"the source would become {width}x{height}, above {MAX_SIDE} pixels a "
            "side, where the model confuses columns; choose image_512res, or crop "
            "the source to 16:9",
        )


def _check_interval(interval: list[float] | None) -> None:
    if interval is not None and (len(interval) != 2 or interval[0] >= interval[1]):
        raise RequestError(
            "cfg_interval", f"{interval} given, expected two rising numbers"
        )


def _check_sources(checked: Mapping[str, Any]) -> None:
    for name in ("image_path", "video_path"):
        if isinstance(checked.get(name), list) and len(checked[name]) > 1:
            raise RequestError(
                name, f"{len(checked[name])} sources given, Lance takes one"
            )


def _check_size(task: Task, checked: Mapping[str, Any]) -> None:
    if task.source is not None:
        for name in ("width", "height"):
            if name in checked:
                raise RequestError(
                    name,
                    f"{task.name} takes the size of its source; choose a resolution",
                )
    elif "resolution" in checked:
        raise RequestError("resolution", f"{task.name} takes width and height")
    frames = checked.get("num_frames")
    if frames is None:
        return
    if task.name in DEFAULT_FRAMES:
        if frames < MIN_VIDEO_FRAMES:
            raise RequestError(
                "num_frames",
                f"{frames} given, {task.name} makes {MIN_VIDEO_FRAMES} to "
                f"{MAX_FRAMES} frames",
            )
    elif frames != 1:
        raise RequestError("num_frames", f"{task.name} has the frames of its source")
