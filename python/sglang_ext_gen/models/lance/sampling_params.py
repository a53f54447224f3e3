# SPDX-License-Identifier: Apache-2.0
"""The request fields of Lance as SGLang's ``SamplingParams``."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang.multimodal_gen.configs.sample.sampling_params import DataType
from sglang.multimodal_gen.configs.task_type import ModelTaskType

from sglang_ext_gen.diffusion.sampling_params import FamilySamplingParams
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
from sglang_ext_gen.request.fields import carries

logger = logging.getLogger(__name__)

_TASK_TYPES = {official: name.upper() for name, official in TASK_TYPES.items()}


@dataclass
@carries(REQUEST_FIELDS)
class LanceSamplingParams(FamilySamplingParams):
    """One request; see ``REQUEST_FIELDS`` for meaning and range of each field."""

    title = "Lance"
    request_fields = REQUEST_FIELDS
    # SGLang writes the file of a video, which these change.
    also_used = frozenset(
        {
            "enable_frame_interpolation",
            "frame_interpolation_exp",
            "frame_interpolation_model_path",
            "frame_interpolation_scale",
            "x264_preset",
        }
    )
    # Attention is torch's, over a prefix of keys and values.
    not_used = frozenset({"attention_backend_override", "skip_softmax_params"})
    data_type: DataType = DataType.IMAGE

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

    def plan(self) -> LancePlan:
        """The request with all defaults, once it was adjusted."""
        return make_plan(_official_task(self.task_type), self.values())

    def check(self, server_args: Any) -> None:
        """Check the merged request and fill in the size of the result."""
        self.adjust_frames = False
        given = {n: v for n, v in self.values().items() if n in self._explicit_fields}
        given["prompt"] = self.prompt
        if isinstance(self.task_type, ModelTaskType):
            given["task_type"] = self.task_type.name.lower()
        checked = self.check_seeds(check_request, given)
        task = resolve_task(checked)
        _check_is_served(task, server_args)
        self.task_type = ModelTaskType.parse(_TASK_TYPES[task.name])
        if task.source is not None:
            checked.update(_measure_source(task, checked))
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


def single_path(paths: str | list[str]) -> str:
    """The one source of a request; SGLang passes lists of one, too."""
    return paths if isinstance(paths, str) else paths[0]


def _measure_source(task: Task, checked: dict[str, Any]) -> dict[str, int]:
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
