# SPDX-License-Identifier: Apache-2.0
"""What a client may send or name as a medium, and what is refused."""

import base64

import pytest

from sglang_ext_gen import envs
from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.media import limits
from sglang_ext_gen.media.checks import read_media

BYTES = b"any bytes"


def data_url(data: bytes) -> str:
    return "data:application/octet-stream;base64," + base64.b64encode(data).decode()


class Wrapped:
    """As SGLang's ImageData and VideoData."""

    url = data_url(BYTES)


@pytest.mark.parametrize(
    "source", [BYTES, data_url(BYTES), Wrapped(), {"url": data_url(BYTES)}]
)
def test_bytes_come_back(source):
    assert read_media(source, "image") == BYTES


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "empty"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64,@@@", "not base64"),
        ("data:image/png,abc", "must be base64"),
        ("/etc/passwd", "file names are only allowed"),
        ("file:///etc/passwd", "file names are only allowed"),
        ("", "file names are only allowed"),
        (17, "cannot read a int"),
        ({"kind": "odd"}, "cannot read a dict"),
        ("http://127.0.0.1/x.png", "not public"),
        ("https://[::1]/x.png", "not public"),
    ],
)
def test_others_are_refused(source, message):
    with pytest.raises(RequestError, match=f"^sound: .*{message}"):
        read_media(source, "sound")


def test_large_media_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(limits, "MAX_MEDIA_BYTES", 100)
    monkeypatch.setenv(envs.MEDIA_FOLDER.name, str(tmp_path))
    (tmp_path / "a").write_bytes(bytes(101))
    for source in (bytes(101), data_url(bytes(101)), data_url(bytes(400))):
        with pytest.raises(RequestError, match="at most 100"):
            read_media(source, "image")
    with pytest.raises(RequestError, match="exceeds 100 bytes"):
        read_media("a", "image")


def test_files_are_read_from_the_media_folder_only(tmp_path, monkeypatch):
    folder = tmp_path / "media"
    folder.mkdir()
    (folder / "a").write_bytes(BYTES)
    (tmp_path / "secret").write_bytes(BYTES)
    (folder / "link").symlink_to(tmp_path / "secret")
    monkeypatch.setenv(envs.MEDIA_FOLDER.name, str(folder))
    for name in ("a", str(folder / "a"), f"file://{folder / 'a'}"):
        assert read_media(name, "image") == BYTES
    for name in ("../secret", str(tmp_path / "secret"), "link", "none", "."):
        with pytest.raises(RequestError, match="no such file"):
            read_media(name, "image")
