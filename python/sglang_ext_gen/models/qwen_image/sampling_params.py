# SPDX-License-Identifier: Apache-2.0
"""The request fields of Qwen-Image as SGLang's ``SamplingParams``.

The fields, their ranges and their rules are in ``request.py`` and ``references.py``;
these classes only carry them through SGLang and have them checked before a request is
queued.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sglang.multimodal_gen.configs.sample.sampling_params import (
    DataType,
    SamplingParams,
)

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.models.qwen_image.layout import takes_one_reference
from sglang_ext_gen.models.qwen_image.references import (
    MAX_REFERENCES,
    check_references,
)
from sglang_ext_gen.models.qwen_image.request import (
    DEFAULT_SIZE,
    DEFAULT_TRUE_CFG_SCALE,
    EDIT_REQUEST_FIELDS,
    PIXELS_PER_TOKEN,
    REQUEST_FIELDS,
    check_edit_request,
    check_request,
    uses_guidance,
)
from sglang_ext_gen.request.fields import SERVED_BY_SGLANG, refuse_unused_fields

# What stock's denoising loop, which this family runs, reads beside our fields.
_OF_STOCKS_LOOP = {
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
_PACKED_CHANNELS = 64


@dataclass
class QwenImageExtSamplingParams(SamplingParams):
    """One text-to-image request; see ``REQUEST_FIELDS`` for the fields.

    Args:
        latents: Initial noise instead of a seeded one (Python only): packed
            [n, I, 64] as in the reference, a row for each output of a prompt.
    """

    data_type: DataType = DataType.IMAGE
    num_frames: int = 1
    negative_prompt: str | None = None  # type: ignore[assignment]
    height: int | None = DEFAULT_SIZE  # type: ignore[assignment]
    width: int | None = DEFAULT_SIZE  # type: ignore[assignment]
    num_inference_steps: int = 50
    # Another name of true_cfg_scale where a user gives it; SGLang wants a number.
    guidance_scale: float = 1.0
    sigmas: list[float] | None = None
    latents: torch.Tensor | None = None

    @classmethod
    def image_request_extra_fields(cls) -> frozenset[str]:
        """Fields that the HTTP image endpoint takes from the body."""
        return frozenset({"sigmas"})

    def should_use_classifier_free_guidance(self) -> bool:
        """The reference's rule; see ``uses_guidance``."""
        return uses_guidance(self._scale(), self.negative_prompt)

    def _set_output_file_name(self) -> None:
        # The name holds a hash of all fields, which cannot take a tensor.
        latents, self.latents = self.latents, None
        super()._set_output_file_name()
        self.latents = latents

    def _scale(self) -> float:
        if self.true_cfg_scale is not None:
            return self.true_cfg_scale
        return DEFAULT_TRUE_CFG_SCALE

    def _adjust(self, server_args: Any) -> None:
        checked = self._check(server_args)
        self.num_inference_steps = checked["num_inference_steps"]
        self.true_cfg_scale = checked.get("true_cfg_scale", DEFAULT_TRUE_CFG_SCALE)
        # The base class would strip the negative prompt.
        negative_prompt = self.negative_prompt
        super()._adjust(server_args)
        self.negative_prompt = negative_prompt
        self.guidance_scale = self.true_cfg_scale

    def _check(self, server_args: Any) -> dict[str, Any]:
        """Check the merged request in the user's process, before it is queued."""
        if self.image_path is not None:
            raise RequestError(
                "image_path", "this model draws from text; it takes none"
            )
        return self._check_fields(REQUEST_FIELDS, check_request)

    def _check_fields(self, known: Any, check: Any) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in known}
        used = SERVED_BY_SGLANG | _OF_STOCKS_LOOP | {"latents"} | values.keys()
        refuse_unused_fields(self, used, "Qwen-Image")
        if not self._is_explicit("guidance_scale"):
            values["guidance_scale"] = None
        # The class's own default must not contradict a schedule of another length.
        if self.sigmas is not None and not self._is_explicit("num_inference_steps"):
            values["num_inference_steps"] = None
        for seed in self.seed if isinstance(self.seed, list) else [self.seed]:
            checked = check({**values, "seed": seed})
        self._check_latents(checked)
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
class QwenImageEditExtSamplingParams(QwenImageExtSamplingParams):
    """One edit; see ``EDIT_REQUEST_FIELDS`` for the fields.

    Without a size, the picture takes the shape of the last reference, at about one
    megapixel.
    """

    height: int | None = None  # type: ignore[assignment]
    width: int | None = None  # type: ignore[assignment]
    num_inference_steps: int = 40
    reference_pixels: int | None = None

    @classmethod
    def image_request_extra_fields(cls) -> frozenset[str]:
        """Fields that the HTTP image endpoint takes from the body.

        ``image_path`` comes from uploads; a client cannot set it.
        """
        return frozenset({"sigmas", "reference_pixels", "image_path"})

    def _check(self, server_args: Any) -> dict[str, Any]:
        is_first = takes_one_reference(Path(server_args.model_path))
        check_references(self.image_path, 1 if is_first else MAX_REFERENCES)
        checked = self._check_fields(EDIT_REQUEST_FIELDS, check_edit_request)
        if "max_sequence_length" in checked:
            _check_prompt_lengths(checked, server_args.model_path)
        for name in ("width", "height"):
            if name in checked:
                self._explicit_fields = {*vars(self).get("_explicit_fields", ()), name}
        return checked
