# SPDX-License-Identifier: Apache-2.0
"""Every model family in one table, and the question "whose checkpoint is this?".

Adding a family means adding a row here. Whatever is heavy, or lives under
``models/``, is named as ``"module:attribute"`` and imported by the caller that needs
it, so that this module can be read by every process at no cost.
"""

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_ext_gen import envs
from sglang_ext_gen.errors import ConfigError


@dataclass(frozen=True)
class ModelFamily:
    """One row: what a family is called, where its parts are, what it takes over.

    The strings are ``"module:attribute"``.

    Args:
        name: Short name, for ``SGLANG_EXT_GEN_DISABLE`` and the command line.
        title: Name for people.
        pipeline: SGLang pipeline class; its ``pipeline_name`` is the attribute's name.
        pipeline_config: SGLang pipeline config class.
        sampling_params: SGLang sampling params class.
        request_fields: Tuple of ``RequestField``; imports neither torch nor SGLang.
        load_options: Tuple of ``RequestField`` for the fields of the pipeline config
            that a user may set; same imports.
        check_request: Function from given fields to checked ones; same imports.
        check_checkpoint: Function from a local directory to a list of problems.
        recognises: Function that says whether a local directory holds a checkpoint
            of this family, by content; imports neither torch nor SGLang.
        write_tiny: Function that writes a tiny checkpoint into a directory.
        demo_requests: Function from no arguments to a list of requests to show.
        hf_model_paths: Hugging Face ids that are this family's, whatever stock
            SGLang would do with them.
        http_routes: POST routes of the server that the family serves.
        fp8_quality: Function from a local directory to pairs of a weight's name and
            its signal-to-noise ratio in dB as FP8; None where weights are not
            quantised at load.
        demo_chat: Context manager from a tiny checkpoint to load options for the demo
            and a function from a picture to a chat about it; None without a chat.
        convert: Function from a local directory to the safetensors files that it wrote
            from the checkpoint's pickles; None where there are none.
        language_model: Name of the row of ``LANGUAGE_MODELS`` that the family's
            checkpoints hold as well; ``sglang serve`` then runs both behind one port.
        thinker_url_option: Load option that takes the address of the language model,
            where the family needs its answers to draw.
    """

    name: str
    title: str
    pipeline: str
    pipeline_config: str
    sampling_params: str
    request_fields: str
    load_options: str
    check_request: str
    check_checkpoint: str
    recognises: str
    write_tiny: str
    demo_requests: str
    hf_model_paths: tuple[str, ...]
    http_routes: tuple[str, ...]
    fp8_quality: str | None = None
    demo_chat: str | None = None
    convert: str | None = None
    language_model: str | None = None
    thinker_url_option: str | None = None

    @property
    def pipeline_name(self) -> str:
        """The name under which SGLang knows the pipeline class."""
        return self.pipeline.partition(":")[2]


_IDEOGRAM4 = "sglang_ext_gen.models.ideogram4"
_LANCE = "sglang_ext_gen.models.lance"
_MING_OMNI = "sglang_ext_gen.models.ming_omni"
_QWEN_IMAGE = "sglang_ext_gen.models.qwen_image"

FAMILIES: tuple[ModelFamily, ...] = (
    ModelFamily(
        name="ideogram4",
        title="Ideogram 4 FP8",
        pipeline=f"{_IDEOGRAM4}.pipeline:Ideogram4FP8Pipeline",
        pipeline_config=f"{_IDEOGRAM4}.pipeline_config:Ideogram4FP8PipelineConfig",
        sampling_params=f"{_IDEOGRAM4}.sampling_params:Ideogram4FP8SamplingParams",
        request_fields=f"{_IDEOGRAM4}.request:REQUEST_FIELDS",
        load_options=f"{_IDEOGRAM4}.options:LOAD_OPTIONS",
        check_request=f"{_IDEOGRAM4}.request:check_request",
        check_checkpoint=f"{_IDEOGRAM4}.layout:check_checkpoint",
        recognises=f"{_IDEOGRAM4}.layout:recognises",
        write_tiny=f"{_IDEOGRAM4}.tiny:write_tiny",
        demo_requests=f"{_IDEOGRAM4}.demo:demo_requests",
        hf_model_paths=("ideogram-ai/ideogram-4-fp8",),
        http_routes=("/v1/images/generations",),
    ),
    ModelFamily(
        name="lance",
        title="Lance",
        pipeline=f"{_LANCE}.pipeline:LancePipeline",
        pipeline_config=f"{_LANCE}.pipeline_config:LancePipelineConfig",
        sampling_params=f"{_LANCE}.sampling_params:LanceSamplingParams",
        request_fields=f"{_LANCE}.request:REQUEST_FIELDS",
        load_options=f"{_LANCE}.options:LOAD_OPTIONS",
        check_request=f"{_LANCE}.request:check_request",
        check_checkpoint=f"{_LANCE}.layout:check_checkpoint",
        recognises=f"{_LANCE}.layout:recognises",
        write_tiny=f"{_LANCE}.tiny:write_tiny",
        demo_requests=f"{_LANCE}.demo:demo_requests",
        hf_model_paths=("bytedance-research/Lance",),
        http_routes=("/v1/images/generations", "/v1/images/edits", "/v1/videos"),
        convert=f"{_LANCE}.vae:convert",
        fp8_quality=f"{_LANCE}.fp8_quality:fp8_quality",
        language_model="lance",
    ),
    ModelFamily(
        name="ming_omni",
        title="Ming-flash-omni 2.0",
        pipeline=f"{_MING_OMNI}.pipeline:MingOmniImagePipeline",
        pipeline_config=f"{_MING_OMNI}.pipeline_config:MingImagePipelineConfig",
        sampling_params=f"{_MING_OMNI}.sampling_params:MingImageSamplingParams",
        request_fields=f"{_MING_OMNI}.request:REQUEST_FIELDS",
        load_options=f"{_MING_OMNI}.options:LOAD_OPTIONS",
        check_request=f"{_MING_OMNI}.request:check_request",
        check_checkpoint=f"{_MING_OMNI}.layout:check_checkpoint",
        recognises=f"{_MING_OMNI}.layout:recognises",
        write_tiny=f"{_MING_OMNI}.tiny:write_tiny",
        demo_requests=f"{_MING_OMNI}.demo:demo_requests",
        hf_model_paths=("inclusionAI/Ming-flash-omni-2.0",),
        http_routes=("/v1/images/generations", "/v1/images/edits"),
        demo_chat=f"{_MING_OMNI}.demo:demo_chat",
        convert=f"{_MING_OMNI}.loaders:convert",
        language_model="ming_omni",
        thinker_url_option="thinker_url",
    ),
    ModelFamily(
        name="qwen_image",
        title="Qwen-Image",
        pipeline=f"{_QWEN_IMAGE}.pipeline:QwenImageExtPipeline",
        pipeline_config=f"{_QWEN_IMAGE}.pipeline_config:QwenImageExtPipelineConfig",
        sampling_params=f"{_QWEN_IMAGE}.sampling_params:QwenImageExtSamplingParams",
        request_fields=f"{_QWEN_IMAGE}.request:REQUEST_FIELDS",
        load_options=f"{_QWEN_IMAGE}.options:LOAD_OPTIONS",
        check_request=f"{_QWEN_IMAGE}.request:check_request",
        check_checkpoint=f"{_QWEN_IMAGE}.layout:check_checkpoint",
        recognises=f"{_QWEN_IMAGE}.layout:recognises",
        write_tiny=f"{_QWEN_IMAGE}.tiny:write_tiny",
        demo_requests=f"{_QWEN_IMAGE}.demo:demo_requests",
        hf_model_paths=("Qwen/Qwen-Image", "Qwen/Qwen-Image-2512"),
        http_routes=("/v1/images/generations",),
        fp8_quality=f"{_QWEN_IMAGE}.fp8_quality:fp8_quality",
    ),
    ModelFamily(
        name="qwen_image_edit",
        title="Qwen-Image-Edit",
        pipeline=f"{_QWEN_IMAGE}.pipeline:QwenImageEditExtPipeline",
        pipeline_config=f"{_QWEN_IMAGE}.pipeline_config:QwenImageEditExtPipelineConfig",
        sampling_params=f"{_QWEN_IMAGE}.sampling_params:QwenImageEditExtSamplingParams",
        request_fields=f"{_QWEN_IMAGE}.request:EDIT_REQUEST_FIELDS",
        load_options=f"{_QWEN_IMAGE}.options:LOAD_OPTIONS",
        check_request=f"{_QWEN_IMAGE}.request:check_edit_request",
        check_checkpoint=f"{_QWEN_IMAGE}.layout:check_checkpoint",
        recognises=f"{_QWEN_IMAGE}.layout:recognises_edit",
        write_tiny=f"{_QWEN_IMAGE}.tiny:write_tiny_edit",
        demo_requests=f"{_QWEN_IMAGE}.demo:edit_demo_requests",
        hf_model_paths=(
            "Qwen/Qwen-Image-Edit",
            "Qwen/Qwen-Image-Edit-2509",
            "Qwen/Qwen-Image-Edit-2511",
        ),
        http_routes=("/v1/images/edits",),
        fp8_quality=f"{_QWEN_IMAGE}.fp8_quality:fp8_quality",
    ),
)


@dataclass(frozen=True)
class LanguageModel:
    """One row: a family's part on SGLang's language model runtime.

    The strings are ``"module:attribute"``, except the first three.

    Args:
        name: The family's short name, as in ``FAMILIES``.
        title: Name for people.
        architecture: As in the ``architectures`` of ``config.json``.
        register_config: Function that makes the config and tokenizer known; called in
            every process of the runtime.
        register_model: Function that registers model and processor; called only where
            the architecture is about to be used.
        check_checkpoint: Function from a local directory to a list of problems.
        recognises: Function that says whether a local directory holds this model, by
            content; imports neither torch nor SGLang.
        write_tiny: Function that writes a tiny checkpoint into a directory.
        prepare_arguments: Function that may change SGLang's server arguments before
            they are resolved, for checkpoints that SGLang cannot open as they are.
    """

    name: str
    title: str
    architecture: str
    register_config: str
    register_model: str
    check_checkpoint: str
    recognises: str
    write_tiny: str
    prepare_arguments: str | None = None


_MING_THINKER = f"{_MING_OMNI}.thinker"

LANGUAGE_MODELS: tuple[LanguageModel, ...] = (
    LanguageModel(
        name="ming_omni",
        title="Ming-flash-omni 2.0 (thinker)",
        architecture="BailingMM2NativeForConditionalGeneration",
        register_config=f"{_MING_THINKER}.config:register_config",
        register_model=f"{_MING_THINKER}.register:register_model",
        check_checkpoint=f"{_MING_THINKER}.layout:check_checkpoint",
        recognises=f"{_MING_THINKER}.layout:recognises",
        write_tiny=f"{_MING_THINKER}.tiny:write_tiny",
    ),
    LanguageModel(
        name="lance",
        title="Lance (understanding)",
        architecture="LanceForConditionalGeneration",
        register_config=f"{_LANCE}.thinker.config:register_config",
        register_model=f"{_LANCE}.thinker.register:register_model",
        check_checkpoint=f"{_LANCE}.layout:check_checkpoint",
        recognises=f"{_LANCE}.layout:recognises",
        write_tiny=f"{_LANCE}.tiny:write_tiny",
        prepare_arguments=f"{_LANCE}.thinker.view:prepare_arguments",
    ),
)


def resolve(reference: str) -> Any:
    """Import what a ``"module:attribute"`` string names."""
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def enabled_families() -> tuple[ModelFamily, ...]:
    """The rows that ``SGLANG_EXT_GEN_DISABLE`` leaves on.

    Raises:
        ConfigError: The variable names a family that does not exist.
    """
    disabled = _disabled()
    return tuple(family for family in FAMILIES if family.name not in disabled)


def enabled_language_models() -> tuple[LanguageModel, ...]:
    """The rows of ``LANGUAGE_MODELS`` that ``SGLANG_EXT_GEN_DISABLE`` leaves on.

    Raises:
        ConfigError: The variable names a family that does not exist.
    """
    disabled = _disabled()
    return tuple(model for model in LANGUAGE_MODELS if model.name not in disabled)


def _disabled() -> tuple[str, ...]:
    names = envs.disabled_families()
    language_models = {model.name for model in LANGUAGE_MODELS}
    for name in names:
        if name not in language_models:
            find_family(name)
    return names


def find_family(name: str) -> ModelFamily:
    """The row called ``name``, enabled or not.

    Raises:
        ConfigError: There is none; lists the known names.
    """
    for family in FAMILIES:
        if family.name == name:
            return family
    known = ", ".join(row.name for row in (*FAMILIES, *LANGUAGE_MODELS))
    raise ConfigError(f"unknown model family {name!r}; known families: {known}")


def family_of(path_or_id: str | os.PathLike[str]) -> ModelFamily | None:
    """The enabled family of a checkpoint, or None where stock SGLang decides.

    A local directory is judged by its content, never by its name; anything else by
    comparison with the Hugging Face ids of the table.
    """
    text = os.fspath(path_or_id)
    path = Path(text)
    for family in enabled_families():
        if path.is_dir():
            if resolve(family.recognises)(path):
                return family
        elif text.lower() in (known.lower() for known in family.hf_model_paths):
            return family
    return None


def language_model_of(path: Path) -> LanguageModel | None:
    """The enabled language model that a local directory holds, judged by content."""
    for model in enabled_language_models():
        if resolve(model.recognises)(path):
            return model
    return None


def composed_family_of(path_or_id: str | os.PathLike[str]) -> ModelFamily | None:
    """The enabled family of a checkpoint that holds a language model of ours as well.

    A local directory is judged by its content; an id is taken to be the release.
    """
    family = family_of(path_or_id)
    if family is None or family.language_model is None:
        return None
    path = Path(path_or_id)
    for model in enabled_language_models():
        if model.name == family.language_model:
            is_there = not path.is_dir() or resolve(model.recognises)(path)
            return family if is_there else None
    return None


def find_row(name: str) -> ModelFamily | LanguageModel:
    """The row called ``name`` in either table, enabled or not.

    A family's own row speaks for its whole checkpoint.

    Raises:
        ConfigError: There is none; lists the known names.
    """
    for row in (*FAMILIES, *LANGUAGE_MODELS):
        if row.name == name:
            return row
    return find_family(name)


def family_of_config(pipeline_config: object) -> ModelFamily | None:
    """The enabled family that an SGLang pipeline config object belongs to."""
    classes = {f"{c.__module__}:{c.__qualname__}" for c in type(pipeline_config).mro()}
    for family in enabled_families():
        if family.pipeline_config in classes:
            return family
    return None
