# SPDX-License-Identifier: Apache-2.0
"""Request fields, the quoted-text rule, sizes and load options of Ming's generator."""

from typing import Any

import pytest
from PIL import Image

from conftest import Golden
from lazy import LazyModule
from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.media import images
from sglang_ext_gen.media.images import check_references
from sglang_ext_gen.models.ming_omni.options import listed_arguments, listed_urls
from sglang_ext_gen.models.ming_omni.quoted_text import as_glyph_text, quoted_text
from sglang_ext_gen.models.ming_omni.request import check_request
from sglang_ext_gen.models.ming_omni.sizes import (
    BUCKETS,
    bucket_size,
    stretched,
    unstretched_size,
)
from sglang_ext_gen.models.ming_omni.thinker_protocol import generation_prompt

pipeline_config, sampling_params = (
    LazyModule(f"sglang_ext_gen.models.ming_omni.{name}")
    for name in ("pipeline_config", "sampling_params")
)


def test_quoted_text_is_the_official_rule(drawing_golden: Golden):
    table = drawing_golden.json["byt5_text_extraction"]
    assert len(table) >= 16
    for row in table:
        assert quoted_text(row["prompt"]) == row["byt5_text"], row["prompt"]
        if "\n" not in row["prompt"]:
            # The official code looks at the whole templated text; it adds no quotes.
            templated = generation_prompt(row["prompt"])
            assert quoted_text(templated) == row["byt5_text"]


def test_empty_quotes_are_not_lettered():
    # vllm-omni letters an empty text here.
    assert quoted_text('a sign reading ""') == ""


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("SALE", 'Text "SALE". '),
        ('Text "SALE". ', 'Text "SALE". '),
        ('Text "A" in red', 'Text "A" in red'),
        ("", ""),
    ],
)
def test_text_of_the_user_is_wrapped_once(given, text):
    assert as_glyph_text(given) == text


def test_sizes_are_the_official_ones(drawing_golden: Golden):
    table = drawing_golden.json["size_buckets"]
    assert len(table) >= 20
    for row in table:
        original = (row["ori_h"], row["ori_w"])
        drawn = bucket_size(*original, row["highres"])
        assert list(drawn) == row["diffusion_hw"], row
        assert list(unstretched_size(drawn, original)) == row["output_resize_hw"], row


@pytest.mark.parametrize("highres", BUCKETS)
def test_each_bucket_keeps_its_own_size(highres):
    for size in BUCKETS[highres].values():
        assert bucket_size(*size, highres) == size
        assert unstretched_size(size, size) == size
        assert all(side % 16 == 0 for side in size)


def test_reference_is_stretched_not_cropped():
    image = Image.new("RGB", (90, 70), "red")
    image.putpixel((0, 0), (0, 0, 255))
    result = stretched(image, 64, 96)
    assert result.size == (96, 64)
    assert result.getpixel((0, 0)) != (255, 0, 0)  # the corner is still there


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "prompt: missing"),
        ({"prompt": "  "}, "prompt: missing or empty"),
        ({"prompt": ["a", ""]}, "prompt: missing or empty"),
        ({"prompt": "a <imagePatch> b"}, "prompt: the special token <imagePatch>"),
        ({"negative_prompt": "<IMAGE>"}, "negative_prompt: the special token"),
        ({"width": 64}, "width: given alone"),
        ({"height": 64}, "height: given alone"),
        ({"width": 63, "height": 64}, "width: 63 given"),
        ({"width": 65, "height": 64}, "width: 65 given"),
        ({"width": 2064, "height": 64}, "width: 2064 given"),
        ({"width": 64, "height": 48}, "height: 48 given"),
        ({"highres": 600}, "highres: 600 given, expected one of 512, 672, 1024"),
        ({"highres": 512, "width": 64, "height": 64}, "highres: given together"),
        ({"seed": -1}, "seed: -1 given"),
        ({"seed": "x"}, "seed: 'x' given"),
        ({"num_inference_steps": 0}, "num_inference_steps: 0 given"),
        ({"num_inference_steps": 201}, "num_inference_steps: 201 given"),
        ({"guidance_scale": float("nan")}, "guidance_scale: nan given"),
        ({"guidance_scale": -1}, "guidance_scale: -1 given"),
        ({"num_outputs_per_prompt": 11}, "num_outputs_per_prompt: 11 given"),
        ({"byt5_text": ["a", "b"]}, "byt5_text: "),
        ({"byt5_text": "x" * 5000}, "byt5_text: 5000 characters"),
        ({"image_path": ["a.png"] * 20}, "image_path: 20 pictures given, at most 10"),
    ],
)
def test_bad_fields_are_refused_by_name(fields, message):
    prompt = {} if "missing" in message and "prompt" not in fields else {"prompt": "x"}
    with pytest.raises(RequestError, match=message):
        check_request({**prompt, **fields})


def test_good_fields_keep_their_types():
    fields = {
        "prompt": "a cat",
        "width": 64,
        "height": 2048,
        "guidance_scale": 3,
        "byt5_text": "",
        "seed": 7,
    }
    assert check_request(fields) == {**fields, "guidance_scale": 3.0}


@pytest.mark.parametrize(
    ("value", "urls"),
    [
        (None, []),
        ("http://a:1/", ["http://a:1"]),
        ("http://a:1, http://b:2", ["http://a:1", "http://b:2"]),
        (["http://a:1", "http://b:2/"], ["http://a:1", "http://b:2"]),
    ],
)
def test_addresses_of_thinkers(value, urls):
    assert listed_urls(value) == urls


def test_arguments_of_the_thinker():
    assert listed_arguments("--tp-size 4 --x 'a b'") == ["--tp-size", "4", "--x", "a b"]
    assert listed_arguments(["--dtype", "float32"]) == ["--dtype", "float32"]
    assert listed_arguments(None) == []


class TestReferences:
    def test_sizes_come_back(self, tmp_path):
        path = tmp_path / "a.png"
        Image.new("RGB", (1, 1)).save(path)
        assert check_references([str(path)], 1) == [(1, 1)]

    def test_number(self):
        with pytest.raises(RequestError, match="3 pictures given, at most 2"):
            check_references(["a"] * 3, 2)

    def test_no_file(self):
        with pytest.raises(RequestError, match="image_path: picture 1: there is no"):
            check_references(["no/such.png"], 2)

    @pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n"])
    def test_no_picture(self, content, tmp_path):
        path = tmp_path / "a.png"
        path.write_bytes(content)
        with pytest.raises(RequestError, match="image_path: picture 1 is"):
            check_references([str(path)], 1)

    def test_truncated(self, tmp_path):
        path = tmp_path / "a.png"
        Image.effect_noise((64, 64), 50).save(path)
        path.write_bytes(path.read_bytes()[:-2000])
        with pytest.raises(RequestError, match="picture 1 is not a readable"):
            check_references([str(path)], 1)

    @pytest.mark.parametrize(
        ("side", "message"),
        [(20_000, "over 64000000 pixels"), (9_000, "9000x9000, at most 64000000")],
    )
    def test_huge_pictures_are_refused_by_the_header(self, side, message, tmp_path):
        path = tmp_path / "a.png"
        Image.new("1", (side, side)).save(path)
        with pytest.raises(RequestError, match=message):
            check_references([str(path)], 1)

    def test_extreme_shapes(self, tmp_path):
        path = tmp_path / "a.png"
        Image.new("RGB", (400, 4)).save(path)
        with pytest.raises(RequestError, match="aspect ratio"):
            check_references([str(path)], 1)

    def test_animation(self, tmp_path):
        path = tmp_path / "a.gif"
        frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
        frames[0].save(path, save_all=True, append_images=frames[1:])
        with pytest.raises(RequestError, match="animated"):
            check_references([str(path)], 1)

    def test_a_phones_picture_with_a_preview(self, tmp_path):
        path = tmp_path / "a.jpg"
        picture, preview = Image.new("RGB", (8, 6)), Image.new("RGB", (4, 3))
        picture.save(path, "MPO", save_all=True, append_images=[preview])
        assert check_references([str(path)], 1) == [(6, 8)]

    def test_only_a_changed_file_is_decoded_again(self, tmp_path, monkeypatch):
        path = tmp_path / "a.png"
        Image.new("RGB", (8, 6)).save(path)
        assert check_references([str(path)], 1) == [(6, 8)]
        with monkeypatch.context() as closed:
            closed.setattr(images, "_open", None)
            assert check_references([str(path)], 1) == [(6, 8)]
        path.write_bytes(b"no picture any more")
        with pytest.raises(RequestError, match="not a readable picture"):
            check_references([str(path)], 1)


def test_defaults_are_the_tables():
    params = sampling_params.MingOmniSamplingParams()
    assert (params.num_inference_steps, params.guidance_scale) == (30, 2.0)
    assert params.width is params.height is params.negative_prompt is None
    assert (params.seed, params.num_outputs_per_prompt, params.num_frames) == (42, 1, 1)
    assert pipeline_config.MingOmniPipelineConfig().thinker_timeout_s == 300.0
    assert pipeline_config.MingOmniPipelineConfig().thinker_url is None


def test_what_only_conditions_does_not_keep_requests_apart():
    conditions: dict[str, Any] = {
        **{"prompt": "a", "negative_prompt": "b", "byt5_text": "c"},
        **{"image_path": "d.png", "seed": 1},
    }
    params = sampling_params.MingOmniSamplingParams
    assert params(**conditions).batch_key() == params().batch_key()
    assert params(width=64, height=96).batch_key() != params().batch_key()
