# SPDX-License-Identifier: Apache-2.0
"""Forms: fields in their types, files under names of ours, folders that go."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.datastructures import Headers

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.http import uploads
from sglang_ext_gen.http.errors import Refusal
from sglang_ext_gen.media import limits, upload_folders
from sglang_ext_gen.request.fields import Kind

KINDS: dict[str, Kind] = {
    **{"prompt": "strs", "url": "strs", "user": "str"},
    **{"seed": "int", "guidance_scale": "float", "sigmas": "floats"},
}


def read(tmp_path: Path, **parts: Any) -> uploads.Form:
    request = httpx.Request("POST", "http://x/", **parts)
    headers = Headers(dict(request.headers))
    return asyncio.run(uploads.read_form(headers, request.read(), KINDS, tmp_path))


def fields_of(tmp_path: Path, **data: Any) -> dict[str, Any]:
    named = {name.replace("__", "[]"): value for name, value in data.items()}
    return read(tmp_path, data=named, files={"image": b"x"}).fields


def test_files_get_names_of_ours(tmp_path):
    files = {"image": ("../../evil.PNG", b"picture", "image/png")}
    form = read(tmp_path, data={"seed": "7"}, files=files)
    assert form.fields == {"seed": 7}
    assert form.files == (uploads.Upload("image", tmp_path / "0.png", "image/png"),)
    assert form.files[0].path.read_bytes() == b"picture"


def test_texts_stay_texts_and_others_are_read_as_json(tmp_path):
    data = {
        **{"prompt": "123", "user": "7", "seed": "7", "guidance_scale": "2.5"},
        **{"what": "{", "extra_body": '{"seed": 1}'},
    }
    assert fields_of(tmp_path, **data) == {
        **{"prompt": "123", "user": "7", "seed": 7, "guidance_scale": 2.5},
        **{"what": "{", "extra_body": {"seed": 1}},
    }
    assert fields_of(tmp_path, seed="many") == {"seed": "many"}


@pytest.mark.parametrize(
    "data",
    [
        {"sigmas": "[1, 0.5]"},
        {"sigmas": ["1", "0.5"]},
        {"sigmas__": ["1", "0.5"]},
        {"sigmas__": "[1, 0.5]"},
    ],
    ids=str,
)
def test_a_list_in_one_part_or_in_many(tmp_path, data):
    assert fields_of(tmp_path, **data) == {"sigmas": [1, 0.5]}


def test_a_list_of_one(tmp_path):
    assert fields_of(tmp_path, sigmas__="1") == {"sigmas": [1]}
    assert fields_of(tmp_path, url__=["a", "b"]) == {"url": ["a", "b"]}


def test_a_single_value_given_twice_is_refused(tmp_path):
    for name in ("seed", "user", "what"):
        with pytest.raises(RequestError, match=f"{name}: given twice"):
            fields_of(tmp_path, **{name: ["1", "2"]})


def test_damaged_forms_are_refused(tmp_path):
    headers = Headers({"content-type": "multipart/form-data; boundary=x"})
    for body in (b"--y", b"nonsense", b"--x\r\n\r\nno name\r\n--x--\r\n"):
        with pytest.raises(Refusal, match="not a multipart form"):
            asyncio.run(uploads.read_form(headers, body, KINDS, tmp_path))
    headers = Headers({"content-type": "multipart/form-data"})
    with pytest.raises(Refusal, match="not a multipart form"):
        asyncio.run(uploads.read_form(headers, b"", KINDS, tmp_path))
    files = [("image[]", ("a.png", b"x"))] * (limits.MAX_FORM_PARTS + 1)
    with pytest.raises(Refusal, match="Too many files"):
        read(tmp_path, files=files)


def test_release_deletes_our_folders_only(tmp_path):
    folder = upload_folders.new_folder()
    (folder / "0.png").write_bytes(b"x")
    upload_folders.release(folder / "0.png")
    assert not folder.exists()
    (tmp_path / "mine.png").write_bytes(b"x")
    upload_folders.release(tmp_path / "mine.png")
    assert (tmp_path / "mine.png").exists()
