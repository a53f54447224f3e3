# SPDX-License-Identifier: Apache-2.0
"""Lance through ``DiffGenerator``, with real worker processes on the CPU."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.container import InputContainer

from conftest import Golden
from server.lance_requests import (
    CASES,
    MIN_PSNR,
    request_of,
    worst_psnr,
)
from server.servers import float32_generator
from sglang_ext_gen.errors import RequestError

pytestmark = pytest.mark.slow

# Where the weights wait between their uses must not be seen in a picture.
OFFLOADED = {
    "dit_cpu_offload": True,
    "image_encoder_cpu_offload": True,
    "vae_cpu_offload": True,
}
SMALL = {"width": 64, "height": 48, "num_inference_steps": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("lance")


@pytest.fixture(scope="module")
def video(source_video: Path) -> Path:
    return source_video


@pytest.fixture(scope="module")
def generator(golden: Golden, folder: Path) -> Iterator[Any]:
    """The golden checkpoint in float32, all tasks."""
    with float32_generator(
        golden.path / "checkpoint",
        image_encoder_precision="fp32",
        output_path=str(folder),
        **OFFLOADED,
    ) as running:
        yield running


def run(generator: Any, **fields: Any) -> list[np.ndarray]:
    """Frames of each result, [F, H, W, 3]."""
    returned = {"save_output": False, "return_frames": True}
    results = generator.generate(sampling_params_kwargs={**fields, **returned})
    results = results if isinstance(results, list) else [results]
    return [np.stack(result.frames) for result in results]


@pytest.mark.parametrize("name", CASES)
def test_result_equals_the_official_one(name, generator, golden, video):
    [frames] = run(generator, **request_of(golden, name, video))
    assert worst_psnr(golden, name, list(frames)) >= MIN_PSNR


def test_prompts_and_outputs_of_one_call_equal_single_requests(generator):
    prompts = ["a cat", "a very long description of a grey cat on a mat"]
    together = run(generator, prompt=prompts, seed=3, num_outputs_per_prompt=2, **SMALL)
    singles = [
        run(generator, prompt=prompt, seed=seed, **SMALL)[0]
        for prompt in prompts
        for seed in (3, 4)
    ]
    for got, want in zip(together, singles, strict=True):
        # One level: padding changes the order of float32 additions.
        assert np.abs(got.astype(int) - want.astype(int)).max() <= 1


def test_same_seed_same_bytes_and_another_seed_differs(generator, folder):
    def write(name: str, seed: int) -> bytes:
        fields = {"prompt": "a cat", "seed": seed, "output_file_name": name, **SMALL}
        result = generator.generate(sampling_params_kwargs=fields)
        return Path(result.output_file_path).read_bytes()

    first = write("first.png", 5)
    assert write("again.png", 5) == first
    assert write("other.png", 6) != first


def test_video_file_has_the_frames_and_the_rate(generator):
    fields = {"prompt": "waves", "task_type": "t2v", "num_frames": 6, **SMALL}
    result = generator.generate(sampling_params_kwargs=fields)
    with av.open(result.output_file_path, "r") as container:
        assert isinstance(container, InputContainer)
        stream = container.streams.video[0]
        assert stream.average_rate == 12
        frames = sum(1 for _ in container.decode(video=0))
    assert frames == 5  # 6 is rounded to 4 k + 1, as officially
    assert (stream.width, stream.height) == (64, 48)


def test_trajectory_holds_every_step(generator):
    fields = {"prompt": "a cat", "return_trajectory_latents": True, **SMALL}
    result = generator.generate(sampling_params_kwargs={**fields, "save_output": False})
    assert tuple(result.trajectory_latents.shape) == (1, 3, 12, 48)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_frames": 0}, "num_frames: 0 given"),
        ({"num_frames": 10_000}, "num_frames: 10000 given"),
        ({"width": 65}, "width: 65 given"),
        ({"width": 1040}, "width: 1040 given"),
        ({"task_type": "i2v"}, "image_path: missing"),
        ({"task_type": "t2v", "image_path": "a.png"}, "t2v takes no image"),
        ({"image_path": "no/such.png"}, "there is no file"),
        ({"negative_prompt": "ugly"}, "Lance has none"),
        ({"surprise": 1}, "surprise: unknown field"),
        ({"attention_backend_override": "fa"}, "attention_backend_override: not supp"),
        ({"cfg_gate_step": 0.5}, "cfg_gate_step: not supported by Lance"),
        ({"teacache_params": {"x": 1}}, "teacache_params: {'x': 1} given"),
    ],
)
def test_bad_request_is_refused_and_the_next_one_runs(fields, message, generator):
    with pytest.raises(RequestError, match=message):
        generator.generate(sampling_params_kwargs={"prompt": "a cat", **fields})


def test_service_goes_on_after_the_refusals(generator):
    assert run(generator, prompt="a cat", **SMALL)[0].shape == (1, 48, 64, 3)
