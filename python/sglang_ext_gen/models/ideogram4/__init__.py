# SPDX-License-Identifier: Apache-2.0
"""Ideogram 4 FP8: text to image by flow matching with asymmetric guidance.

Source: the released checkpoint ``ideogram-ai/ideogram-4-fp8`` and the reference
pipeline of diffusers (0.40 development version).

Data flow, in the order of the files:

    request.py          request fields, presets, checks          (no heavy import)
    sampling_params.py  the same fields as SGLang's SamplingParams
    text_encoder.py     prompt -> features of 13 decoder layers   [B, T, 13 * D]
    packing.py          text and image tokens in one sequence     [B, T + I]
    schedule.py         logit-normal times, guidance per step
    dit.py              latents, features, time -> velocity       [B, I, C]
    cuda_graphs.py      prompts of many lengths through few graphs
    stages.py           text encoding, denoising, decoding stages
    latent_statistics.py  the VAE's latents are normalised by these numbers
    pipeline.py         components and stage order
    pipeline_config.py options.py  how it is loaded
    caption.py          JSON captions, the prompts that the model was trained on

and on the side of the checkpoint: config.py (architecture), tensors.py (what is on
disk), weights.py (where it goes), checkpoint.py (both as one table, and its check),
build.py (modules to fill), tiny.py (write a small one).

Shape legend: B batch, T text tokens, I image tokens, S = T + I packed tokens,
D hidden size, H heads, d head dim, C latent channels per token (128), gh / gw
latent token grid (16 pixels a token).
"""

from sglang_ext_gen.models.family import Licence, ModelFamily

_LICENCE = Licence("Ideogram Non-Commercial Model Agreement", False)

FAMILY = ModelFamily(
    name="ideogram4",
    title="Ideogram 4 FP8",
    package=__name__,
    pipeline="pipeline:Ideogram4FP8Pipeline",
    pipeline_config="pipeline_config:Ideogram4FP8PipelineConfig",
    sampling_params="sampling_params:Ideogram4FP8SamplingParams",
    hf_model_paths=("ideogram-ai/ideogram-4-fp8",),
    http_routes=("/v1/images/generations",),
    licence=_LICENCE,
)
