# SPDX-License-Identifier: Apache-2.0
"""What an Ideogram 4 checkpoint consists of, and whether one is complete.

Source: the file list and config keys of the FP8 release. Its re-packs count as
complete too: diffusers names, plain floating-point weights, shards with an index,
and, when asked for, a checkpoint without the unconditional transformer.

The vision tower of the text encoder is not checked: it is never used, and which of
its tensors the release quantises is not known.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sglang_ext_gen.checkpoint.component import (
    Component,
    Stored,
    check_components,
    found_by,
    read_or_empty,
)
from sglang_ext_gen.checkpoint.layout import TensorSpec, has_float8, read_json
from sglang_ext_gen.checkpoint.released_config import (
    require_class,
    require_values,
    warn_of_unused,
)
from sglang_ext_gen.errors import CheckpointError
from sglang_ext_gen.models.ideogram4.config import (
    TEXT_ENCODER_CLASSES,
    TRANSFORMER_CLASS,
    VAE_CLASS,
    Ideogram4TextEncoderConfig,
    Ideogram4TransformerConfig,
    Ideogram4VAEConfig,
)
from sglang_ext_gen.models.ideogram4.tensors import (
    find_names,
    text_encoder_specs,
    transformer_specs,
    vae_specs,
)
from sglang_ext_gen.models.ideogram4.weights import (
    CONDITIONAL_RULES,
    UNCONDITIONAL_RULES,
    text_encoder_prefix,
    text_encoder_rules,
)

_BUILD = "sglang_ext_gen.models.ideogram4.build:"


def _transformer_specs(
    config: Ideogram4TransformerConfig, stored: Stored
) -> Iterator[TensorSpec]:
    return transformer_specs(
        config, names=find_names(stored), is_fp8=has_float8(stored)
    )


def _text_encoder_specs(
    config: Ideogram4TextEncoderConfig, stored: Stored
) -> Iterator[TensorSpec]:
    return text_encoder_specs(
        config, prefix=text_encoder_prefix(stored), is_fp8=has_float8(stored)
    )


def _vae_specs(config: Ideogram4VAEConfig, stored: Stored) -> Iterator[TensorSpec]:
    return vae_specs(config)


TRANSFORMER = Component(
    "transformer",
    specs=_transformer_specs,
    rules=CONDITIONAL_RULES,
    config=Ideogram4TransformerConfig,
    build=_BUILD + "build_transformer",
)
UNCONDITIONAL = replace(
    TRANSFORMER,
    name="unconditional_transformer",
    rules=UNCONDITIONAL_RULES,
    build=_BUILD + "build_unconditional",
)
TEXT_ENCODER = Component(
    "text_encoder",
    specs=_text_encoder_specs,
    rules=text_encoder_rules,
    config=Ideogram4TextEncoderConfig,
    build=_BUILD + "build_text_encoder",
    file="model.safetensors",
    precision="text_encoder",
    unchecked=("visual.", "model.visual.", "lm_head."),
)
VAE = Component(  # stock SGLang loads it
    "vae", specs=_vae_specs, config=Ideogram4VAEConfig
)
COMPONENTS = (TRANSFORMER, UNCONDITIONAL, TEXT_ENCODER, VAE)

PIPELINE_CLASS = "Ideogram4Pipeline"
SCHEDULER_CLASS = "FlowMatchEulerDiscreteScheduler"
# Folder -> (library, accepted classes), as model_index.json states them.
INDEX = {
    "scheduler": ("diffusers", (SCHEDULER_CLASS,)),
    "text_encoder": ("transformers", TEXT_ENCODER_CLASSES[:1]),
    "tokenizer": ("transformers", ("Qwen2Tokenizer", "Qwen2TokenizerFast")),
    "transformer": ("diffusers", (TRANSFORMER_CLASS,)),
    "unconditional_transformer": ("diffusers", (TRANSFORMER_CLASS,)),
    "vae": ("diffusers", (VAE_CLASS,)),
}
# The head is part of the diffusers pipeline (it rewrites prompts), not of the release.
_KNOWN = (*INDEX, "prompt_enhancer_head")
_CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")


def recognises(path: Path) -> bool:
    """Whether a folder is a checkpoint of this family, complete or not.

    Conversions with a ``quantization_config`` (NF4) are stock SGLang's.
    """
    index = read_or_empty(path / "model_index.json")
    transformer = read_or_empty(path / "transformer" / "config.json")
    is_ideogram = (
        index.get("_class_name") == PIPELINE_CLASS
        or transformer.get("_class_name") == TRANSFORMER_CLASS
    )
    return is_ideogram and "quantization_config" not in transformer


def check_checkpoint(path: Path, *, require_unconditional: bool = True) -> list[str]:
    """Everything that keeps a checkpoint from being served, one line each.

    Only JSON files and safetensors headers are read.

    Args:
        path: Folder of the checkpoint.
        require_unconditional: Whether the unconditional transformer must be there;
            without it only guidance 1 can be served. One that is there is checked.
    """
    if not path.is_dir():
        return [f"{path} is not a folder"]
    left_out, missing = set(), []
    if not (path / UNCONDITIONAL.name).exists():
        left_out.add(UNCONDITIONAL.name)
    if left_out and require_unconditional:
        missing.append(
            f"{UNCONDITIONAL.name}/ is missing; with --no-unconditional (in Python "
            "load_unconditional=False) guidance 1 is served without it"
        )
    problems = [
        *missing,
        *found_by(partial(_check_index, path, INDEX.keys() - left_out)),
        *found_by(partial(_check_scheduler, path)),
        *found_by(partial(_check_tokenizer, path)),
        *check_components(path, [c for c in COMPONENTS if c.name not in left_out]),
        *found_by(partial(_check_fp8_key, path)),
        *found_by(partial(_check_agreement, path)),
    ]
    return list(dict.fromkeys(problems))


def _check_index(path: Path, names: Collection[str]) -> list[str]:
    index = read_json(path / "model_index.json")
    unused = [key for key in index if key[:1] != "_" and key not in _KNOWN]
    if unused:  # components that the release does not have
        warn_of_unused("model_index.json", tuple(unused))
    allowed: dict[str, list[Any]] = {"_class_name": [PIPELINE_CLASS]}
    for name, (library, classes) in INDEX.items():
        if name in names:
            allowed[name] = [[library, cls] for cls in classes]
    return [
        f"model_index.json: {key} is {index.get(key)}, expected "
        f"{' or '.join(map(str, values))}"
        for key, values in allowed.items()
        if index.get(key) not in values
    ]


def _check_scheduler(path: Path) -> list[str]:
    # Its numbers are used neither by us nor by the vendor: only the class counts.
    file = path / "scheduler" / "scheduler_config.json"
    require_class(read_json(file), SCHEDULER_CLASS, f"scheduler/{file.name}")
    return []


def _check_tokenizer(path: Path) -> list[str]:
    folder = path / "tokenizer"
    config = read_json(folder / "tokenizer_config.json")
    ids = _token_ids(path)
    problems = [
        f"tokenizer/tokenizer.json: no token {token}, which every prompt needs"
        for token in _CHAT_TOKENS
        if token not in ids
    ]
    if "chat_template" not in config and not (folder / "chat_template.jinja").exists():
        problems.append(
            "tokenizer/: no chat template, neither chat_template in "
            "tokenizer_config.json nor chat_template.jinja"
        )
    return problems


def _check_fp8_key(path: Path) -> list[str]:
    """The one key that says what the tensors say themselves.

    Plain re-packs keep it; in FP8 the file that denies it is another one's.
    """
    part = TEXT_ENCODER.at(path)
    name = part.component.config_file
    if has_float8(part.stored):
        values = read_json(part.folder / name)
        wanted = {"ideogram_fp8_weight_only": True}
        require_values(values, wanted, f"{part.where}{name}")
    return []


def _check_agreement(path: Path) -> list[str]:
    """Numbers that two components must share."""
    transformer = TRANSFORMER.at(path).config
    encoder = TEXT_ENCODER.at(path).config
    vae = VAE.at(path).config
    problems = [
        f"transformer/config.json: {key} is {getattr(transformer, key)}, but the "
        f"other components give {value}"
        for key, value in {
            "llm_features_dim": encoder.features_dim,
            "in_channels": vae.token_channels,
        }.items()
        if getattr(transformer, key) != value
    ]
    highest = max(_token_ids(path).values(), default=0)
    if highest >= encoder.vocab_size:
        problems.append(
            f"tokenizer/tokenizer.json: token id {highest} is outside the "
            f"text encoder's vocabulary of {encoder.vocab_size}"
        )
    return problems


def _token_ids(path: Path) -> dict[str, int]:
    tokenizer: Any = read_json(path / "tokenizer" / "tokenizer.json")
    where = "tokenizer/tokenizer.json"
    try:
        added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
        ids = {**tokenizer["model"]["vocab"], **added}
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{where} has no vocabulary: {error}") from error
    for token, number in ids.items():
        if not isinstance(number, int):
            raise CheckpointError(f"{where}: the id of {token!r} is {number!r}")
    return ids
