# SPDX-License-Identifier: Apache-2.0
"""The request fields of the image generator as SGLang's ``SamplingParams``.

The fields, their ranges and their rules are in ``request.py``; this class only carries
them through SGLang and has them checked before a request is queued.
"""

import functools
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sglang.multimodal_gen.configs.sample.sampling_params import (
    DataType,
    SamplingParams,
)
from sglang.multimodal_gen.configs.task_type import ModelTaskType

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.media.images import as_paths, check_references
from sglang_ext_gen.models.ming_omni.layout import glyph_bytes
from sglang_ext_gen.models.ming_omni.quoted_text import as_glyph_text
from sglang_ext_gen.models.ming_omni.request import (
    DEFAULT_GUIDANCE,
    DEFAULT_HIGHRES,
    DEFAULT_SIDE,
    DEFAULT_STEPS,
    MAX_REFERENCES,
    REQUEST_FIELDS,
    check_request,
)
from sglang_ext_gen.models.ming_omni.sizes import bucket_size, unstretched_size
from sglang_ext_gen.request.fields import (
    SERVED_BY_SGLANG,
    refuse_unknown_fields,
    refuse_unused_fields,
)

# Fields of ours that SGLang's base class does not have.
OWN_FIELDS = ("byt5_text", "highres")
_USED = SERVED_BY_SGLANG | {field.name for field in REQUEST_FIELDS} | {"result_size"}
_GLYPH_TOKEN = re.compile(r"<(?:\w+-)?(?:font|color)-\d+>")


@dataclass
class MingImageSamplingParams(SamplingParams):
    """One request; see ``REQUEST_FIELDS`` for meaning and range of each field.

    Args:
        result_size: Height and width of the result where they are not those that are
            drawn; always set by this class.
    """

    data_type: DataType = DataType.IMAGE
    negative_prompt: str | None = None  # type: ignore[assignment]
    height: int | None = None
    width: int | None = None
    num_frames: int = 1
    num_inference_steps: int = DEFAULT_STEPS
    guidance_scale: float = DEFAULT_GUIDANCE
    byt5_text: str | None = None
    highres: int | None = None
    result_size: tuple[int, int] | None = None

    @classmethod
    def image_request_extra_fields(cls) -> frozenset[str]:
        """Fields that the HTTP image endpoint takes from the body.

        ``image_path`` comes from an upload; a client cannot set it.
        """
        return frozenset({*OWN_FIELDS, "image_path"})

    def should_use_classifier_free_guidance(self) -> bool:
        """False: SGLang's own guidance needs a negative prompt; ours does not."""
        return False

    @property
    def references(self) -> list[str]:
        """Paths of the reference pictures."""
        return as_paths(self.image_path)

    def __post_init__(self) -> None:
        # Before SGLang's own checks, some of which are bare assertions.
        for field in REQUEST_FIELDS:
            value = getattr(self, field.name)
            if value is not None and field.name != "seed":
                setattr(self, field.name, field.check(value))
        super().__post_init__()

    def _adjust(self, server_args: Any) -> None:
        self._check(server_args)
        # The base class would strip the negative prompt.
        negative_prompt = self.negative_prompt
        super()._adjust(server_args)
        self.negative_prompt = negative_prompt

    def _check(self, server_args: Any) -> None:
        """Check the merged request in the user's process, before it is queued."""
        names = [field.name for field in fields(self)]
        refuse_unknown_fields(self._explicit_fields, names)
        refuse_unused_fields(self, _USED, "Ming-flash-omni")
        values = {field.name: getattr(self, field.name) for field in REQUEST_FIELDS}
        for seed in self.seed if isinstance(self.seed, list) else [self.seed]:
            check_request({**values, "seed": seed})
        sizes = check_references(self.references, MAX_REFERENCES)
        _check_glyph_text(self.byt5_text, Path(server_args.model_path))
        self.result_size = None
        if sizes:
            self.task_type = ModelTaskType.I2I
            if self.width is None:
                drawn = bucket_size(*sizes[0], self.highres or DEFAULT_HIGHRES)
                self.height, self.width = drawn
                self.result_size = unstretched_size(drawn, sizes[0])
        elif self.highres is not None:
            raise RequestError("highres", "only an edit takes the size of a reference")
        else:
            self.task_type = ModelTaskType.T2I
        if self.width is None:
            self.height, self.width = DEFAULT_SIDE, DEFAULT_SIDE


def _check_glyph_text(text: str | None, checkpoint: Path) -> None:
    """Refuse words that the checkpoint cannot letter, or not all of them."""
    if not text or not checkpoint.is_dir():
        return  # a Hugging Face id: the worker knows what was downloaded
    most = _glyph_bytes(checkpoint)
    if most is None:
        raise RequestError("byt5_text", "this checkpoint has no byt5/, so no lettering")
    # A token each for fonts and colors, for every other byte, and for the end.
    counted = _GLYPH_TOKEN.sub("x", as_glyph_text(text))
    needed = len(counted.encode("utf-8")) + 1
    if needed > most:
        raise RequestError(
            "byt5_text",
            f"it takes {needed} bytes with the words around it, at most {most} are "
            "allowed",
        )


@functools.cache
def _glyph_bytes(checkpoint: Path) -> int | None:
    return glyph_bytes(checkpoint)
