# SPDX-License-Identifier: Apache-2.0
"""Which checkpoints are ours, by content, and whether one is complete.

Source: ``model_index.json`` and the component configs of the released Qwen-Image
checkpoints. Stock SGLang goes by the directory's name instead. Qwen-Image-Layered,
Qwen-Image 2.1 and quantised conversions have other classes or a
``quantization_config`` and stay with stock.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sglang_ext_gen.checkpoint.layout import (
    StoredTensor,
    TensorSpec,
    check_tensors,
    read_json,
    read_tensors,
)
from sglang_ext_gen.errors import CheckpointError

PIPELINE_CLASS = "QwenImagePipeline"
EDIT_CLASS = "QwenImageEditPipeline"
EDIT_PLUS_CLASS = "QwenImageEditPlusPipeline"
TRANSFORMER_CLASS = "QwenImageTransformer2DModel"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"

_WEIGHTS = {
    "transformer": WEIGHTS_FILE,
    "vae": WEIGHTS_FILE,
    "text_encoder": "model.safetensors",
}
_FILES = ("scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json")
_TIME_FREQUENCIES = 256
_FEED_FORWARD_FACTOR = 4


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
    problems: list[str] = []
    for component, file in _WEIGHTS.items():
        try:
            problems += _check_component(path / component, file)
        except CheckpointError as error:
            problems.append(str(error))
    names = _FILES
    if recognises_edit(path):
        names += ("processor/tokenizer_config.json",)
    problems += [f"{name} is missing" for name in names if not (path / name).is_file()]
    return problems


def transformer_specs(config: dict[str, Any]) -> Iterator[TensorSpec]:
    """Every tensor that a released transformer holds."""
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    head = config["attention_head_dim"]
    text = config["joint_attention_dim"]
    channels = config["in_channels"]
    out = config["patch_size"] ** 2 * (config["out_channels"] or channels)
    yield from _linear("img_in", dim, channels)
    yield from _linear("txt_in", dim, text)
    yield TensorSpec("txt_norm.weight", (text,))
    embedder = "time_text_embed.timestep_embedder"
    yield from _linear(f"{embedder}.linear_1", dim, _TIME_FREQUENCIES)
    yield from _linear(f"{embedder}.linear_2", dim, dim)
    yield from _linear("norm_out.linear", 2 * dim, dim)
    yield from _linear("proj_out", out, dim)
    for layer in range(config["num_layers"]):
        yield from _block_specs(f"transformer_blocks.{layer}", dim, head)


def _block_specs(name: str, dim: int, head: int) -> Iterator[TensorSpec]:
    for stream in ("img", "txt"):
        yield from _linear(f"{name}.{stream}_mod.1", 6 * dim, dim)
        inner = _FEED_FORWARD_FACTOR * dim
        yield from _linear(f"{name}.{stream}_mlp.net.0.proj", inner, dim)
        yield from _linear(f"{name}.{stream}_mlp.net.2", dim, inner)
    attention = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )
    for linear in attention:
        yield from _linear(f"{name}.attn.{linear}", dim, dim)
    for norm in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
        yield TensorSpec(f"{name}.attn.{norm}.weight", (head,))


def _linear(name: str, out_features: int, in_features: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", (out_features, in_features))
    yield TensorSpec(f"{name}.bias", (out_features,))


def _check_component(folder: Path, file: str) -> list[str]:
    config = read_json(folder / "config.json")
    tensors = read_tensors(folder / file)
    if folder.name != "transformer":
        return []
    return _check_transformer(config, tensors)


def _check_transformer(
    config: dict[str, Any], tensors: dict[str, StoredTensor]
) -> list[str]:
    if config.get("_class_name") != TRANSFORMER_CLASS:
        return [
            f"transformer/config.json: _class_name is {config.get('_class_name')}, "
            f"expected {TRANSFORMER_CLASS}"
        ]
    try:
        specs = list(transformer_specs(config))
    except (KeyError, TypeError) as error:
        return [f"transformer/config.json: a dimension is missing or wrong: {error}"]
    return check_tensors(specs, tensors, where="transformer/")


def _class_of(path: Path) -> Any:
    return _read_or_empty(path / "model_index.json").get("_class_name")


def _is_plain(path: Path) -> bool:
    transformer = _read_or_empty(path / "transformer" / "config.json")
    return (
        transformer.get("_class_name") == TRANSFORMER_CLASS
        and "quantization_config" not in transformer
        and not transformer.get("use_layer3d_rope")
        and not transformer.get("use_additional_t_cond")
    )


def _read_or_empty(file: Path) -> dict[str, Any]:
    try:
        return read_json(file)
    except CheckpointError:
        return {}
