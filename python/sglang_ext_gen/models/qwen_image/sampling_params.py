# SPDX-License-Identifier: Apache-2.0
"""The request fields of Qwen-Image as SGLang's ``SamplingParams``.

The fields, their ranges and their rules are in ``request.py`` and ``references.py``;
these classes add what several of them mean together.
"""

import functools
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sglang.multimodal_gen import envs
from sglang.multimodal_gen.configs.sample.sampling_params import DataType

from sglang_ext_gen.diffusion.sampling_params import FamilySamplingParams
from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.models.qwen_image.checkpoint import takes_one_reference
from sglang_ext_gen.models.qwen_image.references import (
    MAX_REFERENCES,
    check_references,
)
from sglang_ext_gen.models.qwen_image.request import (
    DEFAULT_TRUE_CFG_SCALE,
    EDIT_REQUEST_FIELDS,
    PIXELS_PER_TOKEN,
    REQUEST_FIELDS,
    check_edit_request,
    check_request,
    grows,
    uses_guidance,
)
from sglang_ext_gen.request.fields import carries

# What stock's denoising loop, which this family runs, reads beside our fields.
_OF_STOCKS_LOOP = ("cfg_normalization", "guidance_rescale")
_OF_ROLLOUT = (
    "rollout",
    "rollout_debug_mode",
    "rollout_log_prob_no_const",
    "rollout_noise_level",
    "rollout_return_denoising_env",
    "rollout_return_dit_trajectory",
    "rollout_return_step_indices",
    "rollout_sde_step_indices",
    "rollout_sde_type",
)
# What neither stock's classes nor ours do, and why.
_REFUSED = {
    "enable_spectrum": "this transformer has no Spectrum; enable_cache_dit is there",
    "enable_teacache": "this transformer has no TeaCache; enable_cache_dit is there",
    "return_trajectory_decoded": "stock's decoder does not take packed latents; "
    "return_trajectory_latents is there",
}
# What a picture that grows leaves no room for.
_NOT_WHILE_GROWING = ("latents", "return_trajectory_latents", "rollout")
# Server arguments that fix the attention kernel.
_FIXES_ATTENTION = ("enable_torch_compile", "enable_breakable_cuda_graph")
_PACKED_CHANNELS = 64


@dataclass
@carries(REQUEST_FIELDS)
class QwenImageExtSamplingParams(FamilySamplingParams):
    """One text-to-image request; see ``REQUEST_FIELDS`` for the fields.

    Args:
        latents: Initial noise instead of a seeded one (Python only): packed
            [n, I, 64] as in the reference, a row for each output of a prompt.
    """

    title = "Qwen-Image"
    # Stock's transformer has neither TeaCache nor Spectrum.
    has_teacache = False
    not_used = frozenset(
        {"enable_spectrum", "enable_teacache", "spectrum_params", "teacache_params"}
    )
    request_fields = REQUEST_FIELDS
    has_teacache = False
    # A picture to work from is refused in words of its own.
    also_used = frozenset({*_OF_STOCKS_LOOP, *_OF_ROLLOUT, "latents", "image_path"})

    data_type: DataType = DataType.IMAGE
    num_frames: int = 1
    latents: torch.Tensor | None = None

    def should_use_classifier_free_guidance(self) -> bool:
        """The reference's rule; see ``uses_guidance``."""
        scale = self.true_cfg_scale
        return uses_guidance(
            DEFAULT_TRUE_CFG_SCALE if scale is None else scale, self.negative_prompt
        )

    def batch_key(self) -> Hashable:
        """Also what stock's loop reads beside the table."""
        own = tuple(getattr(self, name) for name in _OF_STOCKS_LOOP)
        return (super().batch_key(), own)

    def _adjust(self, server_args: Any) -> None:
        for name, reason in _REFUSED.items():
            if getattr(self, name):
                raise RequestError(name, reason)
        super()._adjust(server_args)

    def _set_output_file_name(self) -> None:
        # The name holds a hash of all fields, which cannot take a tensor.
        latents, self.latents = self.latents, None
        super()._set_output_file_name()
        self.latents = latents

    def check(self, server_args: Any) -> None:
        """Check the merged request; afterwards both names of guidance agree.

        Raises:
            RequestError: Names the field that cannot be used.
        """
        if self.image_path is not None:
            raise RequestError(
                "image_path", "this model draws from text; it takes none"
            )
        self._check_fields(check_request)
        self._check_growth(server_args)
        self._check_stocks_loop(server_args)

    def _check_growth(self, server_args: Any) -> None:
        if not grows(self.progressive_mode):
            return
        for name in _NOT_WHILE_GROWING:
            value = getattr(self, name)
            if value is not None and value is not False:
                raise RequestError(name, f"not with {self.progressive_mode}")
        if (server_args.sp_degree or 1) > 1:
            raise RequestError(
                "progressive_mode",
                f"{self.progressive_mode} given, expected fullres: this server shares "
                "a picture among its ranks (sp_degree)",
            )

    def _check_stocks_loop(self, server_args: Any) -> None:
        """What stock's loop would find in a worker."""
        if self.cache_dit_params is not None:
            _check_cache_dit_params(self.cache_dit_params)
        # The cache counts both branches of each step; without one it takes the
        # prompt's for the negative one.
        gate = _or_else(self.cfg_gate_step, envs.SGLANG_DIFFUSION_CFG_GATE_STEP)
        cached = _or_else(self.enable_cache_dit, envs.SGLANG_CACHE_DIT_ENABLED)
        if cached and gate < 1 and self.should_use_classifier_free_guidance():
            raise RequestError(
                "cfg_gate_step", f"{gate:g} given together with enable_cache_dit"
            )
        if self.attention_backend_override is not None:
            for name in _FIXES_ATTENTION:
                if getattr(server_args, name):
                    raise RequestError(
                        "attention_backend_override", f"this server runs with {name}"
                    )

    def _check_fields(self, check_request: Any) -> dict[str, Any]:
        values = self.values()
        if not self._is_explicit("guidance_scale"):
            values["guidance_scale"] = None
        # The class's own default must not contradict a schedule of another length.
        if self.sigmas is not None and not self._is_explicit("num_inference_steps"):
            values["num_inference_steps"] = None
        checked = self.check_seeds(check_request, values)
        self._check_latents(checked)
        self.num_inference_steps = checked["num_inference_steps"]
        self.true_cfg_scale = checked.get("true_cfg_scale", DEFAULT_TRUE_CFG_SCALE)
        self.guidance_scale = self.true_cfg_scale
        return checked

    def _check_latents(self, checked: dict[str, Any]) -> None:
        if self.latents is None:
            return
        if not isinstance(self.latents, torch.Tensor):
            kind = type(self.latents).__name__
            raise RequestError("latents", f"a {kind} given, expected a tensor")
        if "width" not in checked or "height" not in checked:
            raise RequestError("latents", "give width and height together with it")
        tokens = checked["width"] * checked["height"] // PIXELS_PER_TOKEN**2
        expected = (self.num_outputs_per_prompt, tokens, _PACKED_CHANNELS)
        if tuple(self.latents.shape) != expected:
            raise RequestError(
                "latents",
                f"shape {tuple(self.latents.shape)} given, expected {expected} "
                "(outputs, tokens, channels)",
            )
        if not bool(torch.isfinite(self.latents).all()):
            raise RequestError("latents", "holds values that are not finite")

    def _is_explicit(self, name: str) -> bool:
        return name in vars(self).get("_explicit_fields", ())


def _or_else(given: Any, default: Any) -> Any:
    return default if given is None else given


def _check_cache_dit_params(params: dict[str, Any]) -> None:
    # It imports cache-dit, which takes long.
    from sglang.multimodal_gen.runtime.cache.cache_dit_integration import (
        resolve_cache_dit_request_overrides,
    )

    try:
        resolve_cache_dit_request_overrides(params)
    except ValueError as error:
        raise RequestError("cache_dit_params", str(error)) from error


def _check_prompt_lengths(checked: dict[str, Any], model_path: str) -> None:
    """Refuse an edit's prompt beyond ``max_sequence_length``.

    It cannot be cut as for text to image: what follows it belongs to the template.
    """
    limit = checked["max_sequence_length"]
    prompts = checked["prompt"]
    prompts = [prompts] if isinstance(prompts, str) else prompts
    for prompt in [*prompts, checked.get("negative_prompt", "")]:
        length = len(_tokenizer(model_path)(prompt)["input_ids"])
        if length > limit:
            raise RequestError(
                "max_sequence_length",
                f"{limit} given, but a prompt of {length} tokens",
            )


@functools.cache
def _tokenizer(model_path: str) -> Any:
    """The tokenizer of a checkpoint (transformers), once per process."""
    from sglang.multimodal_gen.runtime.utils.hf_diffusers_utils import (
        maybe_download_model,
    )
    from transformers import AutoTokenizer

    folder = Path(maybe_download_model(model_path, force_diffusers_model=True))
    return AutoTokenizer.from_pretrained(folder / "tokenizer")


@dataclass
@carries(EDIT_REQUEST_FIELDS)
class QwenImageEditExtSamplingParams(QwenImageExtSamplingParams):
    """One edit; see ``EDIT_REQUEST_FIELDS`` for the fields."""

    request_fields = EDIT_REQUEST_FIELDS

    def check(self, server_args: Any) -> None:
        """As for text to image, and the reference pictures.

        Raises:
            RequestError: Names the field that cannot be used.
        """
        is_first = takes_one_reference(Path(server_args.model_path))
        check_references(self.image_path, 1 if is_first else MAX_REFERENCES)
        checked = self._check_fields(check_edit_request)
        self._check_stocks_loop(server_args)
        if "max_sequence_length" in checked:
            _check_prompt_lengths(checked, server_args.model_path)
        for name in ("width", "height"):
            if name in checked:
                self._explicit_fields = {*vars(self).get("_explicit_fields", ()), name}
