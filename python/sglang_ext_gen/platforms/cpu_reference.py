# SPDX-License-Identifier: Apache-2.0
"""A CPU platform for SGLang's language-model runtime (``sglang.srt.platforms``).

Stock ``sgl.Engine`` and ``launch_server`` start on a machine without any accelerator,
with the default device, plain torch attention and no compiled kernels. It is for
development, tests and demos, not for serving, and says so once per process.

Stock's own CPU engine (``SGLANG_USE_CPU_ENGINE=1``) needs an x86 kernel package built
from source; this platform needs nothing. ``SGLANG_PLATFORM=cpu_reference`` asks for it
by name. Tensor parallelism works when each rank is given its cores, for example
``SGLANG_CPU_OMP_THREADS_BIND="0|1"`` for two.
"""

import logging
import os
from typing import Any

import torch
from sglang.srt.platforms.cpu import CpuSRTPlatform
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import PlatformCapabilities

from sglang_ext_gen.errors import ConfigError

logger = logging.getLogger(__name__)

NAME = "cpu_reference"


class CpuReferencePlatform(CpuSRTPlatform):
    """Device ``cpu``, torch attention, every fused operator in its torch form."""

    # Stock's in-tree CPU identity would choose kernels that the released kernel
    # package does not contain.
    _enum = PlatformEnum.OOT
    capabilities = PlatformCapabilities()

    def get_device(self, device_id: int = 0) -> str:
        # SGLang takes the default --device from here, and that is text.
        return "cpu"

    def apply_server_args_defaults(self, server_args: Any) -> None:
        # A scheduler that spins while it waits takes the cores that compute.
        server_args.sleep_on_idle = True

    def get_default_attention_backend(self) -> str:
        return "torch_native"

    def get_dispatch_key_name(self) -> str:
        return "native"

    def get_compile_backend(self, mode: str | None = None) -> str:
        return "eager"


def activate() -> str | None:
    """Entry point: the platform's class where it applies, else None.

    It applies where torch sees no accelerator, unless ``SGLANG_USE_CPU_ENGINE=1``
    asks for stock's CPU engine.

    Raises:
        ConfigError: ``SGLANG_PLATFORM`` asks for it while an accelerator is visible:
            many stock modules look at torch, not at the platform, and would use it.
    """
    is_asked = os.environ.get("SGLANG_PLATFORM") == NAME
    has_accelerator = torch.accelerator.is_available()
    if is_asked and has_accelerator:
        raise ConfigError(
            f"SGLANG_PLATFORM={NAME} was given but torch sees an accelerator; "
            "hide it, for example with CUDA_VISIBLE_DEVICES=''"
        )
    if not is_asked:
        if has_accelerator or os.environ.get("SGLANG_USE_CPU_ENGINE") == "1":
            return None
    logger.warning(
        "No accelerator: using the CPU reference platform of sglang_ext_gen "
        "(for development, tests and demos; not for serving)"
    )
    return f"{CpuReferencePlatform.__module__}:{CpuReferencePlatform.__qualname__}"
