# SPDX-License-Identifier: Apache-2.0
"""Plain ``sglang generate`` draws what the references draw, in a normal installation.

SGLang resolves the model before it loads a plugin. For Ming see
``ming_omni/test_commands.py``.
"""

import json
from pathlib import Path

import pytest

from conftest import GOLDEN_ROOT, Golden
from images import psnr
from qwen_image_golden import golden_request
from server.lance_requests import MIN_PSNR, request_of
from server.servers import FLOAT32, plain_generate

pytestmark = pytest.mark.slow

MIN_DB = 48


def test_ideogram4(ideogram4_golden: Golden, tmp_path: Path) -> None:
    case = ideogram4_golden.json["request"]
    request = {name: case[name] for name in ("prompt", "seed", "width", "height")}
    picture = tmp_path / "fox.png"
    plain_generate(ideogram4_golden.checkpoint, picture, request, *FLOAT32)
    assert psnr(picture, ideogram4_golden.png) >= MIN_DB


def test_qwen_image_on_two_ranks(tmp_path: Path) -> None:
    folder, picture = GOLDEN_ROOT / "qwen_image/t2i", tmp_path / "circle.png"
    flags = ("--num-gpus", "2", "--enable-cfg-parallel", "true", *FLOAT32)
    plain_generate(folder / "Qwen-Image", picture, golden_request("t2i"), *flags)
    assert psnr(picture, folder / "golden.png") >= MIN_DB


def test_qwen_image_edit_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the search for the fastest kernels, which takes minutes.
    monkeypatch.setenv("SGLANG_TORCH_COMPILE_MODE", "default")
    monkeypatch.setenv("SGLANG_VAE_TORCH_COMPILE_MODE", "default")
    folder, picture = GOLDEN_ROOT / "qwen_image/edit", tmp_path / "circle.png"
    request = {**golden_request("edit"), "image_path": str(folder / "input_0.png")}
    flags = ("--enable-torch-compile", "true", *FLOAT32)
    plain_generate(folder / "Qwen-Image-Edit-2509", picture, request, *flags)
    assert psnr(picture, folder / "golden.png") >= MIN_DB


def test_lance(golden_dir, tmp_path: Path) -> None:
    golden = Golden(golden_dir("lance"))
    request = request_of(golden, "t2i", tmp_path)
    # SGLang has no flags for our own fields, but a file may name them.
    names = ("cfg_interval", "cfg_renorm_type", "cfg_renorm_min", "timestep_shift")
    own = {name: request.pop(name) for name in names}
    (tmp_path / "own.json").write_text(json.dumps(own), "utf-8")
    picture = tmp_path / "fox.png"
    plain_generate(
        golden.path / "checkpoint",
        picture,
        request,
        *("--config", str(tmp_path / "own.json"), *FLOAT32),
    )
    assert psnr(picture, golden.path / "t2i_output.png") >= MIN_PSNR
