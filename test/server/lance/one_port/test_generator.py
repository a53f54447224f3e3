# SPDX-License-Identifier: Apache-2.0
"""Lance over HTTP: a real server, the ``openai`` client, the golden checkpoint.

It is the generator's server behind the one port, asked at its own address.
"""

import base64
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from PIL import Image

from conftest import Golden
from images import read_rgb
from server.lance_requests import (
    MIN_PSNR,
    request_of,
    video_bytes,
    worst_psnr,
)
from server.one_port import as_server
from server.servers import Server

pytestmark = pytest.mark.slow

SMALL = {"seed": 1, "num_inference_steps": 3}
# Without quantisation H.264 keeps the brightness (53 dB measured); color is stored at
# half the size, and the test's videos are noise.
LOSSLESS = {"output_compression": 100}
MIN_LUMA_PSNR = 45.0


@pytest.fixture(scope="module")
def server(one_port: Server) -> Server:
    return as_server(one_port, "generator")


@pytest.fixture(scope="module")
def openai(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def video(source_video: Path) -> Path:
    return source_video


def own_fields(golden: Golden, name: str, video: Path) -> dict[str, Any]:
    """A case's fields but for prompt, size and sources."""
    fields = request_of(golden, name, video)
    for other in ("prompt", "width", "height", "image_path", "video_path"):
        fields.pop(other, None)
    return fields


def size_of(golden: Golden, name: str) -> str:
    height, width = golden.json["cases"][name]["output_size_hw"]
    return f"{width}x{height}"


def wait_for(openai: OpenAI, job: Any) -> Any:
    """Poll a video job to its end; returns it with the progress values seen."""
    deadline, seen = time.monotonic() + 120, [job.progress]
    while time.monotonic() < deadline:
        job = openai.videos.retrieve(job.id)
        seen.append(job.progress)
        if job.status in ("completed", "failed"):
            return job, seen
        time.sleep(0.02)
    raise AssertionError(f"no end of {job}")


def frames_of(openai: OpenAI, job: Any, folder: Path) -> list[np.ndarray]:
    file = folder / f"{job.id}.mp4"
    file.write_bytes(openai.videos.download_content(job.id).read())
    with av.open(str(file)) as container:
        assert container.streams.video[0].average_rate == 12
        return [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]


def luma_psnr(golden: Golden, name: str, frames: list[np.ndarray]) -> float:
    """The smallest PSNR in dB of the brightness of the stored reference frames."""
    case = golden.json["cases"][name]
    assert len(frames) == case["output_frames"]
    files = case["output_files"]
    shown = frames if len(files) == len(frames) else frames[-1:]
    errors = []
    for frame, file in zip(shown, files, strict=True):
        rgb = np.asarray(Image.open(golden.path / file).convert("RGB"))
        want = av.VideoFrame.from_ndarray(rgb, format="rgb24").to_ndarray(format="gray")
        got = frame[: want.shape[0], : want.shape[1]]
        errors.append(np.mean((got.astype(float) - want.astype(float)) ** 2))
    return float(10 * np.log10(255**2 / max([*errors, 1e-9])))


@pytest.mark.parametrize("name", ["t2i", "t2i_channel_renorm"])
def test_image_equals_the_official_one(name, openai, golden, video):
    response = openai.images.generate(
        prompt=golden.json["cases"][name]["prompt"],
        size=size_of(golden, name),  # type: ignore[arg-type]
        output_format="png",
        response_format="b64_json",
        extra_body=own_fields(golden, name, video),
    )
    [item] = response.data
    picture = read_rgb(base64.b64decode(item.b64_json))
    assert worst_psnr(golden, name, [picture]) >= MIN_PSNR


def test_edit_equals_the_official_one(openai, golden, video):
    case = golden.json["cases"]["image_edit"]
    response = openai.images.edit(
        image=(golden.path / case["image"]).open("rb"),
        prompt=case["prompt"],
        output_format="png",
        extra_body=own_fields(golden, "image_edit", video),
    )
    [item] = response.data
    picture = read_rgb(base64.b64decode(item.b64_json))
    assert worst_psnr(golden, "image_edit", [picture]) >= MIN_PSNR


def test_text_to_video(openai, golden, video, tmp_path):
    fields = own_fields(golden, "t2v", video)
    job = openai.videos.create(
        prompt=golden.json["cases"]["t2v"]["prompt"],
        size=size_of(golden, "t2v"),  # type: ignore[arg-type]
        extra_body={**fields, **LOSSLESS},
    )
    job, progress = wait_for(openai, job)
    assert job.status == "completed", job
    assert progress == sorted(progress)
    assert progress[-1] == 100
    frames = frames_of(openai, job, tmp_path)
    assert luma_psnr(golden, "t2v", frames) >= MIN_LUMA_PSNR


@pytest.mark.parametrize("name", ["i2v", "video_edit"])
def test_video_with_a_source(name, openai, golden, video, tmp_path):
    case = golden.json["cases"][name]
    source = video if name == "video_edit" else golden.path / case["image"]
    job = openai.videos.create(
        prompt=case["prompt"],
        input_reference=source.open("rb"),
        extra_body={**own_fields(golden, name, video), **LOSSLESS},
    )
    job, _ = wait_for(openai, job)
    assert job.status == "completed", job
    frames = frames_of(openai, job, tmp_path)
    assert luma_psnr(golden, name, frames) >= MIN_LUMA_PSNR


def test_progress_is_reported_step_by_step(openai):
    # Long enough to be seen between two looks at it.
    fields = {"num_frames": 9, "num_inference_steps": 200, "seed": 1}
    job = openai.videos.create(
        prompt="waves",
        size="192x160",  # type: ignore[arg-type]
        extra_body=fields,
    )
    _, progress = wait_for(openai, job)
    between = {value for value in progress if 0 < value < 100}
    assert len(between) >= 3


def test_n_outputs_have_the_seeds_that_follow(openai):
    def pictures(**fields: Any) -> list[np.ndarray]:
        response = openai.images.generate(
            prompt="a cat",
            size="64x48",  # type: ignore[arg-type]
            output_format="png",
            response_format="b64_json",
            extra_body=fields,
        )
        return [read_rgb(base64.b64decode(item.b64_json)) for item in response.data]

    both = pictures(n=2, **SMALL)
    [second] = pictures(**{**SMALL, "seed": 2})
    assert len(both) == 2
    assert np.abs(both[1].astype(int) - second.astype(int)).max() <= 1


def test_uploads_are_deleted(openai, golden, video):
    def folders() -> set[Path]:
        return set(Path(tempfile.gettempdir()).glob("sglang-ext-gen-upload-*"))

    before = folders()
    job = openai.videos.create(
        prompt="x",
        input_reference=video.open("rb"),
        extra_body={"resolution": "video_192p", "num_inference_steps": 2},
    )
    assert wait_for(openai, job)[0].status == "completed"
    with pytest.raises(BadRequestError):
        openai.videos.create(prompt="x", input_reference=b"no media")
    deadline = time.monotonic() + 10
    while folders() - before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not folders() - before


@pytest.mark.parametrize(
    ("route", "fields", "message"),
    [
        ("images", {"prompt": ""}, "prompt: missing or empty"),
        ("images", {"size": "65x64"}, "size: width 65 given"),
        ("images", {"size": "2048x2048"}, "size: width 2048 given"),
        ("images", {"task_type": "t2v"}, "T2V"),
        ("images", {"image_path": "/etc/passwd"}, "image_path: unknown field"),
        ("images", {"cfg_interval": [0.9, 0.1]}, "cfg_interval"),
        ("images", {"surprise": 1}, "surprise: unknown field"),
        ("videos", {"num_frames": 0}, "num_frames: 0 given"),
        ("videos", {"num_frames": 10_000}, "num_frames: 10000 given"),
        ("videos", {"seconds": 60}, "seconds: 60 given"),
        ("videos", {"seconds": "4", "num_frames": 9}, "choose one"),
        ("videos", {"task_type": "i2v"}, "input_reference: missing"),
        ("videos", {"video_path": "/etc/passwd"}, "video_path: unknown field"),
        ("videos", {"video_url": "http://127.0.0.1/"}, "video_url: unknown field"),
    ],
)
def test_bad_field_is_refused_by_name(route, fields, message, server):
    path = {"images": "/v1/images/generations", "videos": "/v1/videos"}[route]
    response = httpx.post(server.url + path, json={"prompt": "a cat", **fields})
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]["message"]


def test_bad_uploads_are_refused(server, golden, tmp_path):
    def post(path: str, files: Any, **fields: Any) -> str:
        response = httpx.post(server.url + path, data=fields, files=files)
        assert response.status_code == 400, response.text
        return response.json()["error"]["message"]

    picture = (golden.path / "input_image.png").read_bytes()
    edits, videos = "/v1/images/edits", "/v1/videos"
    ask = {"prompt": "x"}
    noise = {"image": ("a.png", b"noise")}
    assert "not a readable picture" in post(edits, noise, **ask)
    two = [("image[]", ("a.png", picture)), ("image[]", ("b.png", picture))]
    assert "image: 2 sources given" in post(edits, two, **ask)
    assert "not by a mask" in post(edits, {"mask": ("m.png", picture)}, **ask)
    assert "image: missing" in post(edits, {"": ("", b"")}, **ask)
    assert "takes the size of its source" in post(
        edits, {"image": ("a.png", picture)}, size="64x64", **ask
    )
    for clip, message in (
        (b"noise", "not a readable video"),
        (video_bytes(0), "it has no frames"),
        (video_bytes(24)[:500], "not a readable video"),
        (video_bytes(10_000), "10000 frames, at most 3600"),
    ):
        sent = {"input_reference": ("a.avi", clip)}
        assert message in post(videos, sent, **ask)
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_unknown_job(openai):
    with pytest.raises(NotFoundError):
        openai.videos.retrieve("no-such-job")
