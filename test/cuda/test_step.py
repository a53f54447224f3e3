# SPDX-License-Identifier: Apache-2.0
"""One denoising step of each family on a pretended GPU, at released size.

The figures are counted, not measured: see ``benchmark/count_kernels.py``.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmark"
FAMILIES = ("ideogram4", "ming_omni", "lance")
# At 1024 x 1024 in bfloat16, today: kernels a block, elementwise GB a step. Guidance
# of ming_omni and lance is in the same call, that of ideogram4 would come on top.
BUDGETS = {"ideogram4": (39, 77.2), "ming_omni": (30, 123.5), "lance": (57, 92.5)}


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    """What the script prints for a GPU of Hopper's kind."""
    command = [sys.executable, str(BENCHMARKS / "count_kernels.py"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout[done.stdout.index("{") :])


@pytest.mark.parametrize("kind", ["syncs", "host_copies", "mixed_devices"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_never_waits_for_the_gpu_nor_copies_to_it(family, kind, figures):
    assert figures[family][kind] == {}


@pytest.mark.parametrize("family", ["ideogram4", "ming_omni"])
def test_attention_is_flash_attention_in_the_precision_of_the_model(family, figures):
    assert set(figures[family]["attention"]) == {"FA"}
    assert figures[family]["attention_dtypes"] == ["torch.bfloat16"]


def test_lance_attends_without_masks(figures):
    # torch chooses a fused kernel for it where there is no mask.
    assert set(figures["lance"]["attention"]) == {"SDPA"}


@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_and_traffic_stay_within_the_budget(family, figures):
    kernels, gigabytes = BUDGETS[family]
    assert figures[family]["kernels_per_block"] <= kernels
    assert figures[family]["elementwise_gb"] <= gigabytes
