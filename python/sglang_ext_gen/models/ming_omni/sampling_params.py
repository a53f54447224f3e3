# SPDX-License-Identifier: Apache-2.0
"""The request fields of the image generator as SGLang's ``SamplingParams``."""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang.multimodal_gen.configs.sample.sampling_params import DataType
from sglang.multimodal_gen.configs.task_type import ModelTaskType

from sglang_ext_gen.diffusion.sampling_params import FamilySamplingParams
from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.media.images import as_paths, check_references
from sglang_ext_gen.models.ming_omni.checkpoint import glyph_config
from sglang_ext_gen.models.ming_omni.config import GlyphConfig
from sglang_ext_gen.models.ming_omni.quoted_text import as_glyph_text
from sglang_ext_gen.models.ming_omni.request import (
    DEFAULT_HIGHRES,
    DEFAULT_SIDE,
    MAX_REFERENCES,
    REQUEST_FIELDS,
    check_request,
)
from sglang_ext_gen.models.ming_omni.sizes import bucket_size, unstretched_size
from sglang_ext_gen.request.fields import carries

_GLYPH_TOKEN = re.compile(r"<(?:\w+-)?(?:font|color)-\d+>")


@dataclass
@carries(REQUEST_FIELDS)
class MingOmniSamplingParams(FamilySamplingParams):
    """One request; see ``REQUEST_FIELDS`` for meaning and range of each field.

    Args:
        result_size: Height and width of the result where they are not those that are
            drawn; always set by this class.
    """

    title = "Ming-flash-omni"
    request_fields = REQUEST_FIELDS
    also_used = frozenset({"result_size"})

    data_type: DataType = DataType.IMAGE
    num_frames: int = 1
    result_size: tuple[int, int] | None = None

    @property
    def references(self) -> list[str]:
        """Paths of the reference pictures."""
        return as_paths(self.image_path)

    def check(self, server_args: Any) -> None:
        """Check the request; set the task, and the sizes that were not given.

        Raises:
            RequestError: Names the field that cannot be used.
        """
        self.check_seeds(check_request, self.values())
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
    config = _glyph_config(checkpoint)
    if config is None:
        raise RequestError("byt5_text", "this checkpoint has no byt5/, so no lettering")
    # A token each for fonts and colors, for every other byte, and for the end.
    counted = _GLYPH_TOKEN.sub("x", as_glyph_text(text))
    needed = len(counted.encode("utf-8")) + 1
    if needed > config.max_length:
        raise RequestError(
            "byt5_text",
            f"it takes {needed} bytes with the words around it, at most "
            f"{config.max_length} are allowed",
        )


@functools.cache
def _glyph_config(checkpoint: Path) -> GlyphConfig | None:
    return glyph_config(checkpoint)
