# SPDX-License-Identifier: Apache-2.0
"""The request fields of Ideogram 4 as SGLang's ``SamplingParams``."""

import logging
from dataclasses import dataclass
from typing import Any

from sglang.multimodal_gen.configs.sample.sampling_params import DataType

from sglang_ext_gen.diffusion.sampling_params import FamilySamplingParams
from sglang_ext_gen.models.ideogram4.caption import advise_on_caption
from sglang_ext_gen.models.ideogram4.request import (
    REQUEST_FIELDS,
    check_request,
    plan_denoising,
)
from sglang_ext_gen.request.fields import carries

logger = logging.getLogger(__name__)


@dataclass
@carries(REQUEST_FIELDS)
class Ideogram4FP8SamplingParams(FamilySamplingParams):
    """One request; see ``REQUEST_FIELDS`` for meaning and range of each field."""

    title = "Ideogram 4"
    request_fields = REQUEST_FIELDS

    data_type: DataType = DataType.IMAGE

    def check(self, server_args: Any) -> None:
        """Check fields and length of the prompt; fill the number of steps."""
        from sglang_ext_gen.models.ideogram4.text_encoder import (
            check_prompt_length,
            resolve_tokenizer,
        )

        values = self.check_seeds(check_request, self.values())
        tokenizer = resolve_tokenizer(server_args.model_path, server_args.revision)
        prompts = values["prompt"]
        for prompt in [prompts] if isinstance(prompts, str) else prompts:
            check_prompt_length(tokenizer, prompt)
            advise_on_caption(prompt, logger)
        config = server_args.pipeline_config
        plan = plan_denoising(values, has_unconditional=config.load_unconditional)
        self.num_inference_steps = plan.num_inference_steps
