# SPDX-License-Identifier: Apache-2.0
"""Ming draws through ``DiffGenerator``: a worker and its own thinker, on the CPU.

The thinker is a real server of SGLang's language model runtime, started by the worker
from ``thinker_args``; both read the integrated golden checkpoint.
"""

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from conftest import Golden
from images import psnr
from ming_drawing import CASES, FILE_DB, golden_png, golden_request
from server.ming import FLAGS
from server.servers import float32_generator
from sglang_ext_gen.errors import GenerationError, RequestError

pytestmark = pytest.mark.slow

SMALL = {"width": 64, "height": 96, "num_inference_steps": 3}
# A hang limit, not a measurement: an error comes within seconds.
SOON_SECONDS = 60
RESTART_SECONDS = 600


@pytest.fixture(scope="module")
def golden(omni_golden: Golden) -> Golden:
    return omni_golden


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ming")


@pytest.fixture(scope="module")
def generator(golden: Golden, folder: Path) -> Iterator[Any]:
    """The golden checkpoint in float32; the thinker is its child's child."""
    with float32_generator(
        golden.checkpoint,
        text_encoder_precisions=("fp32",),
        thinker_args=list(FLAGS),
        output_path=str(folder),
    ) as running:
        yield running
        thinkers = thinker_processes()
        assert len(thinkers) == 1
    _, alive = psutil.wait_procs(thinkers, timeout=SOON_SECONDS)
    assert alive == [], "the thinker outlived its generator"


def thinker_processes() -> list[psutil.Process]:
    """Of this generator's workers: a server of another file may still be there."""
    workers = [psutil.Process(w.pid) for w in multiprocessing.active_children()]
    found = []
    for process in [p for w in workers for p in w.children(recursive=True)]:
        # Some end while they are looked at.
        with suppress(psutil.NoSuchProcess):
            if "sglang.launch_server" in process.cmdline():
                found.append(process)
    return found


def draw(generator: Any, **fields: Any) -> list[np.ndarray]:
    """Pictures of one call, [H, W, 3] levels each."""
    results = generator.generate(
        sampling_params_kwargs={"save_output": False, "return_frames": True, **fields}
    )
    results = results if isinstance(results, list) else [results]
    return [np.asarray(result.frames[0]) for result in results]


def write(generator: Any, name: str, **fields: Any) -> Path:
    fields = {**fields, "output_file_name": name}
    result = generator.generate(sampling_params_kwargs=fields)
    return Path(result.output_file_path)


@pytest.mark.parametrize("name", CASES)
def test_written_file_equals_the_official_one(name, generator, golden):
    fields = golden_request(golden, name)
    path = write(generator, f"{name}.png", **fields)
    assert psnr(path, golden_png(golden, name)) >= FILE_DB


def test_outputs_of_one_call_equal_single_requests(generator, golden):
    fields = {**golden_request(golden, "t2i"), **SMALL}
    seed = fields.pop("seed")
    together = draw(generator, **fields, seed=seed, num_outputs_per_prompt=3)
    for index, picture in enumerate(together):
        [single] = draw(generator, **fields, seed=seed + index)
        assert np.abs(picture.astype(int) - single.astype(int)).max() <= 1


def test_prompts_of_one_call_equal_single_requests(generator):
    prompts = ["a cat", 'a much longer description with a "SIGN" in it']
    fields = {**SMALL, "seed": 5}
    together = draw(generator, prompt=prompts, **fields)
    for prompt, picture in zip(prompts, together, strict=True):
        [single] = draw(generator, prompt=prompt, **fields)
        assert np.abs(picture.astype(int) - single.astype(int)).max() <= 1


def test_same_seed_same_bytes_and_other_settings_other_pictures(generator, golden):
    fields = {"prompt": "a fox in the snow", "seed": 4, **SMALL}
    first = write(generator, "first.png", **fields).read_bytes()
    assert write(generator, "again.png", **fields).read_bytes() == first
    for change in (
        {"seed": 5},
        {"negative_prompt": "blurry"},
        {"byt5_text": "OPEN"},
        {"guidance_scale": 1.0},
        {"image_path": str(golden.path / "reference.png")},
    ):
        other = write(generator, "other.png", **{**fields, **change}).read_bytes()
        assert other != first, change


def test_quoted_words_can_be_replaced_and_left_out(generator):
    fields = {"seed": 4, **SMALL}
    [quoted] = draw(generator, prompt='a sign "OPEN"', **fields)
    [given] = draw(generator, prompt='a sign "OPEN"', byt5_text="OPEN", **fields)
    [other] = draw(generator, prompt='a sign "OPEN"', byt5_text="SHUT", **fields)
    [none] = draw(generator, prompt='a sign "OPEN"', byt5_text="", **fields)
    assert np.array_equal(quoted, given)
    assert not np.array_equal(quoted, other)
    assert not np.array_equal(quoted, none)


def test_edit_keeps_the_shape_of_its_reference(generator, folder):
    path = folder / "wide.png"
    Image.effect_noise((200, 100), 50).convert("RGB").save(path)
    fields = {"prompt": "brighter", "highres": 512, "num_inference_steps": 2}
    [picture] = draw(generator, image_path=str(path), **fields)
    assert picture.shape[:2] == (352, 704)
    tiny = folder / "pixel.png"
    Image.new("RGB", (1, 1), "red").save(tiny)
    [drawn] = draw(generator, image_path=[str(tiny), str(path)], prompt="x", **SMALL)
    assert drawn.shape[:2] == (96, 64)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 65, "height": 64}, "width: 65 given"),
        ({"width": 64}, "width: given alone"),
        ({"prompt": " "}, "prompt: missing or empty"),
        ({"prompt": "<role>x"}, "prompt: the special token <role>"),
        ({"byt5_text": "x" * 60}, "byt5_text: it takes"),
        ({"highres": 512}, "highres: only an edit"),
        ({"image_path": "no/such.png"}, "image_path: picture 1: there is no file"),
        ({"image_path": ["a.png"] * 20}, "image_path: 20 pictures given"),
        ({"true_cfg_scale": 3.0}, "true_cfg_scale: not supported"),
        ({"surprise": 1}, "surprise: unknown field"),
    ],
)
def test_bad_request_is_refused_and_the_next_one_runs(fields, message, generator):
    with pytest.raises(RequestError, match=message):
        generator.generate(sampling_params_kwargs={"prompt": "a cat", **fields})


def test_dead_thinker_is_an_error_and_comes_back(generator):
    """It starts the thinker anew, so it is the last."""
    known = {"prompt": "a fox in the snow", "seed": 4, **SMALL}
    [before] = draw(generator, **known)
    for process in thinker_processes():
        process.kill()
    started = time.monotonic()
    with pytest.raises(GenerationError, match="thinker"):
        draw(generator, prompt="never asked before", **SMALL)
    assert time.monotonic() - started < SOON_SECONDS
    # What the thinker said before is remembered.
    [after] = draw(generator, **known)
    assert np.array_equal(before, after)
    deadline = time.monotonic() + RESTART_SECONDS
    while True:
        try:
            draw(generator, prompt="never asked before", **SMALL)
            break
        except GenerationError:
            assert time.monotonic() < deadline, "it was not started again"
            time.sleep(2)
