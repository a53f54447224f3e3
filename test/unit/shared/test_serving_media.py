# SPDX-License-Identifier: Apache-2.0
"""Uploads and the bodies that edits and videos become."""

import asyncio
from pathlib import Path

import httpx
import pytest
from starlette.datastructures import Headers

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.models.lance import request as lance
from sglang_ext_gen.serving import media, uploads
from sglang_ext_gen.serving.replies import Refusal
from sglang_ext_gen.serving.served_model import TEXT_KINDS, ServedModel

MODEL = ServedModel(
    title="Lance",
    fields=frozenset(f.name for f in lance.REQUEST_FIELDS if f.doors == "all"),
    routes=frozenset({media.EDITS, media.VIDEOS}),
    check=lance.check_request,
    texts=frozenset(f.name for f in lance.REQUEST_FIELDS if f.kind in TEXT_KINDS),
)
NO_FORM = uploads.Form({}, ())


def read(tmp_path: Path, **parts) -> uploads.Form:
    request = httpx.Request("POST", "http://x/", **parts)
    headers = Headers(dict(request.headers))
    body = request.read()
    texts = MODEL.texts | media.TEXTS
    return asyncio.run(uploads.read_form(headers, body, texts, tmp_path))


def test_form_fields_are_typed_and_files_get_names_of_ours(tmp_path):
    form = read(
        tmp_path,
        data={
            "prompt": "123",
            "seed": "7",
            "cfg_interval[]": ["0.4", "1.0"],
            "guidance_scale": "2.5",
        },
        files={"image": ("../../evil.PNG", b"picture", "image/png")},
    )
    assert form.fields == {
        "prompt": "123",
        "seed": 7,
        "cfg_interval": [0.4, 1.0],
        "guidance_scale": 2.5,
    }
    [(name, path, media_type)] = form.files
    assert (name, media_type) == ("image", "image/png")
    assert path == tmp_path / "0.png"
    assert path.read_bytes() == b"picture"


def test_damaged_forms_are_refused(tmp_path):
    headers = Headers({"content-type": "multipart/form-data; boundary=x"})
    with pytest.raises(Refusal, match="not a multipart form"):
        asyncio.run(uploads.read_form(headers, b"--y", frozenset(), tmp_path))
    headers = Headers({"content-type": "multipart/form-data"})
    with pytest.raises(Refusal, match="not a multipart form"):
        asyncio.run(uploads.read_form(headers, b"", frozenset(), tmp_path))
    files = [("image[]", ("a.png", b"x"))] * (uploads.MAX_FILES + 1)
    with pytest.raises(Refusal, match="Too many files"):
        read(tmp_path, files=files)


def test_release_deletes_our_folders_only(tmp_path):
    folder = uploads.new_folder()
    (folder / "0.png").write_bytes(b"x")
    uploads.release(folder / "0.png")
    assert not folder.exists()
    (tmp_path / "mine.png").write_bytes(b"x")
    uploads.release(tmp_path / "mine.png")
    assert (tmp_path / "mine.png").exists()


def test_edit_becomes_a_generation_with_the_upload(tmp_path):
    file = tmp_path / "0.png"
    form = uploads.Form({"prompt": "x", "n": 2}, (("image", file, "image/png"),))
    body = media.checked_edit_body(form, MODEL)
    assert body["image_path"] == str(file)
    assert (body["n"], body["response_format"]) == (2, "b64_json")
    for fields, message in (
        ({"prompt": "x", "image_path": "/etc/passwd"}, "image_path: unknown field"),
        ({"prompt": "x", "size": "64x64"}, "takes the size of its source"),
        ({}, "prompt: missing"),
    ):
        with pytest.raises((RequestError, Refusal), match=message):
            media.checked_edit_body(uploads.Form(fields, form.files), MODEL)
    with pytest.raises(RequestError, match="image: missing"):
        media.checked_edit_body(uploads.Form({"prompt": "x"}, ()), MODEL)


@pytest.mark.parametrize(
    ("name", "file", "task", "key"),
    [
        ("input_reference", "0.png", "i2v", "input_reference"),
        ("input_reference", "0.mp4", "v2v", "video_path"),
        ("video_reference", "0", "v2v", "video_path"),
    ],
)
def test_video_source_decides_the_task(name, file, task, key):
    form = uploads.Form({}, ((name, Path(file), ""),))
    body = media.checked_video_body({"prompt": "x"}, form, MODEL)
    assert body["task_type"] == task
    assert body[key] == file
    assert body["seconds"] is None


def test_video_without_a_source():
    body = media.checked_video_body({"prompt": "x", "seconds": "4"}, NO_FORM, MODEL)
    assert (body["task_type"], body["seconds"]) == ("t2v", 4)
    for fields, message in (
        ({"seconds": 0}, "seconds: 0 given"),
        ({"seconds": 4, "num_frames": 9}, "choose one"),
        ({"input_reference": "/etc/passwd"}, "input_reference: unknown field"),
        ({"output_path": "/tmp"}, "output_path: unknown field"),
    ):
        with pytest.raises((RequestError, Refusal), match=message):
            media.checked_video_body({"prompt": "x", **fields}, NO_FORM, MODEL)
