# SPDX-License-Identifier: Apache-2.0
"""Two processes equal one: CFG-parallel, Ulysses, K/V gather and tensor parallel.

Real worker processes talk over gloo on the CPU, in float32. Two prompts of different
lengths exercise the padding masks, an odd number of image tokens the uneven shards.
"""

from pathlib import Path
from typing import Any

import pytest

from server.servers import float32_generator
from sglang_ext_gen.models.ideogram4.tiny import write_tiny

pytestmark = pytest.mark.slow

REQUEST = {
    "prompt": ["a red fox in the snow at night", "ok"],
    "seed": 7,
    "height": 272,
    "width": 272,  # 17 x 17 tokens
    "num_inference_steps": 4,
    "guidance_schedule": [7.0, 5.0, 3.0, 1.0],
    "save_output": False,
    "return_file_paths_only": False,
}
MODES: dict[str, dict[str, Any]] = {
    "cfg": {"enable_cfg_parallel": True},
    "ulysses": {"ulysses_degree": 2, "sp_degree": 2, "enable_cfg_parallel": False},
    "tp": {"tp_size": 2, "enable_cfg_parallel": False},
}


def run(checkpoint: Path, **server_args: Any) -> list[Any]:
    """Pictures of ``REQUEST``, each [3, 272, 272] float32."""
    with float32_generator(
        checkpoint, text_encoder_precisions=("fp32",), **server_args
    ) as generator:
        results = generator.generate(sampling_params_kwargs=REQUEST)
        assert isinstance(results, list)
        return [result.samples for result in results]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Even numbers of heads, unlike the golden checkpoint's three."""
    path = tmp_path_factory.mktemp("parallel") / "tiny"
    write_tiny(path)
    return path


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> list[Any]:
    return run(checkpoint)


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_equal_one(mode: str, checkpoint: Path, expected: list) -> None:
    pictures = run(checkpoint, num_gpus=2, **MODES[mode])
    assert len(pictures) == len(expected)
    for picture, reference in zip(pictures, expected, strict=True):
        error = (picture - reference).square().mean()
        assert -10 * error.log10() > 45
        assert reference.std() > 0.01, "a flat picture would prove nothing"
