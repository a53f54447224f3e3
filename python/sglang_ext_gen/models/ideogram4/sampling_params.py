# SPDX-License-Identifier: Apache-2.0
"""The request fields of Ideogram 4 as SGLang's ``SamplingParams``.

The fields, their ranges and their rules are in ``request.py``; this class only
carries them through SGLang and has them checked before a request is queued.
"""

import logging
from dataclasses import dataclass
from typing import Any

from sglang.multimodal_gen.configs.sample.sampling_params import (
    DataType,
    SamplingParams,
)

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.models.ideogram4.caption import advise_on_caption
from sglang_ext_gen.models.ideogram4.request import (
    DEFAULT_PRESET,
    DEFAULT_SIZE,
    GUIDANCE_FREE_PRESET,
    REQUEST_FIELDS,
    DenoisingPlan,
    check_request,
    plan_denoising,
)
from sglang_ext_gen.request.fields import SERVED_BY_SGLANG, refuse_unused_fields

logger = logging.getLogger(__name__)

_USED = SERVED_BY_SGLANG | {field.name for field in REQUEST_FIELDS}


@dataclass
class Ideogram4FP8SamplingParams(SamplingParams):
    """One request; see ``REQUEST_FIELDS`` for meaning and range of each field."""

    data_type: DataType = DataType.IMAGE
    negative_prompt: str | None = None  # type: ignore[assignment]
    height: int = DEFAULT_SIZE
    width: int = DEFAULT_SIZE
    num_inference_steps: int | None = None  # type: ignore[assignment]
    guidance_scale: float | None = None  # type: ignore[assignment]
    preset: str | None = None
    guidance_schedule: list[float] | None = None
    mu: float | None = None
    std: float | None = None

    @classmethod
    def image_request_extra_fields(cls) -> frozenset[str]:
        """Fields that the HTTP image endpoint takes from the body."""
        return frozenset({"preset", "guidance_schedule", "mu", "std"})

    def should_use_classifier_free_guidance(self) -> bool:
        """False: SGLang's own guidance needs a negative prompt; ours does not."""
        return False

    def denoising_plan(self, *, load_unconditional: bool) -> DenoisingPlan:
        """The denoising loop that this request asks for.

        Args:
            load_unconditional: Whether the server holds the unconditional
                transformer; without it the default preset is guidance-free.

        Raises:
            RequestError: See ``plan_denoising``; or guidance is asked of a
                server that did not load the unconditional transformer.
        """
        default = DEFAULT_PRESET if load_unconditional else GUIDANCE_FREE_PRESET
        plan = plan_denoising(
            preset=default if self.preset is None else self.preset,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            guidance_schedule=self.guidance_schedule,
            mu=self.mu,
            std=self.std,
        )
        if plan.needs_unconditional and not load_unconditional:
            raise RequestError(
                "guidance_scale",
                f"guidance {max(plan.guidance):g} needs the unconditional "
                "transformer, which was left unloaded (--no-unconditional); "
                f"use guidance 1 or preset {GUIDANCE_FREE_PRESET}",
            )
        return plan

    def _adjust(self, server_args: Any) -> None:
        self._check(server_args)
        # The base class would read "not given" as guidance 1.
        guidance_scale = self.guidance_scale
        super()._adjust(server_args)
        self.guidance_scale = guidance_scale

    def _check(self, server_args: Any) -> None:
        """Check the merged request in the user's process, before it is queued."""
        from sglang_ext_gen.models.ideogram4.text_encoder import (
            check_prompt_length,
            resolve_tokenizer,
        )

        refuse_unused_fields(self, _USED, "Ideogram 4")
        values = {field.name: getattr(self, field.name) for field in REQUEST_FIELDS}
        seeds = self.seed if isinstance(self.seed, list) else [self.seed]
        for seed in seeds:
            check_request({**values, "seed": seed})
        assert self.prompt is not None, "check_request refuses a missing prompt"
        tokenizer = resolve_tokenizer(server_args.model_path, server_args.revision)
        for prompt in [self.prompt] if isinstance(self.prompt, str) else self.prompt:
            check_prompt_length(tokenizer, prompt)
            advise_on_caption(prompt, logger)
        config = server_args.pipeline_config
        plan = self.denoising_plan(load_unconditional=config.load_unconditional)
        self.num_inference_steps = plan.num_inference_steps
