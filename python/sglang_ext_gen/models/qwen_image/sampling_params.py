# SPDX-License-Identifier: Apache-2.0
"""The request fields of Qwen-Image as SGLang's ``SamplingParams``.

The fields, their ranges and their rules are in ``request.py`` and ``references.py``;
these classes add what several of them mean together.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
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
    uses_guidance,
)
from sglang_ext_gen.request.fields import carries

# What stock's denoising loop, which this family runs, reads beside our fields.
_OF_STOCKS_LOOP = frozenset(
    {
        "attention_backend_override",
        "cache_dit_params",
        "cfg_gate_step",
        "cfg_normalization",
        "enable_cache_dit",
        "enable_spectrum",
        "enable_teacache",
        "skip_softmax_params",
        "spectrum_params",
        "teacache_params",
    }
)
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
    # A picture to work from is refused in words of its own.
    also_used = _OF_STOCKS_LOOP | {"latents", "image_path"}

    data_type: DataType = DataType.IMAGE
    num_frames: int = 1
    latents: torch.Tensor | None = None

    def should_use_classifier_free_guidance(self) -> bool:
        """The reference's rule; see ``uses_guidance``."""
        scale = self.true_cfg_scale
        return uses_guidance(
            DEFAULT_TRUE_CFG_SCALE if scale is None else scale, self.negative_prompt
        )

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
        if "max_sequence_length" in checked:
            _check_prompt_lengths(checked, server_args.model_path)
        for name in ("width", "height"):
            if name in checked:
                self._explicit_fields = {*vars(self).get("_explicit_fields", ()), name}
