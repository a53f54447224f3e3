# SPDX-License-Identifier: Apache-2.0
"""What a video request becomes; Lance is the sample family."""

from pathlib import Path

import pytest

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.http.errors import Refusal
from sglang_ext_gen.http.served_model import ServedModel
from sglang_ext_gen.http.uploads import Form, Upload
from sglang_ext_gen.http.videos import PATH, checked_video_body
from sglang_ext_gen.models.lance import request as lance

MODEL = ServedModel(
    title="Lance",
    table=tuple(f for f in lance.REQUEST_FIELDS if f.interfaces == "all"),
    routes=frozenset({PATH}),
    check=lance.check_request,
)


@pytest.mark.parametrize(
    ("name", "file", "task", "key"),
    [
        ("input_reference", "0.png", "i2v", "input_reference"),
        ("input_reference", "0.mp4", "v2v", "video_path"),
        ("video_reference", "0", "v2v", "video_path"),
    ],
)
def test_a_source_decides_the_task(name, file, task, key):
    form = Form({"prompt": "x"}, (Upload(name, Path(file)),))
    body = checked_video_body(form, MODEL)
    assert body["task_type"] == task
    assert body[key] == file
    assert body["seconds"] is None


def test_without_a_source():
    body = checked_video_body(Form({"prompt": "x", "seconds": "4"}), MODEL)
    assert (body["task_type"], body["seconds"]) == ("t2v", 4)
    for fields, message in (
        ({"seconds": 0}, "seconds: 0 given"),
        ({"seconds": 4, "num_frames": 9}, "choose one"),
        ({"input_reference": "/etc/passwd"}, "input_reference: unknown field"),
        ({"output_path": "/tmp"}, "output_path: unknown field"),
        ({"task_type": "i2v"}, "input_reference: missing"),
    ):
        with pytest.raises((RequestError, Refusal), match=message):
            checked_video_body(Form({"prompt": "x", **fields}), MODEL)


def test_one_source_under_its_name():
    upload = Upload("input_reference", Path("0.png"))
    with pytest.raises(RequestError, match="2 files given, expected one"):
        checked_video_body(Form({"prompt": "x"}, (upload, upload)), MODEL)
    other = Form({"prompt": "x"}, (Upload("image", Path("0.png")),))
    with pytest.raises(RequestError, match="image: a file given"):
        checked_video_body(other, MODEL)
