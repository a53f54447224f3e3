# SPDX-License-Identifier: Apache-2.0
"""Which checkpoints are ours, by content, and the components that one holds.

Source: ``model_index.json`` and the component configs of the released Qwen-Image
checkpoints. Stock SGLang goes by the directory's name instead. Qwen-Image-Layered,
Qwen-Image 2.1 and quantised conversions have other classes or a
``quantization_config`` and stay with stock.
"""

from pathlib import Path
from typing import Any

from sglang_ext_gen.checkpoint.component import (
    Component,
    check_components,
    read_or_empty,
)
from sglang_ext_gen.checkpoint.rules import KEEP_NAME
from sglang_ext_gen.models.qwen_image.config import (
    TRANSFORMER_CLASS,
    TextEncoderConfig,
    TransformerConfig,
    VAEConfig,
)
from sglang_ext_gen.models.qwen_image.tensors import (
    text_encoder_specs,
    transformer_specs,
    vae_specs,
)

PIPELINE_CLASS = "QwenImagePipeline"
EDIT_CLASS = "QwenImageEditPipeline"
EDIT_PLUS_CLASS = "QwenImageEditPlusPipeline"

# Stock's loaders load all of it, except a transformer that becomes FP8.
TRANSFORMER = Component[TransformerConfig](
    "transformer",
    lambda config, stored: transformer_specs(config),
    rules=(KEEP_NAME,),
    config=TransformerConfig,
    build="sglang_ext_gen.models.qwen_image.build:fp8_transformer",
    quantizes=True,
)
VAE = Component[VAEConfig](
    "vae", lambda config, stored: vae_specs(config), config=VAEConfig
)
TEXT_ENCODER = Component(
    "text_encoder",
    text_encoder_specs,
    config=TextEncoderConfig,
    file="model.safetensors",
)
COMPONENTS = (TRANSFORMER, VAE, TEXT_ENCODER)

_FILES = ("scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json")
_EDIT_FILES = (*_FILES, "processor/tokenizer_config.json")


def recognises(path: Path) -> bool:
    """Whether a folder is a Qwen-Image checkpoint, complete or not."""
    return _class_of(path) == PIPELINE_CLASS and _is_plain(path)


def recognises_edit(path: Path) -> bool:
    """Whether a folder is a Qwen-Image-Edit checkpoint, complete or not."""
    return _class_of(path) in (EDIT_CLASS, EDIT_PLUS_CLASS) and _is_plain(path)


def takes_one_reference(path: Path) -> bool:
    """Whether an edit checkpoint is the first release, made for one picture."""
    return _class_of(path) == EDIT_CLASS


def check_checkpoint(path: Path) -> list[str]:
    """What is wrong with a checkpoint, one line per problem; headers only."""
    files = _EDIT_FILES if recognises_edit(path) else _FILES
    missing = [f"{name} is missing" for name in files if not (path / name).is_file()]
    return check_components(path, COMPONENTS) + missing


def _class_of(path: Path) -> Any:
    return read_or_empty(path / "model_index.json").get("_class_name")


def _is_plain(path: Path) -> bool:
    transformer = read_or_empty(path / "transformer" / "config.json")
    return (
        transformer.get("_class_name") == TRANSFORMER_CLASS
        and "quantization_config" not in transformer
        and not transformer.get("use_layer3d_rope")
        and not transformer.get("use_additional_t_cond")
    )
