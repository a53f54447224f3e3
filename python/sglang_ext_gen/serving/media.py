# SPDX-License-Identifier: Apache-2.0
"""``POST /v1/images/edits`` and ``POST /v1/videos``: sources by upload only.

Both end as the flat JSON body of a stock route, with checked values and the uploads as
paths, so that every field of the family works on every route:

- an edit runs through stock's ``/v1/images/generations``, because stock's own edits
  route drops the family's fields;
- a video runs through stock's ``/v1/videos``.

Differences from stock: a source is never fetched from a URL and never named by a path;
one source a request; ``seconds`` has no default of its own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.request_fields import RequestField
from sglang_ext_gen.serving import images
from sglang_ext_gen.serving.served_model import ServedModel
from sglang_ext_gen.serving.uploads import Form

EDITS, VIDEOS = "/v1/images/edits", "/v1/videos"
# Protocol fields whose value is text, besides the family's.
TEXTS = frozenset(
    {
        "background",
        "model",
        "output_format",
        "output_quality",
        "quality",
        "response_format",
        "size",
        "user",
    }
)

_SECONDS = RequestField("seconds", "int", "Length of the video.", minimum=1, maximum=10)
_FORWARDED = tuple(
    field for field in images.FORWARDED if field.name.startswith("output_c")
)
_UPLOAD = "send the file itself, as multipart/form-data"
_SOURCES = {"image": "image_path", "video": "video_path"}


def checked_edit_body(form: Form, model: ServedModel) -> dict[str, Any]:
    """Check an edit and rewrite it as a body for ``/v1/images/generations``.

    Raises:
        RequestError: Names the field, in the client's spelling.
        Refusal: 400, a field that is not known.
    """
    path = _single_file(form, ("image", "image[]"))
    if path is None:
        raise RequestError("image", f"missing; {_UPLOAD}")
    sources = {"image_path": str(path)}
    checked = images.checked_image_body(form.fields, model, sources=sources)
    # As on stock's edits route; its generations route prefers a URL.
    return {"response_format": "b64_json", **checked}


def checked_video_body(
    fields: Mapping[str, Any], form: Form, model: ServedModel
) -> dict[str, Any]:
    """Check a video request and rewrite it as a flat body for ``/v1/videos``.

    Args:
        fields: The JSON object, or the fields of the form.
        form: With the files; empty for a JSON body.
        model: The model that would run it.

    Raises:
        RequestError: Names the field, in the client's spelling.
        Refusal: 400, a field that is not known.
    """
    given = dict(fields)
    seconds = given.pop("seconds", None)
    if seconds is not None:
        # OpenAI's client sends the number as text.
        is_digits = isinstance(seconds, str) and seconds.isdecimal()
        seconds = _SECONDS.check(int(seconds) if is_digits else seconds)
        if given.get("num_frames") is not None:
            raise RequestError("seconds", "given together with num_frames; choose one")
    path = _single_file(form, ("input_reference", "video_reference"))
    medium = _medium(form) if path is not None else None
    given.setdefault("task_type", {None: "t2v", "image": "i2v", "video": "v2v"}[medium])
    sources = {_SOURCES[medium]: str(path)} if medium is not None else {}
    checked = images.checked_image_body(
        given, model, sources=sources, forwarded=_FORWARDED
    )
    if "image_path" in checked:
        checked["input_reference"] = checked.pop("image_path")
    return {**checked, "seconds": seconds}


def _single_file(form: Form, names: tuple[str, ...]) -> Path | None:
    for name, _, _ in form.files:
        if name not in names:
            raise RequestError(name, f"a file given, expected it as {names[0]}")
    if len(form.files) > 1:
        raise RequestError(names[0], f"{len(form.files)} files given, expected one")
    return form.files[0][1] if form.files else None


def _medium(form: Form) -> str:
    [(name, path, media_type)] = form.files
    is_video = name == "video_reference" or media_type.startswith("video/")
    return "video" if is_video or path.suffix in _VIDEO_SUFFIXES else "image"


_VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")
