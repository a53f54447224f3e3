# SPDX-License-Identifier: Apache-2.0
"""Qwen-Image on two processes equals one: branches or sequence divided.

Also the Python door: ``DiffGenerator`` with real workers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from conftest import GOLDEN_ROOT
from server.servers import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.unproven]

GOLDEN = GOLDEN_ROOT / "qwen_image"
T2I = GOLDEN / "t2i" / "Qwen-Image"
MODES = {
    "cfg": {"num_gpus": 2, "enable_cfg_parallel": True},
    "ulysses": {"num_gpus": 2, "sp_degree": 2, "ulysses_degree": 2},
}
REQUEST = {
    "prompt": "a red circle on white",
    "negative_prompt": "low quality, blurry, a longer negative prompt",
    "true_cfg_scale": 4.0,
    "width": 256,
    "height": 256,
    "num_inference_steps": 4,
    "seed": 1,
}


@contextmanager
def generator(model: Any, monkeypatch: Any, **options: Any) -> Iterator[Any]:
    from sglang.multimodal_gen import DiffGenerator

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # One core a rank; needed by tensor parallelism on a machine without NUMA nodes.
    monkeypatch.setenv("SGLANG_CPU_OMP_THREADS_BIND", "0|1")
    _, scheduler_port, master_port = free_ports()
    running = DiffGenerator.from_pretrained(
        model_path=str(model),
        backend="sglang",
        dit_precision="fp32",
        vae_precision="fp32",
        text_encoder_precisions=("fp32",),
        output_path=None,
        scheduler_port=scheduler_port,
        master_port=master_port,
        **options,
    )
    with running:
        yield running


def draw(running: Any, **fields: Any) -> list[np.ndarray]:
    results = running.generate(sampling_params_kwargs=fields)
    results = results if isinstance(results, list) else [results]
    return [np.asarray(result.frames[0]).astype(np.float64) / 255 for result in results]


def decibels(image: np.ndarray, reference: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((image - reference) ** 2) + 1e-12))


def reference(kind: str) -> np.ndarray:
    from safetensors import safe_open

    with safe_open(GOLDEN / kind / "golden.safetensors", framework="np") as file:
        return file.get_tensor("image").astype(np.float64)


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_equal_one(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with generator(T2I, monkeypatch, **MODES[mode]) as running:
        (image,) = draw(running, **REQUEST)
        assert decibels(image, reference("t2i")) >= 48
        # Texts of two lengths in one call.
        first, _ = draw(running, **{**REQUEST, "prompt": [REQUEST["prompt"], "sea"]})
        assert decibels(first, reference("t2i")) >= 48
