# SPDX-License-Identifier: Apache-2.0
"""The counter of ``benchmark/pretend_gpu.py`` sees what it is there for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmark"
PLANTED = """
import json, sys
sys.path.insert(0, sys.argv[1])
import pretend_gpu
pretend_gpu.install((9, 0))
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

def count(run):
    with FakeTensorMode() as mode:
        x = torch.empty(4, 8, device="cuda", dtype=torch.bfloat16)
        with pretend_gpu.KernelCounter() as counter:
            try:
                run(x)
            except Exception:  # what depends on data has no value here
                pass
    counts = counter.counts
    return {
        "kernels": counts.kernels.total(),
        "bytes": counts.elementwise_bytes.total(),
        "syncs": counts.syncs.total(),
        "host_copies": counts.host_copies.total(),
        "mixed_devices": counts.mixed_devices.total(),
    }

print(json.dumps({
    "nothing": count(lambda x: x.view(32).unsqueeze(0)),
    "add": count(lambda x: x + x[:1]),
    "product": count(lambda x: x @ x.T),
    "to_host": count(lambda x: x.cpu()),
    "from_host": count(lambda x: torch.ones(3).to("cuda")),
    "mixed": count(lambda x: x.index_select(0, torch.zeros(2, dtype=torch.int64))),
}))
"""


@pytest.fixture(scope="module")
def planted() -> dict[str, dict[str, int]]:
    command = [sys.executable, "-c", PLANTED, str(BENCHMARKS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout[done.stdout.index("{") :])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nothing", {"kernels": 0}),
        # [4, 8] twice and [1, 8] once, two bytes each.
        ("add", {"kernels": 1, "bytes": (32 + 8 + 32) * 2}),
        ("product", {"kernels": 1, "bytes": 0}),
        ("to_host", {"syncs": 1}),
        ("from_host", {"host_copies": 1}),
    ],
)
def test_what_is_planted_is_counted(name, expected, planted):
    empty = {"syncs": 0, "host_copies": 0, "mixed_devices": 0}
    found = planted[name]
    assert found == {**found, **empty, **expected}


def test_two_devices_in_one_operator_are_seen(planted):
    assert planted["mixed"]["mixed_devices"] == 1
