# SPDX-License-Identifier: Apache-2.0
"""A family's component table as SGLang's pipeline.

SGLang asks a ``model_index.json`` for the components; what one would say follows from
the table, for releases that have none and for those whose index names other classes.
"""

from pathlib import Path
from typing import Any, ClassVar

from sglang.multimodal_gen.runtime.pipelines_core.composed_pipeline_base import (
    ComposedPipelineBase,
)
from sglang.multimodal_gen.runtime.server_args import ServerArgs

from sglang_ext_gen.checkpoint.component import Component
from sglang_ext_gen.checkpoint.source import checkpoint_folder
from sglang_ext_gen.diffusion.component_loader import LIBRARY, strict_loader
from sglang_ext_gen.diffusion.pipeline_config import FamilyPipelineConfig


class FamilyPipeline(ComposedPipelineBase):
    """Base of the families' pipelines.

    Args:
        components: Rows that our loaders load, all that the family may need.
        stock_components: Components that stock's loaders load, each with its library
            and class as in a ``model_index.json``.
        has_index: Whether the release has a ``model_index.json``.
    """

    components: ClassVar[tuple[Component[Any], ...]]
    stock_components: ClassVar[dict[str, tuple[str, str]]] = {}
    has_index: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # A loader that the family names itself wins.
        cls.component_loaders = {
            **cls.component_loaders,
            **{part.name: strict_loader(part) for part in cls.components},
            **vars(cls).get("component_loaders", {}),
        }
        # SGLang copies the list per instance.
        cls._required_config_modules = [
            *(part.name for part in cls.components),
            *cls.stock_components,
        ]

    def unneeded_components(self, folder: Path, server_args: ServerArgs) -> set[str]:
        """Components that this process does not load; asked once it is checked."""
        return set()

    def check_checkpoint(self, folder: Path, server_args: ServerArgs) -> None:
        """Refuse a damaged checkpoint before anything is loaded.

        Raises:
            CheckpointError: Names the problems.
        """
        FamilyPipelineConfig.of(server_args).check_folder(folder)

    def before_loading(self, folder: Path, server_args: ServerArgs) -> None:
        """What else has to happen between the check and the loading; nothing here."""

    def load_modules(
        self, server_args: ServerArgs, loaded_modules: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Load what this process needs, after the whole checkpoint was checked."""
        folder = checkpoint_folder(
            self.model_path, server_args.revision, has_index=self.has_index
        )
        self.model_path = str(folder)
        self.check_checkpoint(folder, server_args)
        self.before_loading(folder, server_args)
        unneeded = self.unneeded_components(folder, server_args)
        self._required_config_modules = [
            name for name in self._required_config_modules if name not in unneeded
        ]
        return super().load_modules(server_args, loaded_modules)

    def _load_config(self) -> dict[str, Any]:
        ours = {part.name: (LIBRARY, part.name) for part in self.components}
        return {
            "_class_name": self.pipeline_name,
            "_diffusers_version": "",
            # Also what this process does not load: a disaggregated role reads from
            # the VAE's config what it has to know of it.
            **{
                n: list(entry) for n, entry in {**self.stock_components, **ours}.items()
            },
        }

    def component_folder(self, name: str) -> Path:
        """Where a component of the checkpoint is."""
        root = Path(self.model_path)
        rows = {part.name: part for part in self.components}
        return rows[name].at(root).folder if name in rows else root / name

    def _resolve_component_path(
        self, server_args: ServerArgs, module_name: str, load_module_name: str
    ) -> str:
        if server_args.component_paths.get(module_name) is None:
            return str(self.component_folder(module_name))
        return super()._resolve_component_path(
            server_args, module_name, load_module_name
        )
