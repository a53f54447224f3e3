# SPDX-License-Identifier: Apache-2.0
"""Qwen-Image-Edit through ``DiffGenerator``, with a real worker process."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import GOLDEN_ROOT
from images import psnr, read_rgb
from qwen_image_golden import golden_command
from qwen_image_runtime import write_adapter, write_picture
from server.servers import float32_generator
from sglang_ext_gen.errors import RequestError

pytestmark = pytest.mark.slow

GOLDEN = GOLDEN_ROOT / "qwen_image" / "edit"
CHECKPOINT = GOLDEN / "Qwen-Image-Edit-2509"
SMALL = {"width": 160, "height": 128, "num_inference_steps": 3, "seed": 7}
SMALL["reference_pixels"] = 192 * 192


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The golden checkpoint in float32."""
    with float32_generator(
        CHECKPOINT,
        text_encoder_precisions=("fp32",),
        output_path=str(tmp_path_factory.mktemp("python")),
    ) as running:
        yield running


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("references")
    sizes = ((96, 64), (48, 80))
    return [
        str(write_picture(folder / f"{seed}.png", *size, seed=seed))
        for seed, size in enumerate(sizes)
    ]


def edit(generator: Any, **fields: Any) -> list[torch.Tensor]:
    """Pictures [3, H, W] from 0 to 1."""
    fields = {"save_output": False, "return_file_paths_only": False, **fields}
    results = generator.generate(sampling_params_kwargs=fields)
    results = results if isinstance(results, list) else [results]
    return [result.samples.float() for result in results]


def test_the_picture_equals_the_reference(generator: Any) -> None:
    result = generator.generate(
        sampling_params_kwargs={
            "prompt": "make the circle blue and add a star",
            "negative_prompt": "blurry",
            "true_cfg_scale": 4.0,
            "image_path": str(GOLDEN / "input_0.png"),
            **{"width": 256, "height": 192, "num_inference_steps": 3, "seed": 3},
            "output_file_name": "golden.png",
        }
    )
    assert psnr(Path(result.output_file_path), GOLDEN / "golden.png") >= 48


def test_prompts_and_outputs_are_one_batch_equal_to_the_singles(
    generator: Any, references: list[str]
) -> None:
    prompts = ["make it blue", "a much longer wish about a hill at night"]
    fields = {"negative_prompt": " ", **SMALL}
    together = edit(
        generator,
        prompt=prompts,
        # A list for each prompt.
        image_path=[references, references],
        num_outputs_per_prompt=2,
        **fields,
    )
    alone = [
        edit(
            generator, prompt=prompt, image_path=references, **{**fields, "seed": seed}
        )[0]
        for prompt in prompts
        for seed in (7, 8)
    ]
    assert len(together) == 4
    for picture, single in zip(together, alone, strict=True):
        assert (picture - single).abs().max() < 2e-4


def test_own_noise_and_schedule(generator: Any, references: list[str]) -> None:
    fields = {"prompt": "make it blue", "image_path": references[:1], **SMALL}
    noise = torch.randn(1, 80, 64, generator=torch.Generator().manual_seed(0))
    (plain,) = edit(generator, **fields)
    (first,) = edit(generator, latents=noise, **fields)
    (again,) = edit(generator, latents=noise, **{**fields, "seed": 99})
    assert torch.equal(first, again)
    assert not torch.equal(first, plain)
    (other,) = edit(generator, sigmas=[1.0, 0.6, 0.2], **fields)
    assert not torch.equal(other, plain)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", None),
        ("width", 100),
        ("sigmas", [0.1, 0.5]),
        ("latents", torch.zeros(1, 2, 64)),
        ("reference_pixels", 10),
        ("image_path", None),
        ("image_path", "/nowhere.png"),
        ("flow_shift", 0.0),
        ("enable_teacache", True),
        ("progressive_mode", "dct"),
    ],
)
def test_a_bad_request_raises_before_any_work(
    generator: Any, references: list[str], field: str, value: Any
) -> None:
    fields = {"prompt": "make it blue", "image_path": references[:1], **SMALL}
    with pytest.raises(RequestError) as caught:
        edit(generator, **{**fields, field: value})
    assert caught.value.field == field


def test_set_lora_says_what_it_reached(
    generator: Any, references: list[str], tmp_path: Path
) -> None:
    fields = {"prompt": "make it blue", "image_path": references[:1], **SMALL}
    (plain,) = edit(generator, **fields)
    base = load_file(CHECKPOINT / "transformer" / "diffusion_pytorch_model.safetensors")
    path = tmp_path / "one.safetensors"
    write_adapter(path, 1, 0.5, base)
    (adapter,) = generator.set_lora("one", str(path))
    assert (adapter["nickname"], adapter["matched_layers"]) == ("one", 3)
    (changed,) = edit(generator, **fields)
    assert (changed - plain).abs().max() > 1e-2

    wrong = {"transformer.blocks.9.attn.to_q.lora_A.weight": torch.ones(2, 64)}
    save_file({**load_file(path), **wrong}, path)
    with pytest.raises(RuntimeError, match=r"lora_path: .*blocks\.9\.attn\.to_q"):
        generator.set_lora("one", str(path))
    generator.unmerge_lora_weights()
    (back,) = edit(generator, **fields)
    assert (back - plain).abs().max() < 1e-4


def test_the_command_writes_the_references_picture(
    generator: Any,
    command_on: Callable[..., int],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    picture = tmp_path / "edit.png"
    words = golden_command("edit", CHECKPOINT.name, picture)
    reference = ("--image-path", str(GOLDEN / "input_0.png"))
    code = command_on(generator, *words, *reference)
    captured = capfd.readouterr()
    assert code == 0, captured.err[-3000:]
    assert str(picture) in json.dumps(json.loads(captured.out))
    assert psnr(picture, GOLDEN / "golden.png") >= 48


def test_the_demo_makes_its_pictures(
    generator: Any,
    command_on: Callable[..., int],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    words = ("demo", "qwen_image_edit", "--output", str(tmp_path), "--steps", "2")
    assert command_on(generator, *words) == 0
    printed = capfd.readouterr().out
    for number in (1, 2):
        picture = tmp_path / f"qwen_image_edit-{number}.png"
        assert read_rgb(picture).shape == (192, 256, 3)
        assert picture.name in printed
