# SPDX-License-Identifier: Apache-2.0
"""Lance: pictures and videos, made, edited and understood by one 3B model.

Source: the released checkpoint ``bytedance-research/Lance`` and the official
inference code ``bytedance/Lance`` at commit 4baeee08, KV-cache path.

One Qwen2.5-VL decoder holds two sets of weights per layer (mixture of
transformers): plain ones for text, vision features and markers, ``*_moe_gen`` ones
for latent tokens. A request is one packed sequence; everything but its last block,
the noise, is independent of time and becomes a key/value prefix. Each step then runs
the noise block alone against the prefix.

Data flow, in the order of the files:

    tasks.py         the seven tasks as one table of differences  (no heavy import)
    request.py       request fields, defaults, checks             (no heavy import)
    visual_input.py  pictures and videos -> resized frames
    vision.py        frames -> vision features                    [I, D]
    vae.py           frames <-> latents                           [1, C, F, h, w]
    tiling.py        large frames through the VAE in tiles
    packing.py       tokens, segments, positions of a request
    mot.py           prefix and noise block -> velocity           [B, I, C]
    schedule.py      times, guidance, Euler step
    generation.py    one group of requests, from prefix to latents
    checkpoint.py    the components: config.py, tensors.py (on disk), weights.py (where
                     each tensor goes), build.py (the modules)

Shape legend: B requests, S packed tokens, T text tokens, I latent tokens, D hidden
size, H heads, K key/value heads, d head dim, C latent channels (48), F latent frames,
h / w latent grid (16 pixels a token).
"""

from sglang_ext_gen.models.family import LanguageModel, Licence, ModelFamily

_LICENCE = Licence("Apache-2.0", True)

FAMILY = ModelFamily(
    name="lance",
    title="Lance",
    package=__name__,
    pipeline="pipeline:LancePipeline",
    pipeline_config="pipeline_config:LancePipelineConfig",
    sampling_params="sampling_params:LanceSamplingParams",
    hf_model_paths=("bytedance-research/Lance",),
    http_routes=("/v1/images/generations", "/v1/images/edits", "/v1/videos"),
    licence=_LICENCE,
    convert="build:convert",
    fp8_quality="fp8_quality:fp8_quality",
    language_model="lance",
)

LANGUAGE_MODEL = LanguageModel(
    name="lance",
    title="Lance (understanding)",
    package=__name__,
    architecture="LanceForConditionalGeneration",
    licence=_LICENCE,
    check_checkpoint="checkpoint:check_understanding",
    needs="needs:understanding_needs",
    prepare_arguments="thinker.view:prepare_arguments",
)
