# SPDX-License-Identifier: Apache-2.0
"""An edit becomes a generation with pictures; every field of the family is checked."""

import asyncio
import http.server
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.http import edits
from sglang_ext_gen.http.errors import Refusal
from sglang_ext_gen.http.served_model import ServedModel
from sglang_ext_gen.http.uploads import Form, Upload
from sglang_ext_gen.media import limits
from sglang_ext_gen.models.lance import request as lance
from sglang_ext_gen.request.fields import RequestField

TABLE = (
    RequestField("prompt", "strs", "Text."),
    RequestField("image_path", "strs", "Pictures.", interfaces="cli"),
    RequestField("seed", "int", "Seed.", minimum=0),
    RequestField("sigmas", "floats", "Levels.", minimum=0, maximum=1),
    RequestField("width", "int", "Width.", multiple_of=16),
    RequestField("height", "int", "Height.", multiple_of=16),
    RequestField("num_outputs_per_prompt", "int", "Outputs.", maximum=10),
)


def check(values: Mapping[str, Any]) -> dict[str, Any]:
    if "prompt" not in values:
        raise RequestError("prompt", "missing")
    return {
        field.name: field.check(values[field.name])
        for field in TABLE
        if values.get(field.name) is not None
    }


def served(table: Any, check: Any) -> ServedModel:
    fields = tuple(field for field in table if field.interfaces == "all")
    return ServedModel("Test", fields, frozenset({edits.PATH}), check)


MODEL = served(TABLE, check)
LANCE = served(lance.REQUEST_FIELDS, lance.check_request)
FILES = (Upload("image", Path("/up/0.png")), Upload("image[]", Path("/up/1")))


def send(
    fields: dict[str, Any],
    files: tuple[Upload, ...] = FILES[:1],
    model: ServedModel = MODEL,
    folder: Path = Path("/none"),
) -> dict[str, Any]:
    return asyncio.run(edits.checked_edit_body(Form(fields, files), model, folder))


def test_every_field_reaches_the_family() -> None:
    fields = {
        **{"prompt": "12", "seed": 3, "sigmas": [1, 0.5], "n": 2, "size": "64x32"},
        **{"output_format": "png", "model": "any"},
    }
    assert send(fields, FILES) == {
        **{"prompt": "12", "seed": 3, "sigmas": [1.0, 0.5], "n": 2, "size": None},
        **{"width": 64, "height": 32, "image_path": ["/up/0.png", "/up/1"]},
        **{"output_format": "png", "response_format": "b64_json"},
    }


def test_no_size_leaves_it_to_the_family() -> None:
    for fields in ({"prompt": "a"}, {"prompt": "a", "size": "auto"}):
        assert not {"width", "height"} & send(fields).keys()
    assert send({"prompt": "a"})["size"] is None


@pytest.mark.parametrize(
    ("fields", "files", "field"),
    [
        ({"prompt": "a"}, (), "image"),
        ({"prompt": "a"}, (Upload("other", Path("x")),), "other"),
        ({"prompt": "a"}, FILES[:1] * (limits.MAX_IMAGES + 1), "image"),
        ({"prompt": "a", "url": ["http://x"] * 16}, FILES[:1], "image"),
        ({"prompt": "a", "image": "http://x"}, FILES[:1], "image"),
        ({"prompt": "a", "mask": "x"}, FILES[:1], "mask"),
        ({"prompt": "a"}, (*FILES, Upload("mask", Path("x"))), "mask"),
        ({"prompt": "a", "input_fidelity": "high"}, FILES[:1], "input_fidelity"),
        ({"prompt": "a", "seed": "many"}, FILES[:1], "seed"),
        ({"prompt": "a", "sigmas": [2]}, FILES[:1], "sigmas"),
        ({"prompt": ["a", "b"]}, FILES[:1], "prompt"),
        ({"seed": 1}, FILES[:1], "prompt"),
        ({"prompt": "a", "size": "64x33"}, FILES[:1], "size"),
        ({"prompt": "a", "url": "file:///etc/passwd"}, (), "url"),
        ({"prompt": "a", "url": "http://127.0.0.1/"}, (), "url"),
    ],
)
def test_refused(fields: dict[str, Any], files: Any, field: str) -> None:
    with pytest.raises(RequestError) as caught:
        send(fields, files)
    assert caught.value.field == field


@pytest.mark.parametrize("name", ["what", "image_path", "enhance_prompt", "flow_shift"])
def test_an_unknown_field_is_refused(name: str) -> None:
    with pytest.raises(Refusal, match=f"{name}: unknown field"):
        send({"prompt": "a", name: "x"})


def test_the_family_says_how_many_pictures() -> None:
    assert send({"prompt": "x"}, FILES[:1], LANCE)["image_path"] == ["/up/0.png"]
    with pytest.raises(RequestError, match="image: 2 sources given, Lance takes one"):
        send({"prompt": "x"}, FILES, LANCE)
    with pytest.raises(RequestError, match="takes the size of its source"):
        send({"prompt": "x", "size": "64x64"}, FILES[:1], LANCE)


class _Pictures(http.server.BaseHTTPRequestHandler):
    asked: tuple[str, ...] = ()

    def do_GET(self) -> None:
        _Pictures.asked += (self.path,)
        body = self.path.encode() * 1000
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a server whose host the operator allows."""
    monkeypatch.setenv("SGLANG_EXT_GEN_MEDIA_HOSTS", "127.0.0.1")
    _Pictures.asked = ()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pictures) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_addresses_follow_the_uploads(host: str, tmp_path: Path) -> None:
    fields = {"prompt": "a", "url": [f"{host}/a", f"{host}/b"]}
    body = send(fields, FILES, folder=tmp_path)
    first, second, *fetched = body["image_path"]
    assert [first, second] == ["/up/0.png", "/up/1"]
    assert [Path(path).read_bytes()[:2] for path in fetched] == [b"/a", b"/b"]
    assert all(Path(path).parent == tmp_path for path in fetched)


def test_nothing_is_fetched_for_a_bad_request(host: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="seed"):
        send({"prompt": "a", "seed": -1, "url": f"{host}/a"}, folder=tmp_path)
    assert _Pictures.asked == ()


def test_all_addresses_together_are_bounded(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_UPLOAD_BODY_BYTES", 3000)
    send({"prompt": "a", "url": f"{host}/a"}, folder=tmp_path)
    fields = {"prompt": "a", "url": [f"{host}/a", f"{host}/b"]}
    with pytest.raises(RequestError, match=r"url: .*more than 1000 bytes"):
        send(fields, folder=tmp_path)
