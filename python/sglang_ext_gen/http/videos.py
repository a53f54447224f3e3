# SPDX-License-Identifier: Apache-2.0
"""``POST /v1/videos``: a JSON body, or a form with a source, as a flat JSON body.

Differences from stock: a source is uploaded, never fetched from a URL or named by a
path; one source a request; ``seconds`` has no default of its own.
"""

from typing import Any

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.http import images
from sglang_ext_gen.http.served_model import ServedModel
from sglang_ext_gen.http.uploads import VIDEO_SUFFIXES, Form, Upload
from sglang_ext_gen.request.fields import RequestField

PATH = "/v1/videos"
# The family's name of a field -> the client's.
SPELLING = {"image_path": "input_reference", "video_path": "input_reference"}

_FORWARDED = (
    images.OUTPUT_COMPRESSION,
    RequestField("seconds", "int", "Length of the video.", minimum=1, maximum=10),
)
_FILES = ("input_reference", "video_reference")
# Field of the source -> what a family that asks for a task is told.
_TASKS = {None: "t2v", "image_path": "i2v", "video_path": "v2v"}


def checked_video_body(form: Form, model: ServedModel) -> dict[str, Any]:
    """Check a video request and rewrite it as a flat body for ``/v1/videos``.

    Args:
        form: The fields, of a form or of a JSON object, and the files.
        model: The model that would run it.

    Raises:
        RequestError: Names the field, in the client's spelling.
        Refusal: 400, a field that is not known.
    """
    given = dict(form.fields)
    seconds = given.get("seconds")
    if isinstance(seconds, str) and seconds.isdecimal():
        given["seconds"] = int(seconds)  # as OpenAI's client sends it
    if seconds is not None and given.get("num_frames") is not None:
        raise RequestError("seconds", "given together with num_frames; choose one")
    source = _source(form)
    name = _family_field(source) if source is not None else None
    if "task_type" in model.fields:
        given.setdefault("task_type", _TASKS[name])
    checked = images.checked_image_body(
        given,
        model,
        sources={name: str(source.path)} if source is not None and name else {},
        spelling=SPELLING,
        forwarded=_FORWARDED,
    )
    if "image_path" in checked:
        checked[SPELLING["image_path"]] = checked.pop("image_path")
    return {"seconds": None, **checked}


def _source(form: Form) -> Upload | None:
    for file in form.files:
        if file.field not in _FILES:
            raise RequestError(file.field, f"a file given, expected it as {_FILES[0]}")
    if len(form.files) > 1:
        raise RequestError(_FILES[0], f"{len(form.files)} files given, expected one")
    return form.files[0] if form.files else None


def _family_field(source: Upload) -> str:
    is_video = (
        source.field == "video_reference"
        or source.media_type.startswith("video/")
        or source.path.suffix in VIDEO_SUFFIXES
    )
    return "video_path" if is_video else "image_path"
