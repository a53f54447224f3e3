# SPDX-License-Identifier: Apache-2.0
"""One side of ``bench_qwen_image.py``: the Qwen-Image pipeline of diffusers."""

import importlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from denoise_protocol import LoadingMemory, Message, StepClock, peak_rss_mib, serve

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def load(options: Message) -> tuple[Message, Callable[[Message], Message]]:
    """Load the checkpoint; ``options`` as for SGLang, without ``load_options``."""
    # Any: diffusers' types call its results a union that nobody returns.
    diffusers: Any = importlib.import_module("diffusers")
    rss_before = peak_rss_mib()
    memory = LoadingMemory()
    has_cuda = torch.cuda.is_available()
    pipeline = diffusers.QwenImagePipeline.from_pretrained(
        options["model"], torch_dtype=DTYPES[options["precision"]]
    ).to("cuda" if has_cuda else "cpu")
    pipeline.set_progress_bar_config(disable=True)
    description = {
        "pipeline": f"diffusers {version('diffusers')}",
        "rss_before_loading_mib": rss_before,
        "loading": memory.finish(),
    }
    clock = StepClock(
        pipeline.transformer, torch.cuda.synchronize if has_cuda else bool
    )
    return description, lambda request: {**run(pipeline, request), **clock.take()}


def run(pipeline: Any, request: Message) -> Message:
    """Answer one request and report what it cost."""
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    fields = dict(request["fields"])
    seed, count = fields.pop("seed"), fields.pop("num_outputs_per_prompt")
    images = pipeline(
        num_images_per_prompt=count,
        # One a picture, so that each has the noise of its own seed.
        generator=[torch.Generator("cpu").manual_seed(seed + i) for i in range(count)],
        **fields,
    ).images
    target = Path(request["picture"])
    files = [target.with_stem(f"{target.stem}_{i}") for i in range(count)]
    for image, file in zip(images, files, strict=True):
        image.save(file)
    params = list(pipeline.transformer.parameters())
    has_cuda = torch.cuda.is_available()
    return {
        "peak_rss_mib": peak_rss_mib(),
        "peak_cuda_mib": torch.cuda.max_memory_allocated() / 2**20 if has_cuda else 0,
        "pictures": [str(file) for file in files],
        "dit_bytes": sum(param.nbytes for param in params),
        "dit_bf16_bytes": sum(2 * param.numel() for param in params),
    }


if __name__ == "__main__":
    serve(load)
