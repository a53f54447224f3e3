# SPDX-License-Identifier: Apache-2.0
"""Request fields, tasks from inputs, placement of tasks on checkpoints."""

import shutil
from dataclasses import dataclass
from typing import Any

import pytest

from lazy import LazyModule
from sglang_ext_gen.errors import CheckpointError, ConfigError, RequestError
from sglang_ext_gen.models.lance.checkpoint import find_files
from sglang_ext_gen.models.lance.options import place_tasks
from sglang_ext_gen.models.lance.request import (
    REQUEST_FIELDS,
    LancePlan,
    check_request,
    check_target_size,
    make_plan,
    resolve_task,
    round_frames,
)
from sglang_ext_gen.models.lance.tasks import TASKS
from sglang_ext_gen.request.fields import RequestField, carries

sampling_params = LazyModule("sglang_ext_gen.models.lance.sampling_params")


@pytest.mark.parametrize(
    ("fields", "task"),
    [
        ({}, "t2i"),
        ({"num_frames": 9}, "t2v"),
        ({"image_path": "a.png"}, "image_edit"),
        ({"image_path": "a.png", "num_frames": 9}, "i2v"),
        ({"video_path": "a.mp4"}, "video_edit"),
        ({"task_type": "t2v"}, "t2v"),
        ({"task_type": "i2i", "image_path": "a.png"}, "image_edit"),
        ({"task_type": "v2v", "video_path": "a.mp4"}, "video_edit"),
    ],
)
def test_task_follows_from_the_inputs_or_the_field(fields, task):
    assert resolve_task(check_request({"prompt": "x", **fields})).name == task


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": ""}, "prompt: missing or empty"),
        ({"prompt": ["a", " "]}, "prompt: missing or empty"),
        ({"prompt": "x" * 20_000}, "prompt: 20000 characters"),
        ({"task_type": "x2t_image"}, "task_type: 'x2t_image' given"),
        ({"task_type": "i2v"}, "image_path: missing, i2v needs one"),
        ({"task_type": "video_edit"}, "video_path: missing, video_edit needs one"),
        ({"task_type": "t2i", "video_path": "a.mp4"}, "t2i takes no video"),
        ({"task_type": "i2v", "image_path": "a", "video_path": "b"}, "takes no video"),
        ({"image_path": ["a.png", "b.png"]}, "2 sources given"),
        ({"width": 0}, "width: 0 given"),
        ({"width": 65, "height": 64}, "width: 65 given"),
        ({"height": 1040}, "height: 1040 given"),
        ({"image_path": "a.png", "width": 64}, "takes the size of its source"),
        ({"resolution": "image_256res"}, "t2i takes width and height"),
        ({"num_frames": 0}, "num_frames: 0 given"),
        ({"num_frames": 122}, "num_frames: 122 given"),
        ({"task_type": "t2v", "num_frames": 4}, "t2v makes 5 to 121 frames"),
        ({"task_type": "t2i", "num_frames": 9}, "has the frames of its source"),
        ({"video_path": "a.mp4", "num_frames": 9}, "has the frames of its source"),
        ({"cfg_interval": [0.4]}, "cfg_interval"),
        ({"cfg_interval": [0.9, 0.4]}, "two rising numbers"),
        ({"cfg_renorm_type": "local"}, "cfg_renorm_type"),
        ({"timestep_shift": 0}, "timestep_shift: 0 given"),
        ({"guidance_scale": float("nan")}, "guidance_scale: nan given"),
        ({"seed": -1}, "seed: -1 given"),
        ({"negative_prompt": "ugly"}, "Lance has none"),
    ],
)
def test_bad_field_is_named(fields, message):
    with pytest.raises(RequestError, match=message):
        check_request({"prompt": "x", **fields})


def test_defaults_are_the_official_ones():
    plan = make_plan(TASKS["t2v"], {})
    assert (plan.height, plan.width, plan.num_frames) == (480, 848, 121)
    assert plan.latent_grid == (31, 30, 53)
    assert (plan.num_inference_steps, plan.timestep_shift) == (30, 3.5)
    assert (plan.guidance_scale, plan.cfg_interval) == (4.0, (0.4, 1.0))
    assert (plan.cfg_renorm_type, plan.cfg_renorm_min) == ("global", 0.0)
    assert make_plan(TASKS["t2i"], {}).latent_grid == (1, 48, 48)


def test_a_plan_has_the_fields_of_the_table():
    table = (*REQUEST_FIELDS, RequestField("glow", "float", "Of the light."))

    @dataclass(frozen=True)
    @carries(table)
    class Plan(LancePlan):
        pass

    make: Any = Plan  # types know nothing of what the table declares
    assert make(TASKS["t2i"], glow=0.1).glow == 0.1


def test_http_takes_our_own_fields_and_no_other():
    own = {
        *("resolution", "cfg_interval", "cfg_renorm_type", "cfg_renorm_min"),
        *("timestep_shift", "system_prompt", "source_latents", "teacache_params"),
    }
    assert sampling_params.LanceSamplingParams.video_request_extra_fields() == own
    assert sampling_params.LanceSamplingParams.image_request_extra_fields() == own | {
        "image_path"
    }


@pytest.mark.parametrize(
    ("task", "variant", "preset"),
    [
        ("t2i", "Lance_3B", "image_768res"),
        ("image_edit", "Lance_3B", "image_768res"),
        ("x2t_image", "Lance_3B", "image_768res"),
        ("t2v", "Lance_3B_Video", "video_480p"),
        ("i2v", "Lance_3B_Video", "video_480p"),
        ("video_edit", "Lance_3B_Video", "video_480p"),
        ("x2t_video", "Lance_3B_Video", "video_480p"),
    ],
)
def test_checkpoint_and_preset_of_each_task(task, variant, preset):
    assert (TASKS[task].variant, TASKS[task].resolution) == (variant, preset)
    assert make_plan(TASKS[task], {}).resolution == preset


def test_edit_instructions_have_typographic_apostrophes():
    for name in ("image_edit", "video_edit"):
        assert TASKS[name].system_prompt.count("\u2019") == 2
        assert "'" not in TASKS[name].system_prompt


def test_frames_are_rounded_as_officially():
    assert [round_frames(n) for n in (1, 5, 48, 49, 50, 121)] == [1, 5, 45, 49, 49, 121]


def test_sizes_beyond_the_position_table_are_refused():
    check_target_size(576, 1024)
    with pytest.raises(RequestError, match="1152x496, above 1024"):
        check_target_size(496, 1152)


class TestPlacement:
    """Variant: option, then path, then task."""

    def test_root_runs_each_task_on_its_own_directory(self, lance):
        placement = place_tasks(lance.files, None, None)
        assert placement.variants == {
            "t2i": "Lance_3B",
            "image_edit": "Lance_3B",
            "t2v": "Lance_3B_Video",
            "i2v": "Lance_3B_Video",
            "video_edit": "Lance_3B_Video",
        }
        assert placement.loaded() == placement.vision()

    def test_path_of_a_directory_runs_all_tasks_on_it(self, lance):
        files = find_files(lance.path / "Lance_3B_Video")
        placement = place_tasks(files, None, None)
        assert set(placement.variants.values()) == {"Lance_3B_Video"}

    def test_option_wins_over_the_path(self, lance):
        files = find_files(lance.path / "Lance_3B_Video")
        assert place_tasks(files, "Lance_3B", None).loaded() == ("Lance_3B",)

    def test_tasks_decide_what_is_loaded(self, lance):
        placement = place_tasks(lance.files, None, "t2i, t2v")
        assert placement.loaded() == ("Lance_3B", "Lance_3B_Video")
        assert placement.vision() == ()
        with pytest.raises(ConfigError, match="image_edit is not served here"):
            placement.variant_of(TASKS["image_edit"])

    def test_missing_directory_is_named(self, lance, tmp_path):
        shutil.copytree(lance.path, tmp_path / "lance")
        shutil.rmtree(tmp_path / "lance" / "Lance_3B_Video")
        files = find_files(tmp_path / "lance")
        placement = place_tasks(files, None, None)
        assert list(placement.variants) == ["t2i", "image_edit"]
        with pytest.raises(ConfigError, match="Lance_3B_Video is missing"):
            placement.variant_of(TASKS["i2v"])
        with pytest.raises(CheckpointError, match="Lance_3B_Video is missing"):
            place_tasks(files, None, "i2v")

    def test_unknown_names_are_refused(self, lance):
        with pytest.raises(ConfigError, match="variant: 'Lance_7B'"):
            place_tasks(lance.files, "Lance_7B", None)
        with pytest.raises(ConfigError, match="tasks: 'x2t_image'"):
            place_tasks(lance.files, None, "t2i,x2t_image")
