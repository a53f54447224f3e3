# SPDX-License-Identifier: Apache-2.0
"""Check an Ideogram 4 checkpoint on disk without loading it.

Source: the file list and config keys of the FP8 release. Its re-packs count as
complete too: diffusers names, plain floating-point weights, shards with an index,
and, when asked for, a checkpoint without the unconditional transformer.

The vision tower of the text encoder is not checked: it is never used, and which of
its tensors the release quantises is not known.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from sglang_ext_gen.checkpoint.layout import (
    StoredTensor,
    TensorSpec,
    check_tensors,
    has_float8,
    read_json,
    read_tensors,
)
from sglang_ext_gen.errors import CheckpointError, ConfigError
from sglang_ext_gen.models.ideogram4.config import (
    TAP_LAYERS,
    Ideogram4TextEncoderConfig,
    Ideogram4TransformerConfig,
)
from sglang_ext_gen.models.ideogram4.latent_statistics import LATENT_SCALE
from sglang_ext_gen.models.ideogram4.tensors import (
    Config,
    Names,
    text_encoder_specs,
    transformer_specs,
    vae_specs,
)
from sglang_ext_gen.models.ideogram4.weights import (
    TEXT_ENCODER_FILE,
    WEIGHTS_FILE,
    text_encoder_prefix,
)

PIPELINE_CLASS = "Ideogram4Pipeline"
UNCONDITIONAL = "unconditional_transformer"
# Component -> (library, accepted classes), as model_index.json states them.
COMPONENTS = {
    "scheduler": ("diffusers", ("FlowMatchEulerDiscreteScheduler",)),
    "text_encoder": ("transformers", ("Qwen3VLModel",)),
    "tokenizer": ("transformers", ("Qwen2Tokenizer", "Qwen2TokenizerFast")),
    "transformer": ("diffusers", ("Ideogram4Transformer2DModel",)),
    UNCONDITIONAL: ("diffusers", ("Ideogram4Transformer2DModel",)),
    "vae": ("diffusers", ("AutoencoderKLFlux2",)),
}
# Part of the diffusers pipeline (it rewrites prompts), not of the release; unused.
OPTIONAL_COMPONENTS = ("prompt_enhancer_head",)
WEIGHT_FILES = {
    "text_encoder": TEXT_ENCODER_FILE,
    "transformer": WEIGHTS_FILE,
    UNCONDITIONAL: WEIGHTS_FILE,
    "vae": WEIGHTS_FILE,
}
# The second one where the file was cut out of the whole language model.
_TEXT_ENCODER_CLASSES = [["Qwen3VLModel"], ["Qwen3VLForConditionalGeneration"]]
# Far above any release: keeps a wrong layer count from filling the memory.
_MAX_TENSORS = 100_000
_SHOWN_PROBLEMS = 5  # spelled out in one error; the rest is counted
CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")

# What the release fixes of its VAE: a token is a patch of 2 x 2 latents, a latent 8 x 8
# pixels (one halving fewer than there are blocks), and the latent statistics are known
# for this many channels only.
_PATCH_SIZE = [2, 2]
_VAE_BLOCKS = 4
_LATENT_CHANNELS = len(LATENT_SCALE) // math.prod(_PATCH_SIZE)

# All keys of vae/config.json; another one would be another model.
_VAE_KEYS = {
    "_class_name",
    "_diffusers_version",
    "_name_or_path",
    "act_fn",
    "batch_norm_eps",
    "batch_norm_momentum",
    "block_out_channels",
    "decoder_block_out_channels",
    "down_block_types",
    "force_upcast",
    "in_channels",
    "latent_channels",
    "layers_per_block",
    "mid_block_add_attention",
    "norm_num_groups",
    "out_channels",
    "patch_size",
    "sample_size",
    "up_block_types",
    "use_post_quant_conv",
    "use_quant_conv",
}


@dataclass(frozen=True)
class ComponentSummary:
    """The weights of one component as found on disk.

    ``names`` says which of its two layouts a transformer has; None elsewhere.
    """

    name: str
    tensors: int
    nbytes: int
    is_fp8: bool
    names: Names | None


def refuse_damage(path: Path, *, require_unconditional: bool) -> None:
    """Raise unless ``check_checkpoint`` finds nothing.

    Raises:
        CheckpointError: Names the first problems and how to see all of them.
    """
    problems = check_checkpoint(path, require_unconditional=require_unconditional)
    if problems:
        shown = "; ".join(problems[:_SHOWN_PROBLEMS])
        raise CheckpointError(
            f"{path}: {len(problems)} problem(s): {shown}. Run "
            f"`sglang-ext-gen doctor --model {path}` for all of them"
        )


def recognises(path: Path) -> bool:
    """Whether a folder is a checkpoint of this family, complete or not.

    Conversions with a ``quantization_config`` (NF4) are stock SGLang's.
    """
    index = _read_or_empty(path / "model_index.json")
    transformer = _read_or_empty(path / "transformer" / "config.json")
    _, classes = COMPONENTS["transformer"]
    is_ideogram = (
        index.get("_class_name") == PIPELINE_CLASS
        or transformer.get("_class_name") in classes
    )
    return is_ideogram and "quantization_config" not in transformer


def inspect(path: Path) -> tuple[ComponentSummary, ...]:
    """What the weights of a checkpoint are, one summary per component on disk.

    Raises:
        CheckpointError: The weights of a component are missing or damaged.
    """
    return tuple(
        _summarize(name, read_tensors(path / name / file))
        for name, file in WEIGHT_FILES.items()
        if (path / name).is_dir()
    )


def check_checkpoint(path: Path, *, require_unconditional: bool = True) -> list[str]:
    """Everything that keeps a checkpoint from being served, one line each.

    Only JSON files and safetensors headers are read.

    Args:
        path: Folder of the checkpoint.
        require_unconditional: Whether the unconditional transformer must be there;
            without it only guidance 1 can be served. One that is there is checked.

    Returns:
        Problems that name the file, tensor or key. Empty when complete.
    """
    if not path.is_dir():
        return [f"{path} is not a folder"]
    names = list(COMPONENTS)
    if not require_unconditional and not (path / UNCONDITIONAL).exists():
        names.remove(UNCONDITIONAL)
    problems = _collect(partial(_check_model_index, path, names))
    for name in names:
        problems += _collect(partial(_CHECKS[name], path / name))
        if name in WEIGHT_FILES:  # also when a wrong config ended the check above
            problems += _collect(partial(_check_headers, path / name))
    problems += _collect(partial(_check_agreement, path))
    return list(dict.fromkeys(problems))


def _collect(check: Callable[[], list[str]]) -> list[str]:
    try:
        return check()
    except (CheckpointError, ConfigError) as error:
        return [str(error)]


def _check_model_index(path: Path, names: Collection[str]) -> list[str]:
    file = path / "model_index.json"
    index = read_json(file)
    problems = [
        f"model_index.json: unknown component {key!r}"
        for key in index
        if not key.startswith("_") and key not in (*COMPONENTS, *OPTIONAL_COMPONENTS)
    ]
    if index.get("_class_name") != PIPELINE_CLASS:
        problems.append(_unexpected(file, "_class_name", index, [PIPELINE_CLASS]))
    for name in names:
        library, classes = COMPONENTS[name]
        allowed = [[library, cls] for cls in classes]
        if index.get(name) not in allowed:
            problems.append(_unexpected(file, name, index, allowed))
    return problems


def _check_scheduler(folder: Path) -> list[str]:
    # Its numbers are used neither by us nor by the vendor: only the class counts.
    file = folder / "scheduler_config.json"
    return _expect_class(read_json(file), file)


def _check_tokenizer(folder: Path) -> list[str]:
    config = read_json(folder / "tokenizer_config.json")
    ids = _read_token_ids(folder / "tokenizer.json")
    problems = [
        f"tokenizer/tokenizer.json: no token {token}, which every prompt needs"
        for token in CHAT_TOKENS
        if token not in ids
    ]
    if "chat_template" not in config and not (folder / "chat_template.jinja").exists():
        problems.append(
            "tokenizer/: no chat template, neither chat_template in "
            "tokenizer_config.json nor chat_template.jinja"
        )
    return problems


def _check_transformer(folder: Path) -> list[str]:
    file = folder / "config.json"
    config = read_json(file)
    Ideogram4TransformerConfig.from_dict(config, _short(file))
    tensors = read_tensors(folder / WEIGHTS_FILE)
    names, is_fp8 = _find_names(tensors), has_float8(tensors)
    specs = _listed(transformer_specs(config, names=names, is_fp8=is_fp8), file)
    return [
        *_expect_class(config, file),
        *check_tensors(specs, tensors, where=f"{folder.name}/"),
    ]


def _check_text_encoder(folder: Path) -> list[str]:
    file = folder / "config.json"
    config = read_json(file)
    Ideogram4TextEncoderConfig.from_dict(config, _short(file))
    tensors = read_tensors(folder / TEXT_ENCODER_FILE)
    prefix, is_fp8 = text_encoder_prefix(tensors), has_float8(tensors)
    specs = _listed(text_encoder_specs(config, prefix=prefix, is_fp8=is_fp8), file)
    vision = f"{prefix}visual."
    return [
        *_expect(config, "architectures", _TEXT_ENCODER_CLASSES, file),
        *_expect(config, "model_type", ["qwen3_vl"], file),
        *_expect(config["text_config"], "model_type", ["qwen3_vl_text"], file),
        *_expect(config, "ideogram_fp8_weight_only", [is_fp8], file),
        *check_tensors(specs, tensors, where="text_encoder/", unchecked=(vision,)),
    ]


def _check_vae(folder: Path) -> list[str]:
    file = folder / "config.json"
    config = read_json(file)
    if unknown := config.keys() - _VAE_KEYS:
        raise ConfigError(
            f"{_short(file)}: unknown key {min(unknown)!r}; "
            "this looks like another release"
        )
    specs = _listed(vae_specs(config), file)
    blocks = len(config["block_out_channels"])
    if blocks != _VAE_BLOCKS:
        raise ConfigError(
            f"{_short(file)}: block_out_channels has {blocks} widths, expected "
            f"{_VAE_BLOCKS}"
        )
    tensors = read_tensors(folder / WEIGHTS_FILE)
    return [
        *_expect_class(config, file),
        *_expect(config, "act_fn", ["silu"], file),
        *_expect(config, "latent_channels", [_LATENT_CHANNELS], file),
        *_expect(config, "patch_size", [_PATCH_SIZE], file),
        *_expect(config, "down_block_types", [["DownEncoderBlock2D"] * blocks], file),
        *_expect(config, "up_block_types", [["UpDecoderBlock2D"] * blocks], file),
        *check_tensors(specs, tensors, where="vae/"),
    ]


def _check_headers(folder: Path) -> list[str]:
    read_tensors(folder / WEIGHT_FILES[folder.name])
    return []


def _check_agreement(path: Path) -> list[str]:
    """Numbers that two components must share."""
    transformer, encoder, vae = (
        read_json(path / name / "config.json")
        for name in ("transformer", "text_encoder", "vae")
    )
    ids = _read_token_ids(path / "tokenizer" / "tokenizer.json")
    try:
        text = encoder["text_config"]
        features = len(TAP_LAYERS) * text["hidden_size"]
        channels = vae["latent_channels"] * math.prod(vae["patch_size"])
        is_outside = max(ids.values()) >= text["vocab_size"]
    except (KeyError, TypeError):
        return []  # the checks of these components report it
    problems = [
        f"transformer/config.json: {key} is {transformer.get(key)}, but the other "
        f"components give {value}"
        for key, value in {
            "llm_features_dim": features,
            "in_channels": channels,
        }.items()
        if transformer.get(key) != value
    ]
    if is_outside:
        problems.append(
            f"tokenizer/tokenizer.json: token id {max(ids.values())} is outside the "
            f"text encoder's vocabulary of {text['vocab_size']}"
        )
    return problems


_CHECKS: dict[str, Callable[[Path], list[str]]] = {
    "scheduler": _check_scheduler,
    "text_encoder": _check_text_encoder,
    "tokenizer": _check_tokenizer,
    "transformer": _check_transformer,
    UNCONDITIONAL: _check_transformer,
    "vae": _check_vae,
}


def _summarize(name: str, tensors: Mapping[str, StoredTensor]) -> ComponentSummary:
    return ComponentSummary(
        name=name,
        tensors=len(tensors),
        nbytes=sum(tensor.nbytes for tensor in tensors.values()),
        is_fp8=has_float8(tensors),
        names=_find_names(tensors) if name in ("transformer", UNCONDITIONAL) else None,
    )


def _find_names(tensors: Mapping[str, StoredTensor]) -> Names:
    is_split = any(".attention.to_q." in name for name in tensors)
    return "diffusers" if is_split else "vendor"


def _listed(specs: Iterator[TensorSpec], file: Path) -> list[TensorSpec]:
    """All specs; dimensions come from ``file``, so their faults are the file's."""
    try:
        listed = list(islice(specs, _MAX_TENSORS + 1))
    except KeyError as error:
        raise ConfigError(f"{_short(file)}: key {error} is missing") from error
    except (TypeError, ValueError, IndexError) as error:
        raise ConfigError(f"{_short(file)}: a dimension is wrong: {error}") from error
    if len(listed) > _MAX_TENSORS:
        raise ConfigError(f"{_short(file)}: it describes over {_MAX_TENSORS} tensors")
    return listed


def _read_token_ids(file: Path) -> dict[str, int]:
    tokenizer = read_json(file)
    try:
        added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
        ids = {**tokenizer["model"]["vocab"], **added}
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{_short(file)} has no vocabulary: {error}") from error
    for token, number in ids.items():
        if not isinstance(number, int):
            raise CheckpointError(f"{_short(file)}: the id of {token!r} is {number!r}")
    return ids


def _read_or_empty(file: Path) -> Config:
    try:
        return read_json(file)
    except CheckpointError:
        return {}


def _expect(config: Config, key: str, allowed: Sequence[Any], file: Path) -> list[str]:
    """A problem if ``key`` is there with a value that is not allowed."""
    if key not in config or config[key] in allowed:
        return []
    return [_unexpected(file, key, config, allowed)]


def _expect_class(config: Config, file: Path) -> list[str]:
    _, classes = COMPONENTS[file.parent.name]
    if config.get("_class_name") in classes:
        return []
    return [_unexpected(file, "_class_name", config, classes)]


def _unexpected(file: Path, key: str, config: Config, allowed: Sequence[Any]) -> str:
    expected = " or ".join(map(str, allowed))
    return f"{_short(file)}: {key} is {config.get(key)}, expected {expected}"


def _short(file: Path) -> str:
    """Path inside the checkpoint."""
    is_component = file.parent.name in COMPONENTS
    return f"{file.parent.name}/{file.name}" if is_component else file.name
