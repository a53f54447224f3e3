# SPDX-License-Identifier: Apache-2.0
"""Edits over HTTP: a real server, the ``openai`` client, good and bad pictures."""

import base64
import http.server
import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import BadRequestError, InternalServerError, OpenAI
from PIL import Image

from conftest import GOLDEN_ROOT
from images import psnr, read_rgb
from server.one_port import wait_until
from server.servers import FLOAT32, Server

pytestmark = pytest.mark.slow

GOLDEN = GOLDEN_ROOT / "qwen_image" / "edit"
EDITS = "/v1/images/edits"
# Offload of components is taken, and on a CPU all stays where it is.
FLAGS = (
    *(*FLOAT32, "--batching-max-size", "4"),
    *("--text-encoder-cpu-offload", "true", "--vae-cpu-offload", "true"),
)
SMALL = {"reference_pixels": 128 * 128, "num_inference_steps": 3}


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's folder for temporary files."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def server(serve: Callable[..., Server], temporary: Path) -> Server:
    # One host of this machine is allowed, under one of its names.
    environment = {"SGLANG_EXT_GEN_MEDIA_HOSTS": "localhost", "TMPDIR": str(temporary)}
    return serve(GOLDEN / "Qwen-Image-Edit-2509", *FLAGS, **environment)


@pytest.fixture(scope="module")
def openai(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def picture(width: int = 96, height: int = 64, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.radial_gradient("L").resize((width, height)).convert("RGB").save(file, kind)
    return file.getvalue()


def edit(openai: OpenAI, images: list[bytes], **fields: Any) -> list[bytes]:
    response = openai.images.edit(
        image=[(f"{i}.png", data) for i, data in enumerate(images)],
        prompt=fields.pop("prompt", "make it blue"),
        size=fields.pop("size", "128x128"),
        n=fields.pop("n", 1),
        response_format="b64_json",
        output_format="png",
        extra_body=fields,
    )
    return [base64.b64decode(item.b64_json or "") for item in response.data or []]


def test_picture_matches_the_reference(openai: OpenAI) -> None:
    (image,) = edit(
        openai,
        [(GOLDEN / "input_0.png").read_bytes()],
        prompt="make the circle blue and add a star",
        negative_prompt="blurry",
        true_cfg_scale=4.0,
        size="256x192",
        num_inference_steps=3,
        seed=3,
    )
    assert psnr(image, GOLDEN / "golden.png") >= 48


def test_several_references_and_outputs(openai: OpenAI) -> None:
    images = [picture(96, 64), picture(48, 80, "JPEG")]
    first, second = edit(openai, images, n=2, seed=5, **SMALL)
    (alone,) = edit(openai, images, seed=6, **SMALL)
    assert psnr(second, alone) >= 48
    assert (read_rgb(first) != read_rgb(second)).any()


def test_of_requests_in_one_batch_one_fails_alone(
    server: Server, openai: OpenAI
) -> None:
    """Its prompt has more tokens than the transformer has positions."""
    prompts = ["make it blue", "a much longer wish about a hill at night", "x " * 8000]
    fields = {"negative_prompt": " ", "seed": 5, **SMALL}

    def ask(prompt: str) -> bytes | InternalServerError:
        try:
            (image,) = edit(openai, [picture()], prompt=prompt, **fields)
        except InternalServerError as error:
            return error
        return image

    alone = [ask(prompt) for prompt in prompts]
    with ThreadPoolExecutor(4) as users:
        # While this one is drawn the others queue up.
        large = {"size": "768x768", "num_inference_steps": 60}
        busy = users.submit(edit, openai, [picture()], **large)
        wait_until(lambda: "steps: 60" in server.log.read_text(), 60)
        together = list(users.map(ask, prompts))
        busy.result()
    for image, single in zip(together[:2], alone[:2], strict=True):
        assert isinstance(image, bytes)
        assert isinstance(single, bytes)
        assert psnr(image, single) >= 48
    for error in (together[2], alone[2]):
        assert isinstance(error, InternalServerError)
        assert "RoPE text cache overflow" in str(error)
    log = server.log.read_text()
    assert "A group of 3 requests failed; each runs alone" in log
    assert "native grouped batch" not in log

    with ThreadPoolExecutor(4) as users:
        busy = users.submit(edit, openai, [picture()], **{**large, "seed": 9})
        wait_until(lambda: server.log.read_text().count("steps: 60") == 2, 60)
        together = list(users.map(ask, prompts[:2]))
        busy.result()
    for image, single in zip(together, alone[:2], strict=True):
        assert isinstance(image, bytes)
        assert isinstance(single, bytes)
        assert psnr(image, single) >= 48
    log = server.log.read_text()
    assert "2 requests are denoised in 1 loops" in log
    assert "Processed native grouped batch of 2/4 request(s)" in log


def test_steps_are_spared(openai: OpenAI) -> None:
    fields = {**SMALL, "negative_prompt": " ", "num_inference_steps": 12}
    (plain,) = edit(openai, [picture()], **fields)
    # A form holds it as JSON.
    cache = '{"max_warmup_steps": 2, "residual_diff_threshold": 0.9}'
    cached = {"enable_cache_dit": True, "cache_dit_params": cache}
    (image,) = edit(openai, [picture()], **fields, **cached)
    assert 20 < psnr(image, plain) < 60


def test_fields_change_the_picture(openai: OpenAI) -> None:
    images = [picture()]
    (plain,) = edit(openai, images, negative_prompt=" ", **SMALL)
    changes = (
        {"reference_pixels": 256 * 256},
        {"sigmas": [1.0, 0.9, 0.1]},
        {"true_cfg_scale": 1.5},
        {"negative_prompt": ""},
        {"flow_shift": 9.0},
        {"cfg_gate_step": 0.3},
    )
    for change in changes:
        (image,) = edit(openai, images, **{"negative_prompt": " ", **SMALL, **change})
        assert (read_rgb(image) != read_rgb(plain)).any(), change


def test_the_size_follows_the_last_reference(openai: OpenAI) -> None:
    (image,) = edit(openai, [picture(), picture(160, 80)], size="auto", **SMALL)
    assert read_rgb(image).shape == (736, 1440, 3)


class _Pictures(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = picture() if self.path == "/picture" else b"no picture"
        self.send_response(404 if self.path == "/missing" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Of a file server on this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pictures) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running.server_port
        running.shutdown()


def test_a_picture_by_its_address(server: Server, openai: OpenAI, port: int) -> None:
    (expected,) = edit(openai, [picture(48, 80), picture()], seed=5, **SMALL)
    response = httpx.post(
        server.url + EDITS,
        data={
            **{"prompt": "make it blue", "size": "128x128", "output_format": "png"},
            **{"seed": "5", "url": f"http://localhost:{port}/picture"},
            **{name: str(value) for name, value in SMALL.items()},
        },
        files=[("image", picture(48, 80))],
        timeout=120,
    )
    assert response.status_code == 200, response.text
    (item,) = response.json()["data"]
    assert base64.b64decode(item["b64_json"]) == expected


@pytest.mark.parametrize(
    ("url", "field", "word"),
    [
        ("http://127.0.0.1:{port}/picture", "url", "not public"),
        ("http://169.254.169.254/latest/meta-data", "url", "not public"),
        ("http://localhost:{port}/missing", "url", "404"),
        ("http://localhost:{port}/text", "image", "picture 1"),
        ("file:///etc/passwd", "url", "http or https"),
        ("/etc/passwd", "url", "http or https"),
    ],
)
def test_bad_addresses(
    server: Server, port: int, url: str, field: str, word: str
) -> None:
    response = httpx.post(
        server.url + EDITS,
        # Parts without a file name are texts.
        files={
            "prompt": (None, "make it blue"),
            "url": (None, url.format(port=port)),
        },
        timeout=30,
    )
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == field
    assert word in error["message"]


@pytest.mark.parametrize(
    ("images", "word"),
    [
        ([b"no picture"], "picture 1"),
        ([b""], "picture 1"),
        ([picture(), picture()[:60]], "picture 2"),
        ([picture(9000, 9000, "JPEG")], "9000x9000"),
        ([picture(1000, 10)], "aspect"),
        ([picture()] * 20, "20"),
        ([picture()] * 11, "11"),
    ],
    ids=["text", "empty", "truncated", "oversized", "narrow", "twenty", "eleven"],
)
def test_bad_pictures(openai: OpenAI, images: list[bytes], word: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        edit(openai, images, **SMALL)
    assert caught.value.param == "image"
    assert word in str(caught.value)


# Texts of form fields that must be refused in that field's name.
BAD_FIELDS = {
    "prompt": ("", " ", "x" * 70_000),
    "size": ("100x100", "8192x128", "128", "abc"),
    "n": ("0", "11", "1.5", "many"),
    "seed": ("-1", "1.5", "x", "[1, 2]"),
    "num_inference_steps": ("1", "201", "many"),
    "true_cfg_scale": ("nan", "0.5", "101", "high"),
    "guidance_scale": ("0.5",),
    "sigmas": ("[0.1, 0.9]", "[1, 0]", "[2, 1]", "fast", "0.5"),
    "max_sequence_length": ("0", "1", "1025"),
    "reference_pixels": ("100", "20000.5", "many", "1000000000"),
    "negative_prompt": ("x" * 70_000,),
    "response_format": ("png",),
    "output_format": ("gif",),
    "output_compression": ("101",),
    "background": ("transparent",),
    "quality": ("hd",),
    "mask": ("x",),
    "input_fidelity": ("high",),
    "image": ("http://localhost/a.png",),
    # Unknown here; stock takes or ignores each of them.
    "flow_shift": ("0", "many"),
    "cache_dit_params": ("3", '{"steps": 3}'),
    "progressive_mode": ("dct",),
    "latents": ("[0.0]",),
    "image_path": ("/etc/passwd",),
    "task_type": ("i2i",),
    "enhance_prompt": ("true",),
    "num_frames": ("2",),
    "perf_dump_path": ("/tmp/dump.json",),
    "upscaling_model_path": ("/tmp/model.pth",),
    "surprise": ("1",),
}


@pytest.mark.parametrize(
    ("field", "text"),
    [(field, text) for field, texts in BAD_FIELDS.items() for text in texts],
    ids=lambda value: value[:20],
)
def test_bad_fields(server: Server, field: str, text: str) -> None:
    response = httpx.post(
        server.url + EDITS,
        data={"prompt": "make it blue", "size": "128x128", field: text},
        files=[("image", picture())],
        timeout=30,
    )
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == field
    assert field in error["message"]


def test_damaged_forms(server: Server) -> None:
    form = {"content-type": "multipart/form-data; boundary=b"}
    cases: list[tuple[bytes, dict[str, str], int]] = [
        (b"", form, 400),
        (b"--x", form, 400),
        (b"--b\r\n\r\nno name\r\n--b--\r\n", form, 400),
        (b"--b--\r\n", {"content-type": "multipart/form-data"}, 400),
        (b"prompt=a", {"content-type": "application/x-www-form-urlencoded"}, 415),
        (b"--b--\r\n", {**form, "content-encoding": "gzip"}, 415),
        (b"x" * (65 << 20), form, 413),
    ]
    for content, headers, status in cases:
        response = httpx.post(
            server.url + EDITS, content=content, headers=headers, timeout=30
        )
        assert response.status_code == status, response.text
        assert response.json()["error"]["type"] == "invalid_request_error"
    twice = httpx.post(
        server.url + EDITS,
        data={"prompt": "a", "seed": ["1", "2"]},
        files=[("image", picture())],
        timeout=30,
    )
    assert twice.json()["error"]["param"] == "seed"


def test_no_form_and_other_routes(server: Server) -> None:
    response = httpx.post(server.url + EDITS, json={"prompt": "a"})
    assert response.status_code == 415
    response = httpx.post(server.url + "/v1/images/generations", json={"prompt": "a"})
    assert response.status_code == 404


def test_the_next_request_is_answered(openai: OpenAI) -> None:
    (image,) = edit(openai, [picture()], **SMALL)
    assert read_rgb(image).shape == (128, 128, 3)


def test_no_upload_is_left(server: Server, openai: OpenAI, temporary: Path) -> None:
    edit(openai, [picture()], **SMALL)
    with pytest.raises(BadRequestError):
        edit(openai, [b"no picture"], **SMALL)
    # A folder goes after the answer has gone.
    wait_until(lambda: not list(temporary.glob("sglang-ext-gen-upload-*")), 30)
    kept = {file.name for file in (server.folder / "inputs").rglob("*.*")}
    assert kept == {"warmup_image.png"}  # SGLang's own
