# SPDX-License-Identifier: Apache-2.0
"""What a family says of itself, as a row for the registry: data, no heavy import.

A row names what is heavy as ``"file:attribute"`` inside the family's folder; whoever
needs it imports it by ``load``. The defaults are the file names that all families use.
"""

import pkgutil
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Licence:
    """Of the weights, as the vendor's model card states it.

    Args:
        name: As there.
        commercial: Whether commercial use is allowed.
    """

    name: str
    commercial: bool


@dataclass(frozen=True)
class ModelFamily:
    """One row: what a family is called, where its parts are, what it takes over.

    Args:
        name: Short name, for ``SGLANG_EXT_GEN_DISABLE`` and the command line.
        title: Name for people.
        package: Dotted name of the family's folder.
        pipeline: SGLang pipeline class; its ``pipeline_name`` is the attribute's name.
        pipeline_config: SGLang pipeline config class.
        sampling_params: SGLang sampling params class.
        hf_model_paths: Hugging Face ids that are this family's, whatever stock
            SGLang would do with them.
        http_routes: POST routes of the server that the family serves.
        request_fields: Table of ``RequestField``; imports neither torch nor SGLang.
        load_options: Table of the pipeline config's options; same imports.
        stock_options: Table of what becomes of stock's options; same imports.
        check_request: Function from the fields that a user gave (None is not given,
            other names are not looked at) to those fields in their own types; raises
            ``RequestError`` for the first that cannot be used; same imports.
        check_checkpoint: Function from a local directory to a list of problems.
        needs: Function from a local directory to ``Needs``; imports neither torch nor
            SGLang.
        licence: Of the weights.
        recognises: Function that says whether a local directory holds a checkpoint
            of this family, by content; imports neither torch nor SGLang.
        why_not: Function from a local path that is not recognised to what it is
            instead, where that can be told, or None; same imports.
        write_tiny: Function that writes a tiny checkpoint into a directory.
        demo_requests: Function from no arguments to a list of requests to show.
        fp8_quality: Function from a local directory to pairs of a weight's name and
            its signal-to-noise ratio in dB as FP8; None where weights are not
            quantised at load.
        demo_chat: Context manager from a tiny checkpoint to load options for the demo
            and a function from a picture to a chat about it; None without a chat.
        convert: Function from a local directory to the safetensors files that it wrote
            from the checkpoint's pickles; None where there are none.
        language_model: Name of the row of ``LANGUAGE_MODELS`` that the family's
            checkpoints hold as well; ``sglang serve`` then runs both behind one port.
        thinker_url_option: Load option that takes the address of the language model,
            where the family needs its answers to draw.
    """

    name: str
    title: str
    package: str
    pipeline: str
    pipeline_config: str
    sampling_params: str
    hf_model_paths: tuple[str, ...]
    http_routes: tuple[str, ...]
    licence: Licence
    request_fields: str = "request:REQUEST_FIELDS"
    load_options: str = "options:LOAD_OPTIONS"
    stock_options: str = "options:STOCK_OPTIONS"
    check_request: str = "request:check_request"
    check_checkpoint: str = "checkpoint:check_checkpoint"
    needs: str = "needs:needs"
    recognises: str = "checkpoint:recognises"
    write_tiny: str = "tiny:write_tiny"
    why_not: str | None = None
    demo_requests: str = "demo:demo_requests"
    fp8_quality: str | None = None
    demo_chat: str | None = None
    convert: str | None = None
    language_model: str | None = None
    thinker_url_option: str | None = None

    @property
    def pipeline_name(self) -> str:
        """The name under which SGLang knows the pipeline class."""
        return self.pipeline.partition(":")[2]

    def load(self, reference: str) -> Any:
        """Import what a ``"file:attribute"`` of this row names."""
        return pkgutil.resolve_name(f"{self.package}.{reference}")


@dataclass(frozen=True)
class LanguageModel:
    """One row: a family's part on SGLang's language model runtime.

    Args:
        name: The family's short name.
        title: Name for people.
        package: Dotted name of the folder that the other fields name files of.
        architecture: As in the ``architectures`` of ``config.json``.
        register_config: Function that makes the config and tokenizer known; called in
            every process of the runtime.
        register_model: Function that registers model and processor; called only where
            the architecture is about to be used.
        check_checkpoint: Function from a local directory to a list of problems.
        needs: Function from a local directory to ``Needs``; imports neither torch nor
            SGLang.
        licence: Of the weights.
        recognises: Function that says whether a local directory holds this model, by
            content; imports neither torch nor SGLang.
        why_not: Function from a local path that is not recognised to what it is
            instead, where that can be told, or None; same imports.
        write_tiny: Function that writes a tiny checkpoint into a directory.
        prepare_arguments: Function that may change SGLang's server arguments before
            they are resolved, for checkpoints that SGLang cannot open as they are.
    """

    name: str
    title: str
    package: str
    architecture: str
    licence: Licence
    register_config: str = "thinker.config:register_config"
    register_model: str = "thinker.register:register_model"
    check_checkpoint: str = "checkpoint:check_checkpoint"
    needs: str = "needs:needs"
    recognises: str = "checkpoint:recognises"
    write_tiny: str = "tiny:write_tiny"
    why_not: str | None = None
    prepare_arguments: str | None = None

    def load(self, reference: str) -> Any:
        """Import what a ``"file:attribute"`` of this row names."""
        return pkgutil.resolve_name(f"{self.package}.{reference}")
