# SPDX-License-Identifier: Apache-2.0
"""What ``generate`` and ``demo`` share: start SGLang, run requests, report.

Everything that imports SGLang is inside a function.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang_ext_gen.errors import CheckpointError, ConfigError, GenerationError
from sglang_ext_gen.process.child_server import free_port
from sglang_ext_gen.registry import ModelFamily

if TYPE_CHECKING:
    from sglang.multimodal_gen.runtime.entrypoints.diffusion_generator import (
        DiffGenerator,
    )
    from sglang.multimodal_gen.runtime.entrypoints.utils import GenerationResult

# SGLang's switches for timing each stage, the device's queue drained at its ends. They
# are environment variables because the workers, too, must see them.
TIMING_VARIABLES = (
    "SGLANG_DIFFUSION_STAGE_LOGGING",
    "SGLANG_DIFFUSION_SYNC_STAGE_PROFILING",
)
MEDIA_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".mp4")


@contextmanager
def stdout_to_stderr() -> Iterator[int]:
    """Send everything that this process and its children print to stderr.

    Yields:
        A file descriptor of the original stdout.
    """
    sys.stdout.flush()
    original = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield original
    finally:
        sys.stdout.flush()
        os.dup2(original, 1)
        os.close(original)


@contextmanager
def started_generator(
    family: ModelFamily,
    model: str,
    load_options: Mapping[str, Any],
    sglang_arguments: Sequence[str],
    requests: Sequence[Mapping[str, Any]] = (),
) -> Iterator["DiffGenerator"]:
    """A ``DiffGenerator`` for a checkpoint of ours, shut down at the end.

    Given requests are checked in full, the length of their prompts in tokens included,
    before a worker starts. Stages are timed, unless the environment says otherwise.

    Args:
        family: Whose checkpoint it is.
        model: Local directory or Hugging Face id.
        load_options: Fields of the family's pipeline config.
        sglang_arguments: Further flags of SGLang's diffusion server.
        requests: What it will be asked.

    Raises:
        ConfigError: A flag is unknown or its value is refused.
        RequestError: A request cannot be served with these options.
        CheckpointError: The workers stopped while they loaded the checkpoint.
    """
    for variable in TIMING_VARIABLES:
        os.environ.setdefault(variable, "1")

    from sglang.multimodal_gen.configs.sample.sampling_params import SamplingParams
    from sglang.multimodal_gen.runtime.entrypoints.diffusion_generator import (
        DiffGenerator,
    )
    from sglang.multimodal_gen.runtime.platforms.plugins import apply_plugin_hooks

    apply_plugin_hooks()
    server_args = _server_args(model, load_options, sglang_arguments)
    for request in requests:
        SamplingParams.from_user_sampling_params_args(
            server_args.model_path, server_args=server_args, **request
        )
    try:
        generator = DiffGenerator.from_server_args(server_args)
    except RuntimeError as error:
        raise CheckpointError(_why_start_failed(family, model, error)) from error
    with generator:
        yield generator


def _server_args(
    model: str, load_options: Mapping[str, Any], sglang_arguments: Sequence[str]
) -> Any:
    from sglang.multimodal_gen.runtime.server_args import ServerArgs
    from sglang.multimodal_gen.runtime.utils.argparse import FlexibleArgumentParser

    # Without --backend SGLang runs whatever it cannot resolve through diffusers.
    argv = ["--model-path", model, "--backend", "sglang", *sglang_arguments]
    if "--master-port" not in argv:
        # SGLang's default is one fixed port: two runs on a machine would collide.
        argv += ["--master-port", str(free_port())]
    parser = FlexibleArgumentParser(prog="sglang-ext-gen", allow_abbrev=False)
    ServerArgs.add_cli_args(parser)
    # What is unknown to the parser may still name a component (--vae-path).
    arguments, unknown = parser.parse_known_args(argv)
    try:
        return ServerArgs.from_cli_args(
            arguments, unknown, default_args=dict(load_options), argv=argv
        )
    except SystemExit as error:
        raise ConfigError(str(error).removeprefix("error: ")) from error


def _why_start_failed(family: ModelFamily, model: str, error: RuntimeError) -> str:
    path = Path(model)
    problems = family.load(family.check_checkpoint)(path) if path.is_dir() else []
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems[:10])
        return f"{model} cannot be served, {len(problems)} problem(s):{listed}"
    return f"{error} The worker's own message is in the log above."


def output_fields(output: str) -> dict[str, str]:
    """SGLang's two request fields for a file name or a directory."""
    path = Path(output)
    if path.suffix.lower() in MEDIA_SUFFIXES:
        return {"output_path": str(path.parent), "output_file_name": path.name}
    return {"output_path": output}


def run_request(
    generator: "DiffGenerator", request: Mapping[str, Any]
) -> list["GenerationResult"]:
    """Run one request.

    Returns:
        One result per output, prompt by prompt.

    Raises:
        GenerationError: No result came back.
    """
    results = generator.generate(sampling_params_kwargs=dict(request))
    if results is None:
        raise GenerationError("SGLang returned no result; its log has the reason")
    return results if isinstance(results, list) else [results]


def describe(results: Sequence["GenerationResult"]) -> dict[str, Any]:
    """What the results were and what they cost, ready for JSON.

    Seconds are of the whole group of outputs: stages run for all of them together.
    """
    metrics = results[0].metrics
    return {
        "outputs": [
            {"path": result.output_file_path, "prompt": result.prompt}
            for result in results
        ],
        "seconds": round(results[0].generation_time, 3),
        "seconds_per_stage": {
            name: round(milliseconds / 1000, 4)
            for name, milliseconds in metrics.get("stages", {}).items()
        },
        "seconds_per_step": [
            round(milliseconds / 1000, 4) for milliseconds in metrics.get("steps", [])
        ],
        "peak_memory_mib": round(max(result.peak_memory_mb for result in results), 1),
    }


def report(description: Mapping[str, Any]) -> str:
    """A description for people; stages of less than a millisecond are left out."""
    rows = [
        (name, f"{seconds:9.3f} s")
        for name, seconds in description["seconds_per_stage"].items()
        if seconds >= 0.001
    ]
    steps = description["seconds_per_step"]
    if steps:
        mean = sum(steps) / len(steps)
        rows.append((f"denoising step, mean of {len(steps)}", f"{mean:9.3f} s"))
    rows.append(("all", f"{description['seconds']:9.3f} s"))
    if description["peak_memory_mib"]:
        rows.append(("peak memory", f"{description['peak_memory_mib']:9.1f} MiB"))
    paths = [output["path"] for output in description["outputs"]]
    return "\n".join([*paths, *(f"  {name:<36}{value}" for name, value in rows)])
