# SPDX-License-Identifier: Apache-2.0
"""A group of requests is one batch where geometry allows, and equals the singles."""

import pytest
import torch

from qwen_image_runtime import (
    LoadedPipeline,
    copy_checkpoint,
    decibels,
    load_pipeline,
    reference_pipeline,
    write_picture,
)
from sglang_ext_gen.errors import RequestError

pytestmark = pytest.mark.slow

PROMPTS = ["a cat", "a much longer prompt about a dog on a hill", "sky"]
# One batched matrix product sums in another order than a single one.
MAX_ABS = 2e-4
SMALL = {"width": 160, "height": 128, "num_inference_steps": 3}


class Calls:
    """Rows of each call of the transformer."""

    def __init__(self, loaded: LoadedPipeline) -> None:
        self.rows: list[int] = []
        module = loaded.pipeline.get_module("transformer")
        self._handle = module.register_forward_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs, output) -> None:
        self.rows.append(output.shape[0])

    def __enter__(self) -> "Calls":
        return self

    def __exit__(self, *error) -> None:
        self._handle.remove()


def test_prompts_of_mixed_length_with_guidance(t2i: LoadedPipeline) -> None:
    fields = {"negative_prompt": "blurry and dull", "seed": 7, **SMALL}
    with Calls(t2i) as calls:
        together = t2i.pictures(prompt=PROMPTS, **fields)
    assert calls.rows == [3] * 6
    alone = torch.cat([t2i.pictures(prompt=prompt, **fields) for prompt in PROMPTS])
    assert (together - alone).abs().max() < MAX_ABS


def test_a_batch_equals_diffusers_one_by_one(t2i, t2i_checkpoint) -> None:
    reference = reference_pipeline("QwenImagePipeline", t2i_checkpoint)
    fields = {"negative_prompt": "blurry and dull", "true_cfg_scale": 3.0, **SMALL}
    expected = torch.cat(
        [
            reference(
                prompt,
                generator=torch.Generator("cpu").manual_seed(7),
                output_type="pt",
                **fields,
            ).images
            for prompt in PROMPTS
        ]
    )
    together = t2i.pictures(prompt=PROMPTS, seed=7, **fields)
    assert decibels(together, expected) > 90


def test_outputs_of_a_prompt_have_successive_seeds(t2i: LoadedPipeline) -> None:
    with Calls(t2i) as calls:
        together = t2i.pictures(
            prompt=PROMPTS[0], num_outputs_per_prompt=3, seed=7, **SMALL
        )
    assert calls.rows == [3] * 3
    alone = torch.cat(
        [t2i.pictures(prompt=PROMPTS[0], seed=7 + i, **SMALL) for i in range(3)]
    )
    assert (together - alone).abs().max() < MAX_ABS


def test_one_request_for_several_outputs(t2i: LoadedPipeline) -> None:
    """How HTTP sends ``n``: not expanded before it is queued."""
    together = t2i.pictures(
        prompt=PROMPTS[0], seed=7, num_outputs_per_prompt=2, **SMALL
    )
    (request,) = t2i.requests(prompt=PROMPTS[0], seed=7, **SMALL)
    request.num_outputs_per_prompt = 2
    (other,) = t2i.requests(prompt=PROMPTS[1], seed=9, **SMALL)
    with Calls(t2i) as calls, torch.inference_mode():
        results = t2i.pipeline.forward_batch([request, other], t2i.server_args)
    assert calls.rows == [3] * 3
    rows = results[0].output.reshape(together.shape)
    assert (rows - together).abs().max() < MAX_ABS


def test_other_geometry_runs_apart(t2i: LoadedPipeline) -> None:
    small = t2i.requests(prompt="a", seed=1, **SMALL)
    large = t2i.requests(prompt="a", seed=1, **{**SMALL, "width": 192})
    with Calls(t2i) as calls, torch.inference_mode():
        results = t2i.pipeline.forward_batch(small + large, t2i.server_args)
    assert calls.rows == [1] * 6
    assert [result.output.shape[-1] for result in results] == [160, 192]


@pytest.fixture
def references(tmp_path) -> list[str]:
    wide = write_picture(tmp_path / "wide.png", 96, 64, seed=1)
    tall = write_picture(tmp_path / "tall.png", 48, 80, seed=2)
    return [str(wide), str(tall)]


def test_edits_with_two_references(edit: LoadedPipeline, references) -> None:
    fields = {
        "image_path": references,
        "negative_prompt": " ",
        "seed": 3,
        "reference_pixels": 256 * 256,
        **SMALL,
    }
    with Calls(edit) as calls:
        together = edit.pictures(
            prompt="make it blue, please", num_outputs_per_prompt=2, **fields
        )
    assert calls.rows == [2] * 6
    alone = torch.cat(
        [
            edit.pictures(prompt="make it blue, please", **{**fields, "seed": seed})
            for seed in (3, 4)
        ]
    )
    assert (together - alone).abs().max() < MAX_ABS


def test_edits_of_several_prompts(edit: LoadedPipeline, references) -> None:
    """A list of references for each prompt; one picture for each, as in stock."""
    fields = {"seed": 3, "reference_pixels": 256 * 256, "negative_prompt": " ", **SMALL}
    cases = (
        (PROMPTS, [references] * 3, [references] * 3),
        (PROMPTS[:2], [references[0]] * 2, [references[:1]] * 2),
        (PROMPTS[:2], references[0], [references[:1]] * 2),
    )
    for prompts, given, own in cases:
        with Calls(edit) as calls:
            together = edit.pictures(prompt=prompts, image_path=given, **fields)
        assert calls.rows == [len(prompts)] * 6
        alone = [
            edit.pictures(prompt=prompt, image_path=images, **fields)
            for prompt, images in zip(prompts, own, strict=True)
        ]
        assert (together - torch.cat(alone)).abs().max() < MAX_ABS


def test_edits_of_other_geometry_run_apart(edit: LoadedPipeline, references) -> None:
    fields = {"seed": 3, "reference_pixels": 256 * 256, **SMALL}
    with Calls(edit) as calls:
        together = edit.pictures(prompt=PROMPTS[:2], image_path=references, **fields)
    assert calls.rows == [1] * 6
    alone = [
        edit.pictures(prompt=prompt, image_path=[reference], **fields)
        for prompt, reference in zip(PROMPTS[:2], references, strict=True)
    ]
    assert (together - torch.cat(alone)).abs().max() < MAX_ABS
    for wrong in ([references] * 3, [*references, references[0]]):
        with pytest.raises(RequestError, match="image_path"):
            edit.requests(prompt=PROMPTS[:2], image_path=wrong, **fields)


def test_2511_in_a_batch(runtime, edit_checkpoint, references, tmp_path) -> None:
    checkpoint = copy_checkpoint(
        edit_checkpoint,
        tmp_path / "any-name",
        **{"transformer/config": {"zero_cond_t": True}},
    )
    loaded = load_pipeline(checkpoint)
    assert loaded.pipeline.get_module("transformer").zero_cond_t
    fields = {
        "image_path": references[:1],
        "reference_pixels": 256 * 256,
        "prompt": "make it blue",
        **SMALL,
    }
    together = loaded.pictures(num_outputs_per_prompt=2, seed=3, **fields)
    alone = torch.cat([loaded.pictures(seed=seed, **fields) for seed in (3, 4)])
    assert (together - alone).abs().max() < MAX_ABS
