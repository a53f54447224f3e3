# SPDX-License-Identifier: Apache-2.0
"""Ming-flash-omni 2.0: a language model that sees and hears, and draws.

Source: the released checkpoint ``inclusionAI/Ming-flash-omni-2.0`` in its official
layout, and the official code at its "release Ming-flash-omni 2.0" commit.

    thinker/             understanding, on SGLang's language model runtime
    thinker_protocol.py  what the thinker's process hands to the generator's

The image generator, on SGLang's diffusion runtime, in the order of a request:

    request.py sizes.py       fields, defaults, checks; trained sizes (no heavy import)
    thinker_client.py         prompt and pictures -> query states       [T, thinker]
    connector.py              query states -> condition rows            [T, C]
    quoted_text.py byt5.py    words to letter -> glyph rows             [L, C]
    dit.py                    caption and latents -> direction          [B, c, h, w]
    schedule.py               noise levels, guidance, Euler step
    stages.py pipeline.py     all of it as SGLang stages
    checkpoint.py             the parts of a checkpoint, as a table
    config.py tensors.py weights.py build.py     what its rows name

The generator never imports ``thinker/``: it talks to a server.

Shape legend: B pictures, T query tokens, L glyph tokens, C caption width, P caption
rows with padding, I image tokens, J image tokens with padding, S tokens of both
streams, D hidden size, H heads, d head dim, c latent channels, h / w latent grid
(8 pixels a latent, 16 a token).
"""

from sglang_ext_gen.models.family import LanguageModel, Licence, ModelFamily

_LICENCE = Licence("MIT", True)

FAMILY = ModelFamily(
    name="ming_omni",
    title="Ming-flash-omni 2.0",
    package=__name__,
    pipeline="pipeline:MingOmniImagePipeline",
    pipeline_config="pipeline_config:MingOmniPipelineConfig",
    sampling_params="sampling_params:MingOmniSamplingParams",
    hf_model_paths=("inclusionAI/Ming-flash-omni-2.0",),
    http_routes=("/v1/images/generations", "/v1/images/edits"),
    licence=_LICENCE,
    demo_chat="demo:demo_chat",
    convert="build:convert",
    language_model="ming_omni",
    thinker_url_option="thinker_url",
)

LANGUAGE_MODEL = LanguageModel(
    name="ming_omni",
    title="Ming-flash-omni 2.0 (thinker)",
    package=__name__,
    architecture="BailingMM2NativeForConditionalGeneration",
    licence=_LICENCE,
    check_checkpoint="thinker.checkpoint:check_checkpoint",
    needs="thinker.needs:needs",
    why_not="thinker.checkpoint:why_not",
    recognises="thinker.checkpoint:recognises",
    write_tiny="thinker.tiny:write_tiny",
)
