# SPDX-License-Identifier: Apache-2.0
"""Ideogram 4 through ``DiffGenerator``, with a real worker process on the CPU.

So does ``sglang-ext-gen generate``, which starts it itself elsewhere.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Golden
from images import psnr
from server.servers import float32_generator
from sglang_ext_gen.cli.running import TIMING_VARIABLES
from sglang_ext_gen.errors import GenerationError, RequestError

pytestmark = pytest.mark.slow

SIZE = {"width": 256, "height": 256}
COMMAND_FORM = ("--precision", "float32", "--json")
SHORT = {"num_inference_steps": 4, "guidance_schedule": [7.0, 5.0, 3.0, 1.0]}


@pytest.fixture(scope="module")
def generator(ideogram4_golden: Golden, tmp_path_factory) -> Iterator[Any]:
    """The golden checkpoint in float32, from a directory with a telling name."""
    folder = tmp_path_factory.mktemp("python")
    # Stock would send this name to diffusers; we go by the content.
    checkpoint = folder / "my-model-4bit"
    checkpoint.symlink_to(ideogram4_golden.checkpoint)
    with pytest.MonkeyPatch.context() as patch:
        # As the commands do, so that the worker times its steps.
        for variable in TIMING_VARIABLES:
            patch.setenv(variable, "1")
        with float32_generator(
            checkpoint, text_encoder_precisions=("fp32",), output_path=str(folder)
        ) as generator:
            yield generator


def generate(generator: Any, **fields: Any) -> list[Path]:
    """Paths of the written pictures."""
    results = generator.generate(
        sampling_params_kwargs={**SIZE, "output_compression": 100, **fields}
    )
    results = results if isinstance(results, list) else [results]
    return [Path(result.output_file_path) for result in results]


def test_the_picture_equals_the_references(generator, ideogram4_golden) -> None:
    request = ideogram4_golden.json["request"]
    (picture,) = generate(
        generator,
        prompt=request["prompt"],
        seed=request["seed"],
        preset=request["preset"],
        output_file_name="golden.png",
    )
    assert psnr(picture, ideogram4_golden.png) >= 48


def test_same_seed_same_bytes_and_another_seed_differs(generator) -> None:
    names = ("first.png", "again.png", "other.png")
    pictures = [
        generate(generator, prompt="a cat", seed=seed, output_file_name=name, **SHORT)[
            0
        ].read_bytes()
        for name, seed in zip(names, (7, 7, 8), strict=True)
    ]
    assert pictures[0] == pictures[1]
    assert pictures[0] != pictures[2]


def test_a_list_of_prompts_is_one_batch_equal_to_the_singles(generator) -> None:
    prompts = ["a red fox in the snow at night", "ok"]
    fields = {**SIZE, **SHORT, "seed": 7}
    fields |= {"save_output": False, "return_file_paths_only": False}
    results = generator.generate(sampling_params_kwargs={**fields, "prompt": prompts})
    # Both prompts went through one denoising loop: they share its step times.
    steps = [result.metrics["steps"] for result in results]
    assert steps[0] == steps[1]
    for result, prompt in zip(results, prompts, strict=True):
        single = generator.generate(sampling_params_kwargs={**fields, "prompt": prompt})
        assert result.prompt == prompt
        assert (result.samples - single.samples).abs().max() < 1e-3


def test_two_outputs_are_the_singles_of_the_next_seeds(generator) -> None:
    pair = generate(
        generator,
        prompt="a cat",
        seed=11,
        num_outputs_per_prompt=2,
        output_file_name="pair.png",
        **SHORT,
    )
    assert len(pair) == 2
    for index, picture in enumerate(pair):
        (single,) = generate(
            generator,
            prompt="a cat",
            seed=11 + index,
            output_file_name=f"of-pair{index}.png",
            **SHORT,
        )
        assert psnr(picture, single) > 48


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prompt", None, "prompt: missing"),
        ("prompt", "word " * 4000, "at most 2048 allowed"),
        ("width", 250, "width: 250 given"),
        ("preset", "V9", "V4_DEFAULT_20"),
        ("negative_prompt", "ugly", "cannot use one"),
        ("true_cfg_scale", 4.0, "true_cfg_scale: not supported"),
    ],
)
def test_a_bad_request_raises_before_any_work(
    generator, field: str, value: object, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        generate(generator, **{"prompt": "a cat", **SHORT, field: value})


def test_a_failure_in_the_worker_raises_with_its_message(generator) -> None:
    # A directory where the picture should go: only the worker finds out.
    blocked = Path(generator.server_args.output_path) / "blocked.png"
    blocked.mkdir()
    with pytest.raises(GenerationError, match=r"blocked\.png"):
        generate(generator, prompt="a cat", output_file_name="blocked.png", **SHORT)
    generate(generator, prompt="a cat", output_file_name="after.png", **SHORT)


def test_the_command_writes_the_references_picture(
    generator: Any,
    command_on: Callable[..., int],
    ideogram4_golden: Golden,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    request = ideogram4_golden.json["request"]
    picture = tmp_path / "golden.png"
    code = command_on(
        generator,
        *("generate", str(ideogram4_golden.checkpoint), *COMMAND_FORM),
        *("--prompt", request["prompt"], "--output", str(picture)),
        *("--width", str(request["width"]), "--height", str(request["height"])),
        *("--seed", str(request["seed"]), "--preset", request["preset"]),
    )
    captured = capfd.readouterr()
    assert code == 0, captured.err[-3000:]
    answer = json.loads(captured.out)
    assert [output["path"] for output in answer["outputs"]] == [str(picture)]
    assert len(answer["seconds_per_step"]) == 20
    assert psnr(picture, ideogram4_golden.png) >= 48


def test_the_command_gives_the_workers_reason(
    generator: Any,
    command_on: Callable[..., int],
    ideogram4_golden: Golden,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    blocked = tmp_path / "blocked.png"
    blocked.mkdir()
    code = command_on(
        generator,
        *("generate", str(ideogram4_golden.checkpoint), *COMMAND_FORM),
        *("--prompt", "a cat", "--width", "256", "--height", "256"),
        *("--preset", "V4_INSTANT_8", "--num-inference-steps", "1"),
        *("--output", str(blocked)),
    )
    captured = capfd.readouterr()
    assert (code, captured.out) == (1, "")
    last_line = captured.err.strip().splitlines()[-1]
    assert last_line.startswith("sglang-ext-gen generate: "), captured.err[-3000:]
    assert "blocked.png" in last_line
