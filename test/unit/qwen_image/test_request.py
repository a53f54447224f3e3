# SPDX-License-Identifier: Apache-2.0
"""Request fields and reference pictures: what is accepted, what is said otherwise."""

import logging
import shutil
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from lazy import LazyModule
from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.media import images
from sglang_ext_gen.models.qwen_image import references, request
from sglang_ext_gen.models.qwen_image.references import (
    check_references,
    size_for_pixels,
)
from sglang_ext_gen.models.qwen_image.request import (
    check_edit_request,
    check_request,
    uses_guidance,
)

sampling_params = LazyModule("sglang_ext_gen.models.qwen_image.sampling_params")


def test_fields_in_their_types() -> None:
    checked = check_request({"prompt": "a", "guidance_scale": 3, "sigmas": [1, 0.5]})
    assert checked == {
        "prompt": "a",
        "sigmas": [1.0, 0.5],
        "num_inference_steps": 2,
        "true_cfg_scale": 3.0,
    }


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "\udcff"}, "prompt"),
        ({"negative_prompt": "\udcff"}, "negative_prompt"),
        ({"prompt": ["a", " "]}, "prompt"),
        ({"width": 100}, "width"),
        ({"height": 64}, "height"),
        ({"num_inference_steps": 1}, "num_inference_steps"),
        ({"true_cfg_scale": 0.9}, "true_cfg_scale"),
        ({"true_cfg_scale": float("nan")}, "true_cfg_scale"),
        ({"true_cfg_scale": 2, "guidance_scale": 3}, "guidance_scale"),
        ({"sigmas": []}, "sigmas"),
        ({"sigmas": [1.0]}, "sigmas"),
        ({"sigmas": [0.5, 0.5]}, "sigmas"),
        ({"sigmas": [1.5, 0.5]}, "sigmas"),
        ({"sigmas": [1, 0.5], "num_inference_steps": 3}, "sigmas"),
        ({"max_sequence_length": 1025}, "max_sequence_length"),
        ({"negative_prompt": 1}, "negative_prompt"),
        ({"num_outputs_per_prompt": 11}, "num_outputs_per_prompt"),
    ],
)
def test_refused(values: dict, field: str) -> None:
    for check in (check_request, check_edit_request):
        with pytest.raises(RequestError) as caught:
            check({"prompt": "a", **values})
        assert caught.value.field == field


def test_reference_pixels_are_for_edits() -> None:
    values = {"prompt": "a", "reference_pixels": 128 * 128}
    assert "reference_pixels" not in check_request(values)
    assert check_edit_request(values)["reference_pixels"] == 128 * 128
    with pytest.raises(RequestError, match="reference_pixels"):
        check_edit_request({**values, "reference_pixels": 100})


def test_guidance_is_the_references_and_is_said_once(caplog) -> None:
    request._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert not uses_guidance(4.0, None)
            assert not uses_guidance(1.0, "dull")
        assert uses_guidance(4.0, "")
    assert len(caplog.messages) == 2


@pytest.mark.parametrize(
    ("size", "expected"),
    [((96, 64), (1248, 832)), ((1024, 1024), (1024, 1024)), ((10, 160), (256, 4096))],
)
def test_sizes_are_the_references(size, expected) -> None:
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import (
        calculate_dimensions,
    )

    assert size_for_pixels(1024 * 1024, *size) == expected
    assert calculate_dimensions(1024 * 1024, size[0] / size[1]) == expected


def png_without_pixels(width: int, height: int) -> bytes:
    """A PNG file that promises a picture of this size and has none."""
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n"
    for name, content in ((b"IHDR", size), (b"IDAT", b""), (b"IEND", b"")):
        checksum = zlib.crc32(name + content)
        file += struct.pack(">I", len(content)) + name + content
        file += struct.pack(">I", checksum)
    return file


def test_reference_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = tmp_path / "good.png"
    Image.new("RGB", (64, 48)).save(good)
    check_references([str(good)] * references.MAX_REFERENCES)
    check_references(str(good), most=1)
    broken, cut = tmp_path / "broken.png", tmp_path / "cut.png"
    broken.write_bytes(b"text")
    cut.write_bytes(good.read_bytes()[:60])
    narrow = tmp_path / "narrow.png"
    Image.new("RGB", (640, 20)).save(narrow)
    huge = tmp_path / "huge.png"
    huge.write_bytes(png_without_pixels(20_000, 20_000))
    cases = [
        ([], "missing"),
        ([str(good)] * 20, "20 pictures"),
        ([str(good), str(broken)], "picture 2"),
        ([str(cut)], "not a readable"),
        ([str(narrow)], "aspect"),
        ([str(huge)], "over 64000000 pixels"),
        ([str(tmp_path / "missing.png")], "there is no file"),
    ]
    for paths, word in cases:
        with pytest.raises(RequestError, match=word):
            check_references(paths)
    with pytest.raises(RequestError, match="at most 1"):
        check_references([str(good)] * 2, most=1)
    # Unchanged files are not read twice; these are new ones.
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    with pytest.raises(RequestError, match="64x48"):
        check_references([shutil.copy(good, f"{tmp_path}/second.png")])
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 10)
    with pytest.raises(RequestError, match="bytes"):
        check_references([shutil.copy(good, f"{tmp_path}/third.png")])


def test_defaults_are_the_tables() -> None:
    drawn, edit = (
        sampling_params.QwenImageExtSamplingParams(),
        sampling_params.QwenImageEditExtSamplingParams(),
    )
    assert (drawn.width, drawn.height, drawn.num_inference_steps) == (1024, 1024, 50)
    assert (edit.width, edit.height, edit.num_inference_steps) == (None, None, 40)
    for params in (drawn, edit):
        assert params.negative_prompt is None
        assert params.true_cfg_scale is None
        assert params.guidance_scale == 1.0
        assert params.output_compression == 75


def test_a_warm_up_keeps_the_fewest_steps() -> None:
    for params in (
        sampling_params.QwenImageExtSamplingParams,
        sampling_params.QwenImageEditExtSamplingParams,
    ):
        assert params.min_num_inference_steps == 2
