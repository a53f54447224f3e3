# SPDX-License-Identifier: Apache-2.0
"""What SGLang makes of this package in a process of its own: one JSON line on stdout.

``doctor`` runs this as a child, because SGLang only logs the failure of a plugin. It
loads the plugins exactly as SGLang's processes do, by their entry points.
"""

import json
import os
import sys
from typing import Any

from sglang_ext_gen.cli.running import stdout_to_stderr


def inspect_process() -> dict[str, Any]:
    """Load all plugins of both runtimes and describe the result."""
    # As in sglang serve, where our srt plugin hooks the choice of the runtime.
    sys.argv = ["sglang", "serve"]
    import sglang.cli.serve  # noqa: F401
    import torch
    from sglang.multimodal_gen.registry import (
        get_pipeline_config_classes,
        get_registered_pipeline_names,
    )
    from sglang.multimodal_gen.runtime.platforms.plugins import apply_plugin_hooks
    from sglang.srt.plugins import load_plugins

    from sglang_ext_gen.platforms import cpu_kernels
    from sglang_ext_gen.plugin import compat, hooks
    from sglang_ext_gen.registry import enabled_families

    load_plugins()
    apply_plugin_hooks()
    registered = get_registered_pipeline_names()
    return {
        "families": {
            family.name: family.pipeline_name in registered
            and get_pipeline_config_classes(family.pipeline_name) is not None
            for family in enabled_families()
        },
        "hooks": hooks.applied_hooks("cli") | hooks.applied_hooks("diffusion"),
        "compat": compat.check(),
        "cpu_kernels": {
            name: cpu_kernels.has_kernel(name) for name in cpu_kernels.KERNELS
        },
        "device": _device(torch),
    }


def _device(torch: Any) -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {"type": "cpu", "name": f"CPU, {os.cpu_count()} cores"}
    properties = torch.cuda.get_device_properties(0)
    return {
        "type": "cuda",
        "name": properties.name,
        "count": torch.cuda.device_count(),
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
    }


if __name__ == "__main__":
    with stdout_to_stderr() as stdout:
        line = json.dumps(inspect_process()) + "\n"
        os.write(stdout, line.encode())
    sys.exit(0)
