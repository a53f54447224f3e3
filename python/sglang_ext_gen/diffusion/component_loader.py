# SPDX-License-Identifier: Apache-2.0
"""A strict loader as SGLang's diffusion runtime wants one.

Precision and placement come from SGLang, everything else from the checkpoint.
"""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from sglang.multimodal_gen.runtime.loader.component_loaders.component_loader import (
    ComponentLoader,
)
from sglang.multimodal_gen.runtime.server_args import ServerArgs
from sglang.multimodal_gen.runtime.utils.precision import resolve_component_precision
from torch import nn

# What a pipeline of ours names as the library of a component.
LIBRARY = "sglang_ext_gen"


class StrictLoader(ComponentLoader):
    """Base of the loaders of one component; a subclass says how to build it."""

    expected_library = LIBRARY
    # Whose precision holds where the user gives none for this component.
    precision_key: str

    def component_load_precision(
        self, server_args: ServerArgs, component_name: str
    ) -> str | None:
        """Allow ``component_precisions`` for this component."""
        return server_args.component_precisions.get(component_name)

    def load_customized(
        self, component_model_path: str, server_args: ServerArgs, component_name: str
    ) -> nn.Module:
        """Load in the configured precision, to the chosen device."""
        dtype = resolve_component_precision(server_args, component_name)
        if dtype is None:
            dtype = resolve_component_precision(server_args, self.precision_key)
        assert dtype is not None, f"no precision for {component_name}"
        device = self.target_device(
            server_args.should_start_component_on_cpu(component_name)
        )
        path, config = Path(component_model_path), server_args.pipeline_config
        return self.build(path, config, dtype, device)

    @abstractmethod
    def build(
        self, path: Path, config: Any, dtype: torch.dtype, device: Any
    ) -> nn.Module:
        """Build and fill the component.

        Args:
            path: What the pipeline resolved for it.
            config: The pipeline config, with its loading options.
            dtype: Compute dtype.
            device: Where its weights go.
        """
