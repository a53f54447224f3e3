# SPDX-License-Identifier: Apache-2.0
"""``DiffGenerator.generate`` for our families.

Made of the same stock steps as the original: sampling params, one request per prompt,
one per output, scheduler, files. Deviations: all prompts of a call form one group, so
that the pipeline can batch them; a missing prompt is refused; every failure is raised
with the worker's message. The results have stock's types and order: prompt by prompt,
output by output, and each prompt uses the seeds seed, seed + 1, ...
"""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import fields
from typing import Any

from sglang.multimodal_gen.configs.sample.sampling_params import (
    SamplingParams,
    generate_request_id,
)
from sglang.multimodal_gen.runtime.entrypoints.diffusion_generator import (
    DiffGenerator,
    _replace_sampling_params_for_prompt,
)
from sglang.multimodal_gen.runtime.entrypoints.utils import (
    GenerationResult,
    RequestOutput,
    expand_request_outputs,
    map_request_outputs,
    prepare_request,
    save_outputs,
)
from sglang.multimodal_gen.runtime.pipelines_core import Req
from sglang.multimodal_gen.runtime.pipelines_core.schedule_batch import OutputBatch
from sglang.multimodal_gen.runtime.utils.trace_wrapper import trace_req

from sglang_ext_gen.errors import GenerationError, RequestError, refusal_in
from sglang_ext_gen.registry import ModelFamily, family_of_config

Results = GenerationResult | list[GenerationResult]


def generate(
    original: Callable[..., Results | None],
    generator: DiffGenerator,
    sampling_params_kwargs: dict[str, Any] | None = None,
    external_trace_header: dict[str, str] | None = None,
) -> Results | None:
    """Around ``DiffGenerator.generate``: stock's for stock models.

    Raises:
        RequestError: A field of the request cannot be used; also where only a worker
            could find out.
        GenerationError: The request failed in a worker.
    """
    family = family_of_config(generator.server_args.pipeline_config)
    if family is None:
        return original(generator, sampling_params_kwargs, external_trace_header)

    request_fields = dict(sampling_params_kwargs or {})
    _refuse_unknown(family, request_fields)
    requests = _build_requests(generator, request_fields, external_trace_header)
    outputs = map_request_outputs(requests)
    started = time.perf_counter()
    with ExitStack() as stack:
        for request in requests:
            stack.enter_context(trace_req(request.trace_ctx))
        batch = generator._send_to_scheduler_and_wait_for_response(requests)
        if batch.error:
            known = {field.name for field in family.load(family.request_fields)}
            raise refusal_in(batch.error, known) or GenerationError(batch.error)
        samples = _collect_samples(batch, outputs)
    seconds = time.perf_counter() - started
    results = [
        GenerationResult(
            **generator._result_common(
                output.request, batch, seconds, output.request_index
            ),
            **sample,
            prompt_index=index,
        )
        for index, (output, sample) in enumerate(zip(outputs, samples, strict=True))
    ]
    generator._log_summary(results)
    return results[0] if len(results) == 1 else results


def _refuse_unknown(family: ModelFamily, names: Iterable[str]) -> None:
    known = {field.name for field in fields(family.load(family.sampling_params))}
    for name in names:
        if name not in known:
            own = ", ".join(field.name for field in family.load(family.request_fields))
            raise RequestError(
                name, f"unknown field; {family.title} takes {own} and SGLang's own"
            )


def _build_requests(
    generator: DiffGenerator,
    given: dict[str, Any],
    external_trace_header: dict[str, str] | None,
) -> list[Req]:
    """One request per output, prompt by prompt."""
    path = given.get("prompt_path") or generator.server_args.prompt_file_path
    if path is not None:
        given["prompt"] = generator._resolve_prompts(None, path)
    if given.get("prompt") is None:
        raise RequestError("prompt", "missing, expected a text or a list of texts")
    prompts = _as_list(given["prompt"])
    if len(prompts) > 1 and given.get("output_file_name") is not None:
        raise RequestError(
            "output_file_name", "one name given for several prompts; leave it out"
        )
    images = _images_of_each(prompts, given.get("image_path"))
    params = _checked_params(generator, given, images[0])
    requests: list[Req] = []
    for index, (prompt, image_path) in enumerate(zip(prompts, images, strict=True)):
        if index > 0 and image_path != images[index - 1]:
            params = _checked_params(generator, given, image_path)
        prompt_params = _replace_sampling_params_for_prompt(
            params,
            prompt=prompt,
            output_file_name=given.get("output_file_name"),
            image_path=image_path,
        )
        prompt_params._set_output_file_name()
        prompt_params.request_id = given.get("request_id") or generate_request_id()
        request = prepare_request(
            server_args=generator.server_args,
            sampling_params=prompt_params,
            external_trace_header=external_trace_header,
        )
        requests += expand_request_outputs(
            request, num_prompts=len(prompts), prompt_index=index
        )
    return requests


def _checked_params(
    generator: DiffGenerator, given: dict[str, Any], image_path: Any
) -> SamplingParams:
    """SGLang's params of a request with these source pictures."""
    own = {} if image_path is None else {"image_path": image_path}
    return SamplingParams.from_user_sampling_params_args(
        generator.server_args.model_path,
        server_args=generator.server_args,
        **{**given, **own},
    )


def _as_list(prompt: Any) -> list[str]:
    if not isinstance(prompt, (str, list, tuple)):
        kind = type(prompt).__name__
        raise RequestError("prompt", f"a {kind} given, expected a text or a list")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise RequestError("prompt", "an empty list given, expected at least one text")
    return prompts


def _images_of_each(prompts: list[str], given: Any) -> list[Any]:
    """The source pictures of each prompt.

    Args:
        prompts: The prompts.
        given: Pictures for a single prompt. For several prompts as in stock: one
            picture that all share, or one for each; here also a list for each.
    """
    lists: Sequence[Any] = given if isinstance(given, (list, tuple)) else []
    if any(isinstance(item, (list, tuple)) for item in lists):
        if len(lists) != len(prompts):
            raise RequestError(
                "image_path", f"{len(lists)} lists given for {len(prompts)} prompts"
            )
        return [
            list(item) if isinstance(item, (list, tuple)) else [item] for item in lists
        ]
    try:
        paths = list(given) if isinstance(given, tuple) else given
        return DiffGenerator._resolve_image_paths_per_prompt(prompts, paths)
    except ValueError as error:
        raise RequestError("image_path", str(error)) from error


def _collect_samples(
    batch: OutputBatch, outputs: Sequence[RequestOutput]
) -> list[dict[str, Any]]:
    """What each result holds: the path of a saved file, or the sample itself."""
    first = outputs[0].request
    if first.save_output and first.return_file_paths_only:
        paths = batch.output_file_paths or []
        _check_count(len(paths), len(outputs))
        return [{"output_file_path": path} for path in paths]
    if batch.output is None:
        raise GenerationError("the worker returned neither an output nor an error")
    _check_count(len(batch.output), len(outputs))
    samples: list[Any] = []
    audios: list[Any] = []
    frames: list[Any] = []
    save_outputs(
        batch.output,
        first.data_type,
        batch.fps if batch.fps is not None else first.fps,
        first.save_output,
        lambda index: outputs[index].output_file_path() or "",
        audio=batch.audio,
        audio_sample_rate=batch.audio_sample_rate,
        samples_out=samples,
        audios_out=audios,
        frames_out=frames,
        output_compression=first.output_compression,
        x264_preset=first.x264_preset,
        enable_frame_interpolation=first.enable_frame_interpolation,
        frame_interpolation_exp=first.frame_interpolation_exp,
        frame_interpolation_scale=first.frame_interpolation_scale,
        frame_interpolation_model_path=first.frame_interpolation_model_path,
        enable_upscaling=first.enable_upscaling,
        upscaling_model_path=first.upscaling_model_path,
        upscaling_scale=first.upscaling_scale,
    )
    paths = [
        output.output_file_path() if first.save_output else None for output in outputs
    ]
    return [
        {"samples": sample, "audio": audio, "frames": frame, "output_file_path": path}
        for sample, audio, frame, path in zip(
            samples, audios, frames, paths, strict=True
        )
    ]


def _check_count(found: int, expected: int) -> None:
    if found != expected:
        raise GenerationError(
            f"the worker returned {found} outputs for {expected} requested ones"
        )
