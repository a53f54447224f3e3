# SPDX-License-Identifier: Apache-2.0
"""Qwen-Image and Qwen-Image-Edit: stock SGLang's models, and what stock lacks.

The transformer, the text encoder, the VAE, the scheduler and the denoising loop are
stock SGLang's own classes. What is added here is listed in ``README.md``, each line
with its test. Source of every rule: the Qwen-Image pipelines of diffusers 0.37.

Data flow, in the order of the files:

    request.py          request fields and checks              (no heavy import)
    references.py       reference pictures: limits and sizes   (no heavy import)
    sampling_params.py  the same fields as SGLang's SamplingParams
    stages.py           text [1, T, D]; references and noise -> latents [B, I, C]
    pipeline_config.py  what stock's stages ask: positions, masks, sizes
    pipeline.py         components and stage order
    quantization.py     FP8 weights behind stock's linears
    build.py            a transformer with those, and its loader
    lora.py             adapters, with an account of every key

Checkpoint side: ``checkpoint.py`` (the table of components), ``config.py``,
``tensors.py`` and ``tiny.py``.

Two rows of the registry: ``qwen_image`` draws from text, ``qwen_image_edit`` changes
pictures (Qwen-Image-Edit, -2509 and -2511).

Shape legend: B batch, T text tokens, I image tokens (16 x 16 pixels each) of the
picture and, in edits, of all references behind it, D hidden size, C = 64 packed
latent channels.
"""

from sglang_ext_gen.models.family import Licence, ModelFamily

_LICENCE = Licence("Apache-2.0", True)

FAMILY = ModelFamily(
    name="qwen_image",
    title="Qwen-Image",
    package=__name__,
    pipeline="pipeline:QwenImageExtPipeline",
    pipeline_config="pipeline_config:QwenImageExtPipelineConfig",
    sampling_params="sampling_params:QwenImageExtSamplingParams",
    hf_model_paths=("Qwen/Qwen-Image", "Qwen/Qwen-Image-2512"),
    http_routes=("/v1/images/generations",),
    licence=_LICENCE,
    why_not="checkpoint:why_not",
    fp8_quality="fp8_quality:fp8_quality",
)

EDIT_FAMILY = ModelFamily(
    name="qwen_image_edit",
    title="Qwen-Image-Edit",
    package=__name__,
    pipeline="pipeline:QwenImageEditExtPipeline",
    pipeline_config="pipeline_config:QwenImageEditExtPipelineConfig",
    sampling_params="sampling_params:QwenImageEditExtSamplingParams",
    request_fields="request:EDIT_REQUEST_FIELDS",
    check_request="request:check_edit_request",
    recognises="checkpoint:recognises_edit",
    write_tiny="tiny:write_tiny_edit",
    demo_requests="demo:edit_demo_requests",
    hf_model_paths=(
        "Qwen/Qwen-Image-Edit",
        "Qwen/Qwen-Image-Edit-2509",
        "Qwen/Qwen-Image-Edit-2511",
    ),
    http_routes=("/v1/images/edits",),
    licence=_LICENCE,
    fp8_quality="fp8_quality:fp8_quality",
)
