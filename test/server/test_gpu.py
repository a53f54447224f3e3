# SPDX-License-Identifier: Apache-2.0
"""Runs the cases of ``gpu_cases.py`` through ``sglang-ext-gen generate``.

Each case starts SGLang, makes a picture, compares it and, on the hardware of its
baseline, its speed and memory. Without a GPU, enough of them, or the weights, a case is
skipped with the reason. What a case cost is printed (``pytest -s``), ready to become a
baseline.

The last tests check the table itself and need no GPU.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from images import psnr, read_rgb
from server.gpu_cases import (
    CASES,
    CHATS,
    VARIABLES,
    Agreement,
    Baseline,
    GpuCase,
    GpuChat,
    Tiny,
)
from server.ming import data_url
from server.servers import free_ports, server_environment
from sglang_ext_gen.envs import PREFIX, EnvironmentVariable
from sglang_ext_gen.registry import FAMILIES, find_family

# How far a measurement may lie above its baseline before the case fails.
SLACK = 1.25
MIN_CONTRAST = 4.0  # standard deviation of 8-bit pixels; a failed picture is flat
GENERATE_SECONDS = 1800


@pytest.fixture(scope="module")
def generate(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[GpuCase], dict[str, Any]]:
    """Runs a case once and remembers what the command reported."""
    reports: dict[str, dict[str, Any]] = {}
    folder = tmp_path_factory.mktemp("gpu")

    def run(case: GpuCase) -> dict[str, Any]:
        if case.name not in reports:
            reports[case.name] = generate_picture(case, folder)
        return reports[case.name]

    return run


def generate_picture(case: GpuCase, folder: Path) -> dict[str, Any]:
    """The report of ``sglang-ext-gen generate --json``."""
    _, scheduler_port, master_port = free_ports()
    request = [
        word
        for name, value in case.request.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    command = [
        *(sys.executable, "-m", "sglang_ext_gen", "generate"),
        *(str(checkpoint(case, folder)), "--json"),
        *("--output", str(folder / f"{case.name}.png")),
        *("--scheduler-port", str(scheduler_port), "--master-port", str(master_port)),
        *request,
        *case.flags,
    ]
    done = subprocess.run(
        command,
        env=server_environment({}),
        capture_output=True,
        text=True,
        timeout=GENERATE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-4000:]}"
    return json.loads(done.stdout)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("chat", CHATS, ids=lambda chat: chat.name)
def test_chat(chat: GpuChat, tmp_path: Path) -> None:
    from sglang_ext_gen.process.child_server import ChildServer

    skip_unless_possible(chat)
    model = str(checkpoint(chat, tmp_path))
    command = ["-m", "sglang.launch_server", "--model-path", model, *chat.flags]
    server = ChildServer(chat.name, command)
    server.start()
    try:
        server.wait_until_healthy(GENERATE_SECONDS)
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
        content: list[Any] = [{"type": "text", "text": chat.question}]
        if chat.image is not None:
            url = {"url": data_url(chat.image)}
            content.insert(0, {"type": "image_url", "image_url": url})
        started = time.perf_counter()
        answer = client.chat.completions.create(
            model="default",
            messages=[{"role": "user", "content": content}],
            max_tokens=chat.max_tokens,
            temperature=0,
            extra_body={"ignore_eos": True},
        )
        seconds = time.perf_counter() - started
    finally:
        server.stop()
    text = answer.choices[0].message.content
    print(f"{chat.name}: {chat.max_tokens / seconds:.1f} tokens/s: {text!r}")
    assert text
    if chat.answer is not None:
        assert text == chat.answer


def checkpoint(case: GpuCase | GpuChat, folder: Path) -> Path:
    """Where the case's checkpoint is; writes it or skips the case."""
    if isinstance(case.model, Path):
        return case.model
    if isinstance(case.model, Tiny):
        path = folder / f"tiny-{case.model.family}"
        if not path.exists():
            family = find_family(case.model.family)
            family.load(family.write_tiny)(path)
        return path
    value = os.environ.get(case.model.name, case.model.default)
    if not value:
        pytest.skip(f"{case.model.name} is not set. {case.model.effect}")
    return Path(value)


def skip_unless_possible(case: GpuCase | GpuChat) -> None:
    import torch

    if torch.cuda.device_count() < case.num_gpus:
        pytest.skip(f"needs {case.num_gpus} GPUs, found {torch.cuda.device_count()}")
    if isinstance(case, GpuChat):
        return
    if torch.cuda.get_device_capability() < case.min_capability:
        pytest.skip(f"needs a CUDA capability of {case.min_capability} or more")


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: GpuCase, generate: Callable[[GpuCase], dict[str, Any]]) -> None:
    skip_unless_possible(case)
    report = generate(case)
    picture = Path(report["outputs"][0]["path"])
    assert read_rgb(picture).std() > MIN_CONTRAST
    for agreement in case.agreements:
        reference = reference_picture(agreement, generate)
        found = psnr(picture, reference)
        print(f"{case.name}: {found:.1f} dB against {agreement.reference}")
        assert found >= agreement.min_psnr_db
    measured = measure(report)
    print(f"{case.name}: {measured}")
    if case.baseline is not None and case.baseline.hardware == measured.hardware:
        assert measured.step_ms <= SLACK * case.baseline.step_ms
        assert measured.peak_memory_mib <= SLACK * case.baseline.peak_memory_mib


def reference_picture(
    agreement: Agreement, generate: Callable[[GpuCase], dict[str, Any]]
) -> Path:
    if isinstance(agreement.reference, Path):
        return agreement.reference
    other = next(case for case in CASES if case.name == agreement.reference)
    return Path(generate(other)["outputs"][0]["path"])


def measure(report: dict[str, Any]) -> Baseline:
    """What a run cost, in the form of a baseline."""
    from datetime import date

    import torch

    # The first step tunes kernels.
    steps = report["seconds_per_step"][1:]
    return Baseline(
        hardware=torch.cuda.get_device_name(),
        date=date.today().isoformat(),
        step_ms=round(1000 * sum(steps) / len(steps), 2),
        peak_memory_mib=report["peak_memory_mib"],
    )


def test_case_names_are_unique_and_begin_with_a_family() -> None:
    names = [case.name for case in (*CASES, *CHATS)]
    assert len(names) == len(set(names))
    families = {family.name for family in FAMILIES}
    assert {name.partition("-")[0] for name in names} <= families


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_references_exist_and_fit(case: GpuCase) -> None:
    earlier = {other.name: other for other in CASES[: CASES.index(case)]}
    for agreement in case.agreements:
        if isinstance(agreement.reference, Path):
            assert agreement.reference.is_file()
        else:
            other = earlier[agreement.reference]
            assert (other.model, other.request) == (case.model, case.request)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_models_and_requests_are_valid(case: GpuCase) -> None:
    family = find_family(case.name.partition("-")[0])
    family.load(family.check_request)(case.request)
    if isinstance(case.model, Path):
        assert family.load(family.recognises)(case.model)
    elif isinstance(case.model, EnvironmentVariable):
        assert case.model in VARIABLES
        assert not case.model.name.startswith(PREFIX)
