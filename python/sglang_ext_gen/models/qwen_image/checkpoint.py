# SPDX-License-Identifier: Apache-2.0
"""Which checkpoints are ours, by content, and the components that one holds.

Source: ``model_index.json`` and the component configs of the released Qwen-Image
checkpoints. Stock SGLang goes by the directory's name instead. Qwen-Image-Layered,
Qwen-Image 2.1 and quantised conversions have other classes or a
``quantization_config`` and stay with stock.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from sglang_ext_gen.checkpoint.component import (
    Component,
    check_components,
    found_by,
    read_or_empty,
)
from sglang_ext_gen.checkpoint.files import missing_file
from sglang_ext_gen.checkpoint.layout import (
    has_float8,
    read_header,
    read_json,
)
from sglang_ext_gen.checkpoint.released_config import require_class, require_values
from sglang_ext_gen.checkpoint.rules import KEEP_NAME
from sglang_ext_gen.errors import CheckpointError
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

SCHEDULER_CLASS = "FlowMatchEulerDiscreteScheduler"
# Of Qwen-Image-Layered's transformer, which has the same class.
_OTHER_FLAGS = ("use_layer3d_rope", "use_additional_t_cond")
# Either form of a tokenizer will do.
_TOKENIZER_FORMS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
# A tensor of the transformer; ComfyUI's single files put a prefix before it.
_MARK = "transformer_blocks.0.img_mod.1.weight"
# Outside stock's linears, or too small to matter: they stay as released.
_PLAIN = ("time_text_embed.", "norm_out.")


def recognises(path: Path) -> bool:
    """Whether a folder is a Qwen-Image checkpoint, complete or not."""
    return _class_of(path) == PIPELINE_CLASS and _is_plain(path)


def recognises_edit(path: Path) -> bool:
    """Whether a folder is a Qwen-Image-Edit checkpoint, complete or not."""
    return _class_of(path) in (EDIT_CLASS, EDIT_PLUS_CLASS) and _is_plain(path)


def takes_one_reference(path: Path) -> bool:
    """Whether an edit checkpoint is the first release, made for one picture."""
    return _class_of(path) == EDIT_CLASS


def is_quantized_weight(name: str, shape: tuple[int, ...]) -> bool:
    """Whether ``weight_format=fp8`` makes it FP8: the matrices of stock's linears."""
    return name.endswith(".weight") and len(shape) == 2 and not name.startswith(_PLAIN)


def check_checkpoint(path: Path, without: Collection[str] = ()) -> list[str]:
    """What is wrong with a checkpoint, one line per problem; headers only.

    Args:
        path: The checkpoint.
        without: Components that come from elsewhere and are not looked at.
    """
    raw = found_by(lambda: _check_raw_float8(path))
    components = [row for row in COMPONENTS if row.name not in without]
    if raw and TRANSFORMER in components:
        components.remove(TRANSFORMER)
    else:
        raw = []
    problems = [*raw, *check_components(path, components)]
    for name, check in _OTHER_PARTS.items():
        if name not in without and (name != "processor" or recognises_edit(path)):
            problems += found_by(lambda check=check: check(path))
    return list(dict.fromkeys(problems))


def components_from_elsewhere(server_args: Any) -> frozenset[str]:
    """Components that server arguments take from another place than the checkpoint."""
    names = {*server_args.component_paths, *server_args.component_weights_paths}
    if server_args.transformer_weights_path is not None:
        names.add(TRANSFORMER.name)
    return frozenset(names)


def why_not(path: Path) -> str | None:
    """What a path is that is of Qwen-Image and no checkpoint of ours."""
    if file := _single_file(path):
        return (
            f"{file} is a single file of a Qwen-Image transformer, as ComfyUI keeps "
            "it, not a checkpoint directory in the released layout (model_index.json, "
            "transformer/, text_encoder/, vae/, ...)"
        )
    kind = str(_class_of(path))
    if not kind.startswith("QwenImage") or recognises(path) or recognises_edit(path):
        return None
    transformer = read_or_empty(path / "transformer" / "config.json")
    if kind not in (PIPELINE_CLASS, EDIT_CLASS, EDIT_PLUS_CLASS):
        what = f"_class_name of model_index.json is {kind}"
    elif "quantization_config" in transformer:
        what = "its transformer is quantised (quantization_config)"
    elif not transformer:
        return f"{path}: transformer/config.json is missing or cannot be read"
    else:
        flags = [key for key in _OTHER_FLAGS if transformer.get(key)]
        reason = " and ".join(flags) or transformer.get("_class_name")
        what = f"its transformer is another one ({reason})"
    return f"{path}: {what}; that relative of Qwen-Image is left to stock SGLang"


def _single_file(path: Path) -> Path | None:
    if (path / "model_index.json").exists():
        return None
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    for file in files:
        if file.suffix == ".safetensors":
            try:
                names = read_header(file)
            except CheckpointError:
                continue
            if any(name.endswith(_MARK) for name in names):
                return file
    return None


def _check_raw_float8(path: Path) -> list[str]:
    stored = TRANSFORMER.at(path).stored
    if not has_float8(stored):
        return []
    has_scales = any("scale" in name for name in stored)
    kind = (
        "FP8 with scales of another tool" if has_scales else "raw FP8, without scales"
    )
    return [
        f"transformer/: its weights are {kind}, not of the release; take the bfloat16 "
        "ones, with --weight-format fp8 for FP8 while loading"
    ]


def _check_scheduler(path: Path) -> list[str]:
    file = path / "scheduler" / "scheduler_config.json"
    require_class(read_json(file), SCHEDULER_CLASS, f"scheduler/{file.name}")
    return []


def _check_tokenizer(folder: Path) -> list[str]:
    read_json(folder / "tokenizer_config.json")
    for form in _TOKENIZER_FORMS:
        files = [folder / name for name in form]
        if all(file.is_file() for file in files):
            read_json(files[0])
            return []
    vocabulary = missing_file(folder / "vocab.json")
    return [
        f"{folder.name}/: it has no vocabulary: no tokenizer.json, and {vocabulary}"
    ]


def _check_processor(path: Path) -> list[str]:
    return [
        *found_by(lambda: _check_tokenizer(path / "processor")),
        *_check_pictures(path),
    ]


def _check_pictures(path: Path) -> list[str]:
    """The processor must cut pictures as the text encoder's tower reads them."""
    file = path / "processor" / "preprocessor_config.json"
    newer = file.with_name("processor_config.json")
    if newer.is_file():  # of Transformers 5, which has both parts in one file
        file = newer
    values = read_json(file)
    vision = TEXT_ENCODER.at(path).config.vision
    wanted = {
        "merge_size": vision.spatial_merge_size,
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }
    require_values(
        values.get("image_processor", values), wanted, f"processor/{file.name}"
    )
    return []


# Parts without weights -> their check.
_OTHER_PARTS: dict[str, Callable[[Path], list[str]]] = {
    "scheduler": _check_scheduler,
    "tokenizer": lambda path: _check_tokenizer(path / "tokenizer"),
    "processor": _check_processor,
}


def _class_of(path: Path) -> Any:
    return read_or_empty(path / "model_index.json").get("_class_name")


def _is_plain(path: Path) -> bool:
    transformer = read_or_empty(path / "transformer" / "config.json")
    return (
        transformer.get("_class_name") == TRANSFORMER_CLASS
        and "quantization_config" not in transformer
        and not any(map(transformer.get, _OTHER_FLAGS))
    )
