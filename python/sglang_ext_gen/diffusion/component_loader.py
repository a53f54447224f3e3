# SPDX-License-Identifier: Apache-2.0
"""Our components as SGLang's diffusion runtime loads them.

Precision and placement come from SGLang, everything else from the component's row.
"""

from pathlib import Path
from typing import Any

from sglang.multimodal_gen.runtime.loader.component_loaders.component_loader import (
    ComponentLoader,
)
from sglang.multimodal_gen.runtime.server_args import ServerArgs
from sglang.multimodal_gen.runtime.utils.precision import resolve_component_precision
from torch import nn

from sglang_ext_gen.checkpoint.build import load_component
from sglang_ext_gen.checkpoint.component import Component, StoredComponent
from sglang_ext_gen.layers.fp8_linear import (
    FP8Linear,
    check_fp8_mode,
    finalize_fp8_linears,
    tensor_parallel,
)

# What a pipeline of ours names as the library of a component.
LIBRARY = "sglang_ext_gen"


class StrictLoader(ComponentLoader):
    """Loads one component; ``strict_loader`` makes a subclass for each row."""

    expected_library = LIBRARY
    component: Component[Any]

    def stored(self, folder: Path, config: Any) -> StoredComponent[Any]:
        """What is loaded from the folder that the pipeline resolved.

        Args:
            folder: Of the component.
            config: The pipeline config, whose options may choose among files.
        """
        return StoredComponent(self.component, folder)

    def component_load_precision(
        self, server_args: ServerArgs, component_name: str
    ) -> str | None:
        """Allow ``component_precisions`` for this component."""
        return server_args.component_precisions.get(component_name)

    def load_customized(
        self, component_model_path: str, server_args: ServerArgs, component_name: str
    ) -> nn.Module:
        """Load in the configured precision, to the chosen device.

        FP8 weights take up the form that the pipeline config's ``fp8_mode`` names.
        """
        config: Any = server_args.pipeline_config
        dtype = resolve_component_precision(server_args, component_name)
        if dtype is None:
            dtype = resolve_component_precision(server_args, self.component.precision)
        assert dtype is not None, f"no precision for {component_name}"
        check_fp8_mode(config.fp8_mode, dtype)
        tp_rank, tp_size = tensor_parallel()
        module = load_component(
            self.stored(Path(component_model_path), config),
            dtype=dtype,
            device=self.target_device(
                server_args.should_start_component_on_cpu(component_name)
            ),
            options=config,
            tp_rank=tp_rank,
            tp_size=tp_size,
        )
        if any(isinstance(part, FP8Linear) for part in module.modules()):
            finalize_fp8_linears(module, config.fp8_mode, dtype)
        return module


def strict_loader(component: Component[Any]) -> type[StrictLoader]:
    """The loader class of one component, for a pipeline's ``component_loaders``."""
    return type(f"{component.name}_loader", (StrictLoader,), {"component": component})
