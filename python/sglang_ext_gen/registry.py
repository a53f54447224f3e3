# SPDX-License-Identifier: Apache-2.0
"""Every model family in one table, and the question "whose checkpoint is this?".

A family exports its row; adding one means naming it here. A row is data, so that this
module can be read by every process at no cost.
"""

import os
from pathlib import Path

from sglang_ext_gen import envs
from sglang_ext_gen.errors import ConfigError
from sglang_ext_gen.models import ideogram4, lance, ming_omni, qwen_image
from sglang_ext_gen.models.family import LanguageModel, ModelFamily

FAMILIES: tuple[ModelFamily, ...] = (
    ideogram4.FAMILY,
    lance.FAMILY,
    ming_omni.FAMILY,
    qwen_image.FAMILY,
    qwen_image.EDIT_FAMILY,
)
LANGUAGE_MODELS: tuple[LanguageModel, ...] = (
    ming_omni.LANGUAGE_MODEL,
    lance.LANGUAGE_MODEL,
)


def enabled_families() -> tuple[ModelFamily, ...]:
    """The rows that ``SGLANG_EXT_GEN_DISABLE`` leaves on.

    Raises:
        ConfigError: The variable names a family that does not exist.
    """
    disabled = _disabled()
    return tuple(family for family in FAMILIES if family.name not in disabled)


def enabled_language_models() -> tuple[LanguageModel, ...]:
    """The rows of ``LANGUAGE_MODELS`` that ``SGLANG_EXT_GEN_DISABLE`` leaves on.

    Raises:
        ConfigError: The variable names a family that does not exist.
    """
    disabled = _disabled()
    return tuple(model for model in LANGUAGE_MODELS if model.name not in disabled)


def _disabled() -> tuple[str, ...]:
    names = envs.disabled_families()
    language_models = {model.name for model in LANGUAGE_MODELS}
    for name in names:
        if name not in language_models:
            find_family(name)
    return names


def find_family(name: str) -> ModelFamily:
    """The row called ``name``, enabled or not.

    Raises:
        ConfigError: There is none; lists the known names.
    """
    for family in FAMILIES:
        if family.name == name:
            return family
    known = ", ".join(row.name for row in (*FAMILIES, *LANGUAGE_MODELS))
    raise ConfigError(f"unknown model family {name!r}; known families: {known}")


def family_of(path_or_id: str | os.PathLike[str]) -> ModelFamily | None:
    """The enabled family of a checkpoint, or None where stock SGLang decides.

    A local directory is judged by its content, never by its name; anything else by
    comparison with the Hugging Face ids of the table.
    """
    text = os.fspath(path_or_id)
    path = Path(text)
    for family in enabled_families():
        if path.is_dir():
            if family.load(family.recognises)(path):
                return family
        elif text.lower() in (known.lower() for known in family.hf_model_paths):
            return family
    return None


def language_model_of(path: Path) -> LanguageModel | None:
    """The enabled language model that a local directory holds, judged by content."""
    for model in enabled_language_models():
        if model.load(model.recognises)(path):
            return model
    return None


def near_misses(path: Path) -> list[str]:
    """What a local path is that looks like an enabled family's and is not recognised.

    One line for each family or language model that can tell.
    """
    rows = (*enabled_families(), *enabled_language_models())
    notes = [
        row.load(row.why_not)(path)
        for row in rows
        if row.why_not is not None and not row.load(row.recognises)(path)
    ]
    return [note for note in notes if note is not None]


def composed_family_of(path_or_id: str | os.PathLike[str]) -> ModelFamily | None:
    """The enabled family of a checkpoint that holds a language model of ours as well.

    A local directory is judged by its content; an id is taken to be the release.
    """
    family = family_of(path_or_id)
    if family is None or family.language_model is None:
        return None
    path = Path(path_or_id)
    for model in enabled_language_models():
        if model.name == family.language_model:
            is_there = not path.is_dir() or model.load(model.recognises)(path)
            return family if is_there else None
    return None


def find_row(name: str) -> ModelFamily | LanguageModel:
    """The row called ``name`` in either table, enabled or not.

    A family's own row speaks for its whole checkpoint.

    Raises:
        ConfigError: There is none; lists the known names.
    """
    for row in (*FAMILIES, *LANGUAGE_MODELS):
        if row.name == name:
            return row
    return find_family(name)


def family_of_config(pipeline_config: object) -> ModelFamily | None:
    """The enabled family that an SGLang pipeline config object belongs to."""
    classes = {f"{c.__module__}:{c.__qualname__}" for c in type(pipeline_config).mro()}
    for family in enabled_families():
        if f"{family.package}.{family.pipeline_config}" in classes:
            return family
    return None
