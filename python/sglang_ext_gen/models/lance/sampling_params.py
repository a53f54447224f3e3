# SPDX-License-Identifier: Apache-2.0
"""The request fields of Lance as SGLang's ``SamplingParams``.

The fields, their ranges and their rules are in ``request.py``; this class only
carries them through SGLang and has them checked before a request is queued.
"""

import logging
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sglang.multimodal_gen.configs.sample.sampling_params import (
    DataType,
    SamplingParams,
)
from sglang.multimodal_gen.configs.task_type import ModelTaskType

from sglang_ext_gen.errors import CheckpointError, ConfigError, RequestError
from sglang_ext_gen.media import upload_folders
from sglang_ext_gen.models.lance.request import (
    DEFAULT_FRAMES,
    REQUEST_FIELDS,
    TASK_TYPES,
    LancePlan,
    check_request,
    check_target_size,
    make_plan,
    resolve_task,
)
from sglang_ext_gen.models.lance.tasks import FPS, TASKS, Task
from sglang_ext_gen.request.fields import (
    SERVED_BY_SGLANG,
    refuse_unknown_fields,
    refuse_unused_fields,
)

logger = logging.getLogger(__name__)

# Fields of ours that SGLang's base class does not have.
OWN_FIELDS = (
    "resolution",
    "cfg_interval",
    "cfg_renorm_type",
    "cfg_renorm_min",
    "timestep_shift",
    "system_prompt",
    "source_latents",
)
# SGLang writes the file of a video, which these change.
_OF_VIDEO_FILES = {
    "enable_frame_interpolation",
    "frame_interpolation_exp",
    "frame_interpolation_model_path",
    "frame_interpolation_scale",
    "x264_preset",
}
_USED = SERVED_BY_SGLANG | _OF_VIDEO_FILES | {field.name for field in REQUEST_FIELDS}
_TASK_TYPES = {official: name.upper() for name, official in TASK_TYPES.items()}


@dataclass
class LanceSamplingParams(SamplingParams):
    """One request; see ``REQUEST_FIELDS`` for meaning and range of each field."""

    data_type: DataType = DataType.IMAGE
    negative_prompt: str | None = None  # type: ignore[assignment]
    num_inference_steps: int | None = None  # type: ignore[assignment]
    guidance_scale: float | None = None  # type: ignore[assignment]
    fps: int = FPS
    resolution: str | None = None
    cfg_interval: list[float] | None = None
    cfg_renorm_type: str | None = None
    cfg_renorm_min: float | None = None
    timestep_shift: float | None = None
    system_prompt: str | None = None
    source_latents: str | None = None

    @classmethod
    def image_request_extra_fields(cls) -> frozenset[str]:
        """Fields that the HTTP image endpoint takes from the body.

        ``image_path`` comes from an upload; a client cannot set it.
        """
        return frozenset({*OWN_FIELDS, "image_path"})

    @classmethod
    def video_request_extra_fields(cls) -> frozenset[str]:
        """Fields that the HTTP video endpoint takes from the body."""
        return frozenset(OWN_FIELDS)

    @classmethod
    def lower_video_request_kwargs(
        cls, request: Any, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Undo stock's defaults for videos, which are those of other models."""
        if request.fps is None:
            kwargs["fps"] = None
        if request.num_frames is None:
            seconds = request.seconds
            kwargs["num_frames"] = None if seconds is None else FPS * seconds + 1
        if kwargs.get("video_path"):
            kwargs["num_frames"] = request.num_frames  # decided by the source
        return kwargs

    def cleanup_video_request(self, req: Any) -> None:
        """Delete the uploads of a video job that has ended."""
        for path in (self.image_path, self.video_path):
            if path:
                upload_folders.release(single_path(path))

    def expand_video_request_outputs_for_queue(self, req: Any) -> list[Any]:
        """One request an output, as for pictures."""
        from sglang.multimodal_gen.runtime.entrypoints.utils import (
            expand_request_outputs,
        )

        return expand_request_outputs(req)

    def should_use_classifier_free_guidance(self) -> bool:
        """False: SGLang's own guidance needs a negative prompt; ours does not."""
        return False

    def plan(self) -> LancePlan:
        """The request with all defaults, once it was adjusted."""
        values = {field.name: getattr(self, field.name) for field in REQUEST_FIELDS}
        return make_plan(_official_task(self.task_type), values)

    def __post_init__(self) -> None:
        # Before SGLang's own checks, some of which are bare assertions.
        for field in REQUEST_FIELDS:
            value = getattr(self, field.name)
            if value is None or field.name in ("task_type", "seed"):
                continue
            setattr(self, field.name, field.check(value))
        super().__post_init__()

    def _adjust(self, server_args: Any) -> None:
        self._check(server_args)
        # The base class would read "not given" as guidance 1.
        guidance_scale = self.guidance_scale
        self.adjust_frames = False
        super()._adjust(server_args)
        self.guidance_scale = guidance_scale

    def _check(self, server_args: Any) -> None:
        """Check the merged request in the user's process, before it is queued."""
        given = self._explicit_fields
        refuse_unknown_fields(given, [field.name for field in fields(self)])
        refuse_unused_fields(self, _USED, "Lance")
        values = {
            field.name: getattr(self, field.name)
            for field in REQUEST_FIELDS
            if field.name in given
        }
        values["prompt"] = self.prompt
        if isinstance(self.task_type, ModelTaskType):
            values["task_type"] = self.task_type.name.lower()
        seeds = self.seed if isinstance(self.seed, list) else [self.seed]
        for seed in seeds:
            checked = check_request({**values, "seed": seed})
        task = resolve_task(checked)
        _check_is_served(task, server_args)
        self.task_type = ModelTaskType.parse(_TASK_TYPES[task.name])
        if task.source is not None:
            checked.update(self._measure_source(task, checked))
        plan = make_plan(task, checked)
        if checked.get("num_frames", plan.num_frames) != plan.num_frames:
            logger.info(
                "num_frames: %d given, %d are made (4 k + 1)",
                checked["num_frames"],
                plan.num_frames,
            )
        self.height, self.width = plan.height, plan.width
        self.num_frames = plan.num_frames
        self.num_inference_steps = plan.num_inference_steps

    def _measure_source(self, task: Task, checked: dict[str, Any]) -> dict[str, int]:
        """Size and frames that the result takes from its source."""
        from sglang_ext_gen.models.lance.sources import probe_image, probe_video
        from sglang_ext_gen.models.lance.visual_input import vae_size

        if task.source == "image":
            info = probe_image(single_path(checked["image_path"]))
        else:
            info = probe_video(single_path(checked["video_path"]))
        resolution = checked.get("resolution", task.resolution)
        height, width = vae_size(info.width, info.height, resolution)
        check_target_size(height, width)
        measured = {"height": height, "width": width}
        if task.name not in DEFAULT_FRAMES:
            measured["num_frames"] = info.sampled_frames()
        return measured


def single_path(paths: str | list[str]) -> str:
    """The one source of a request; SGLang passes lists of one, too."""
    return paths if isinstance(paths, str) else paths[0]


def _official_task(task_type: ModelTaskType | str | None) -> Task:
    if task_type is None:
        return TASKS["t2i"]
    name = task_type.name if isinstance(task_type, ModelTaskType) else task_type
    return TASKS[TASK_TYPES[name.lower()]]


def _check_is_served(task: Task, server_args: Any) -> None:
    """Refuse a task whose weights this server does not hold."""
    path = Path(server_args.model_path)
    if not path.is_dir():
        return  # a Hugging Face id: the worker knows what was downloaded
    try:
        server_args.pipeline_config.placement(path).variant_of(task)
    except (CheckpointError, ConfigError) as error:
        raise RequestError("task_type", str(error)) from error
