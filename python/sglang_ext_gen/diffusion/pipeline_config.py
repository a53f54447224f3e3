# SPDX-License-Identifier: Apache-2.0
"""A family's load options as fields of SGLang's pipeline config.

The options are the family's table (``options.py``). From it follow the dataclass
fields, the flags of ``sglang serve`` and the checks.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from sglang.multimodal_gen import envs
from sglang.multimodal_gen.runtime.utils.argparse import StoreBoolean

from sglang_ext_gen.diffusion.options import (
    OWN_LOADERS,
    OptionRow,
    refuse_options,
    refuse_unknown_components,
)
from sglang_ext_gen.request.fields import RequestField

_FLAG_TYPES = {"int": int, "float": float}


class FamilyPipelineConfig:
    """First base of the families' classes: ``@dataclass @carries(LOAD_OPTIONS)``.

    The classes are pickled to every worker, so they stay at module level. The
    architecture is not here: it is read from the checkpoint.

    Args:
        load_options: The family's table.
        stock_options: The family's rows of what becomes of stock's options.
        other_components: Components beside ``native_only_components``.
        fp8_mode: What FP8 weights become at load.
    """

    load_options: ClassVar[tuple[RequestField, ...]]
    stock_options: ClassVar[tuple[OptionRow, ...]] = OWN_LOADERS
    other_components: ClassVar[tuple[str, ...]] = ()
    fp8_mode = "resident"

    if TYPE_CHECKING:  # the fields that ``carries`` declares

        def __getattr__(self, name: str) -> Any: ...

    @classmethod
    def add_pipeline_cli_args(cls, parser: argparse.ArgumentParser) -> None:
        """Add the options to ``sglang serve --model-path``; SGLang calls it."""
        for option in cls.load_options:
            flag, text = "--" + option.name.replace("_", "-"), option.help
            if option.kind == "bool":  # its help says what ``--no-...`` does
                text = f"If false: {text}"
                kind: dict[str, Any] = {"action": StoreBoolean, "default": None}
            else:
                kind = {"type": _FLAG_TYPES.get(option.kind, str)}
                kind["choices"] = option.choices or None
            parser.add_argument(flag, help=text.replace("%", "%%"), **kind)

    @classmethod
    def of(cls, server_args: Any) -> Self:
        """The config of a server that runs this pipeline, with its own type."""
        config = server_args.pipeline_config
        assert isinstance(config, cls), f"{type(config).__name__} is not ours"
        return config

    def supports_native_grouped_requests(self) -> bool:
        """True: the stages batch a list of requests themselves."""
        return True

    def supports_dynamic_batching(self) -> bool:
        """True for every task: requests of several users may be one group."""
        return True

    def supports_dynamic_batching_for_request(self, batch: Any) -> bool:
        """False for a request that must be, or is already, a batch of its own.

        What a cache over the steps decides must not depend on a neighbour. Several
        outputs of a request fill a batch, and SGLang takes members of one output only.
        """
        is_cached = batch.enable_cache_dit
        if is_cached is None:
            is_cached = envs.SGLANG_CACHE_DIT_ENABLED
        is_many = batch.num_outputs_per_prompt > 1
        return not (is_many or is_cached or batch.enable_teacache)

    def supports_batching_image_conditioning(self) -> bool:
        """True: each request of a group keeps its own pictures."""
        return True

    def check_options(self, server_args: Any) -> None:
        """The family's own rules for options and server arguments.

        Raises:
            ConfigError: Names the option and what is allowed.
        """

    def check_folder(self, folder: Path) -> None:
        """Refuse a local checkpoint that is damaged, in the user's own process.

        The workers would find the same a minute later.

        Raises:
            CheckpointError: Names what is wrong with it.
        """

    def validate_server_args(self, server_args: Any) -> None:
        """Refuse options that nothing would obey, and damage.

        Raises:
            ConfigError: Names the option and what is allowed.
            RequestError: An option has a value that is not allowed.
            CheckpointError: Names what is wrong with the checkpoint.
        """
        for option in self.load_options:
            value = getattr(self, option.name)
            if value is not None:
                option.check(value)
        refuse_options(self.stock_options, server_args)
        components = (*self.native_only_components, *self.other_components)
        refuse_unknown_components(components, server_args)
        self.check_options(server_args)
        folder = Path(server_args.model_path)
        if folder.is_dir():
            self.check_folder(folder)
