# SPDX-License-Identifier: Apache-2.0
"""``DiffGenerator.generate`` for our families, with a scheduler that is not there."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lazy import LazyModule
from sglang_ext_gen.errors import GenerationError, RequestError
from sglang_ext_gen.plugin import resolution

plugin_generate = LazyModule("sglang_ext_gen.plugin.generate")

SIZE = {"width": 256, "height": 256}


@pytest.fixture
def generator(ideogram4_golden, monkeypatch):
    """With our classes, without changing SGLang for other tests of this process."""
    from sglang.multimodal_gen import registry as stock_registry
    from sglang.multimodal_gen.runtime.entrypoints.diffusion_generator import (
        DiffGenerator,
    )
    from sglang.multimodal_gen.runtime.pipelines_core.schedule_batch import OutputBatch
    from sglang.multimodal_gen.runtime.server_args import ServerArgs

    from sglang_ext_gen.models.ideogram4.pipeline_config import (
        Ideogram4FP8PipelineConfig,
    )

    class Generator(DiffGenerator):
        """Answers as a worker would: one grey picture per request, darker by number."""

        def __init__(self, server_args: ServerArgs) -> None:
            super().__init__(server_args)
            self.received: list[Any] = []
            self.error: str | None = None
            self.lost = 0

        def _send_to_scheduler_and_wait_for_response(
            self, batch: list[Any]
        ) -> OutputBatch:
            self.received.append(batch)
            if self.error is not None:
                return OutputBatch(error=self.error)
            count = len(batch) - self.lost
            pictures = [torch.full((3, 256, 256), 1 / (n + 1)) for n in range(count)]
            paths = [request.output_file_path(1, 0) for request in batch[:count]]
            return OutputBatch(output=pictures, output_file_paths=paths)

    stock = stock_registry.get_model_info
    monkeypatch.setattr(
        stock_registry,
        "get_model_info",
        lambda path, backend=None, model_id=None: resolution.get_model_info(
            stock, path, backend=backend, model_id=model_id
        ),
    )
    server_args = ServerArgs.from_kwargs(
        model_path=str(ideogram4_golden.checkpoint), fp8_mode="expanded"
    )
    assert isinstance(server_args.pipeline_config, Ideogram4FP8PipelineConfig)
    assert server_args.pipeline_config.fp8_mode == "expanded"
    return Generator(server_args)


def generate(generator: Any, **fields: Any) -> Any:
    def original(*_: Any) -> None:
        raise AssertionError("stock was asked")

    return plugin_generate.generate(original, generator, fields)


def test_stock_models_go_through_the_untouched_original():
    def original(*arguments: Any) -> Any:
        return arguments

    generator: Any = SimpleNamespace(
        server_args=SimpleNamespace(pipeline_config=object())
    )
    fields = {"prompt": None}
    answer = plugin_generate.generate(original, generator, fields, {"trace": "1"})
    assert answer == (generator, fields, {"trace": "1"})


def test_one_prompt_is_one_result(generator, tmp_path):
    result = generate(generator, prompt="a", output_path=str(tmp_path), **SIZE)
    assert result.prompt == "a"
    assert Path(result.output_file_path).parent == tmp_path
    assert result.size[:2] == (256, 256)
    [[request]] = generator.received
    assert request.seed == 42


def test_prompts_and_outputs_are_one_group_in_order(generator, tmp_path):
    results = generate(
        generator,
        prompt=["a", "b"],
        num_outputs_per_prompt=2,
        seed=7,
        output_path=str(tmp_path),
        **SIZE,
    )
    [group] = generator.received
    asked = [(request.prompt, request.seed) for request in group]
    assert asked == [("a", 7), ("a", 8), ("b", 7), ("b", 8)]
    assert [result.prompt for result in results] == ["a", "a", "b", "b"]
    assert [result.prompt_index for result in results] == [0, 1, 2, 3]
    assert len({result.output_file_path for result in results}) == 4
    assert len({request.request_id for request in group}) == 4


def test_seeds_may_be_listed_for_all_outputs(generator):
    generate(generator, prompt=["a", "b"], seed=[5, 9], **SIZE)
    [group] = generator.received
    assert [request.seed for request in group] == [5, 9]


def test_samples_instead_of_files(generator):
    results = generate(
        generator,
        prompt=["a", "b"],
        save_output=False,
        return_file_paths_only=False,
        **SIZE,
    )
    assert [float(result.samples.max()) for result in results] == [1.0, 0.5]
    assert results[0].frames[0].shape == (256, 256, 3)
    assert results[0].output_file_path is None


def test_prompts_from_a_file(generator, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a\n\nb\n", "utf-8")
    generate(generator, prompt_path=str(path), **SIZE)
    [group] = generator.received
    assert [request.prompt for request in group] == ["a", "b"]


def test_the_workers_message_is_raised(generator):
    generator.error = "Error executing request 1: out of ink"
    with pytest.raises(GenerationError, match="out of ink"):
        generate(generator, prompt="a", **SIZE)


def test_a_refusal_of_the_worker_names_the_field(generator):
    generator.error = "Error executing grouped request 1: prompt: too long"
    with pytest.raises(RequestError, match=r"^prompt: too long$"):
        generate(generator, prompt="a", **SIZE)


def test_lost_outputs_are_an_error(generator):
    generator.lost = 1
    with pytest.raises(GenerationError, match="1 outputs for 2"):
        generate(generator, prompt="a", num_outputs_per_prompt=2, **SIZE)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": "a " * 3000}, "prompt"),
        ({"prompt": "a", "width": 17}, "width"),
        ({"prompt": "a", "colour": "red"}, "colour"),
        ({"prompt": "a", "negative_prompt": "b"}, "negative_prompt"),
        ({"prompt": ["a", "b"], "output_file_name": "x.png"}, "output_file_name"),
    ],
)
def test_bad_fields_are_refused_before_any_work(generator, fields, name):
    with pytest.raises(RequestError, match=f"^{name}: ") as caught:
        generate(generator, **fields)
    assert caught.value.field == name
    assert generator.received == []
