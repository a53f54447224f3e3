# SPDX-License-Identifier: Apache-2.0
"""A made-up family on the shared bases; importing it imports SGLang."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import torch
from sglang.multimodal_gen.configs.pipeline_configs.base import ImagePipelineConfig
from sglang.multimodal_gen.runtime.server_args import ServerArgs
from torch import nn

from sglang_ext_gen.checkpoint.component import (
    Component,
    Stored,
    check_components,
    refuse,
)
from sglang_ext_gen.checkpoint.layout import TensorSpec
from sglang_ext_gen.checkpoint.released_config import read_fields
from sglang_ext_gen.checkpoint.rules import KEEP_NAME
from sglang_ext_gen.diffusion.pipeline import FamilyPipeline
from sglang_ext_gen.diffusion.pipeline_config import FamilyPipelineConfig
from sglang_ext_gen.diffusion.sampling_params import FamilySamplingParams
from sglang_ext_gen.errors import CheckpointError, ConfigError
from sglang_ext_gen.request.fields import (
    NUM_OUTPUTS,
    SEED,
    RequestField,
    carries,
    check_given,
)

FIELDS = (
    RequestField("prompt", "strs", "What.", batched_apart=False),
    RequestField("height", "int", "Size.", minimum=1, default=64),
    SEED,
    NUM_OUTPUTS,
    RequestField("guidance_scale", "float", "How much.", minimum=0),
    RequestField("grain", "float", "Of the film.", minimum=0, maximum=1, default=0.5),
    RequestField("weights", "floats", "One a step."),
    RequestField("image_path", "strs", "What to change.", batched_apart=False),
    RequestField("negative_prompt", "str", "What not.", batched_apart=False),
)


def check_request(values: Any) -> dict[str, Any]:
    return check_given(FIELDS, values)


@dataclass
@carries(FIELDS)
class Params(FamilySamplingParams):
    title = "Small"
    request_fields = FIELDS
    also_used = frozenset({"fps"})

    def check(self, server_args: Any) -> None:
        self.check_seeds(check_request, self.values())


def adjusted(**values: Any) -> Params:
    params = Params(**values)
    pipeline_config = ImagePipelineConfig(task_type="TI2I")  # type: ignore[arg-type]
    arguments = {"output_path": None, "comfyui_mode": False, "num_gpus": 1}
    params._adjust(SimpleNamespace(pipeline_config=pipeline_config, **arguments))
    return params


OPTIONS = (
    RequestField("fp8_mode", "str", "How.", choices=("a", "b"), default="a"),
    RequestField("load_half", "bool", "Leave 50% on disk.", default=True),
    RequestField("share", "float", "How much.", maximum=1),
    RequestField("slots", "int", "How many.", minimum=1),
)


@dataclass
@carries(OPTIONS)
class Config(FamilyPipelineConfig, ImagePipelineConfig):
    load_options = OPTIONS

    def check_options(self, server_args: Any) -> None:
        if self.slots and not self.load_half:
            raise ConfigError("slots: needs both halves")

    def check_folder(self, folder: Path) -> None:
        raise CheckpointError(f"{folder} is damaged")


@dataclass(frozen=True)
class Width:
    width: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> Self:
        return read_fields(cls, values, where, ignored=())


def specs(config: Width, stored: Stored) -> Iterator[TensorSpec]:
    yield TensorSpec("weight", (config.width, config.width))


def build(part: Any, dtype: torch.dtype, options: Any) -> nn.Module:
    with torch.device("meta"):
        width = part.config.width
        linear = nn.Linear(width, width, bias=False, dtype=dtype)
    linear.options = options
    return linear


TRANSFORMER = Component(
    "transformer",
    specs=specs,
    rules=(KEEP_NAME,),
    config=Width,
    build=f"{__name__}:build",
)
ENCODER = replace(
    TRANSFORMER, name="small_encoder", folder="in/a/folder", precision="text_encoder"
)


@dataclass
class SmallConfig(FamilyPipelineConfig, ImagePipelineConfig):
    load_options = ()
    dit_precision: str = "bf16"
    text_encoder_precisions: tuple[str, ...] = ("fp32",)

    def check_folder(self, folder: Path) -> None:
        refuse(folder, check_components(folder, (TRANSFORMER, ENCODER)))


class SmallPipeline(FamilyPipeline):
    pipeline_name = "SmallPipeline"
    components = (TRANSFORMER, ENCODER)
    stock_components = {"vae": ("diffusers", "AutoencoderKL")}  # noqa: RUF012
    unneeded: frozenset[str] = frozenset({"vae"})

    def unneeded_components(self, folder: Path, server_args: ServerArgs) -> set[str]:
        return set(self.unneeded)

    def create_pipeline_stages(self, server_args: ServerArgs) -> None:
        pass
