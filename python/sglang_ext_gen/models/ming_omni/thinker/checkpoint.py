# SPDX-License-Identifier: Apache-2.0
"""What a Ming checkpoint holds for the thinker: shards, a tokenizer, query tokens.

The root holds the thinker. ``mlp/`` holds the learnable query tokens among tensors of
the image generator, which are not looked at here.
"""

from pathlib import Path

from sglang_ext_gen.checkpoint.component import Component, found_by, read_or_empty
from sglang_ext_gen.checkpoint.layout import check_tensors, read_json, read_tensors
from sglang_ext_gen.errors import CheckpointError
from sglang_ext_gen.models.ming_omni.config import DEFAULT_SCALES
from sglang_ext_gen.models.ming_omni.tensors import query_token_specs
from sglang_ext_gen.models.ming_omni.thinker.released_config import (
    ReleasedThinkerConfig,
)
from sglang_ext_gen.models.ming_omni.thinker.tensors import thinker_specs
from sglang_ext_gen.models.ming_omni.thinker_protocol import THINKER_ARCHITECTURE

WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
# SGLang reads the shards; ``weights.py`` says where each tensor goes.
THINKER = Component(
    "thinker",
    thinker_specs,
    config=ReleasedThinkerConfig,
    folder="",
    file=WEIGHTS_FILE,
)


def recognises(path: Path) -> bool:
    """Whether a folder holds a thinker, complete or not."""
    config = read_or_empty(path / "config.json")
    is_ours = config.get("architectures") == [THINKER_ARCHITECTURE]
    return is_ours and "audio_config" in config


def why_not(path: Path) -> str | None:
    """Why a folder that looks like Ming's holds no thinker of ours."""
    config = read_or_empty(path / "config.json")
    start = f"{path}: no thinker was found because"
    if _is_composite(path):
        return (
            f"{start} config.json is a composite one, which holds thinker_config; "
            "expected is the released file, which has its keys at the top"
        )
    if {"llm_config", "audio_config"} & config.keys():
        kinds = config.get("architectures")
        if kinds != [THINKER_ARCHITECTURE]:
            return (
                f"{start} architectures of config.json is {kinds}, expected "
                f"{[THINKER_ARCHITECTURE]}"
            )
        return f"{start} config.json has no audio_config"
    if (path / "mlp").is_dir() and (path / "connector").is_dir():
        state = "has no llm_config" if config else "is missing or cannot be read"
        return f"{start} config.json {state}; it can be elsewhere, to draw"
    return None


def _is_composite(path: Path) -> bool:
    return "thinker_config" in read_or_empty(path / "config.json")


def check_checkpoint(path: Path) -> list[str]:
    """Everything that keeps the thinker from being served, one line each.

    A composite config holds no thinker of ours, which ``why_not`` says.
    """
    if _is_composite(path):
        return []
    problems = THINKER.at(path).check()
    problems += [
        f"{name} is missing; take it from the Ming code repository, or give its folder "
        "with --tokenizer-path"
        for name in TOKENIZER_FILES
        if not (path / name).is_file()
    ]
    problems += found_by(lambda: check_query_tokens(path))
    return list(dict.fromkeys(problems))


def check_query_tokens(path: Path) -> list[str]:
    """Problems of ``mlp/``, without which the thinker chats but feeds no generator.

    Raises:
        CheckpointError: The thinker's own config is missing.
        ConfigError: It does not fit.
    """
    width = THINKER.at(path).config.llm_config.hidden_size
    try:
        found = read_tensors(path / "mlp" / WEIGHTS_FILE)
        specs = query_token_specs(query_scales(path), width)
    except CheckpointError as error:
        return [f"{error} (needed to draw, not to chat)"]
    others = ("proj_in.", "proj_out.", "mlp.")
    return check_tensors(specs, found, where="mlp/", unchecked=others)


def query_scales(path: Path) -> tuple[int, ...]:
    """Sides of the query blocks, in order; empty without ``mlp/config.json``."""
    file = path / "mlp" / "config.json"
    if not file.is_file():
        return ()
    return tuple(read_json(file).get("img_gen_scales", DEFAULT_SCALES))
