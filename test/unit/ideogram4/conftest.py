# SPDX-License-Identifier: Apache-2.0
"""SGLang's single-process runtime and the golden checkpoint, loaded once."""

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from conftest import Golden

if TYPE_CHECKING:
    from sglang_ext_gen.models.ideogram4.pipeline import Ideogram4FP8Pipeline


@dataclass(frozen=True)
class LoadedPipeline:
    """The real pipeline, built in this process, and its server arguments."""

    pipeline: "Ideogram4FP8Pipeline"
    server_args: Any


@pytest.fixture(scope="package")
def float32_pipeline(ideogram4_golden: Golden) -> Iterator[LoadedPipeline]:
    """The golden checkpoint in float32 on the CPU."""
    import torch
    from sglang.multimodal_gen.runtime.distributed.parallel_state import (
        cleanup_dist_env_and_memory,
        maybe_init_distributed_environment_and_model_parallel,
    )
    from sglang.multimodal_gen.runtime.platforms.plugins import apply_plugin_hooks
    from sglang.multimodal_gen.runtime.server_args import (
        ServerArgs,
        set_global_server_args,
    )

    from sglang_ext_gen.models.ideogram4.pipeline import Ideogram4FP8Pipeline

    apply_plugin_hooks()
    torch.set_num_threads(1)
    server_args = ServerArgs.from_kwargs(
        model_path=str(ideogram4_golden.checkpoint),
        dit_precision="fp32",
        vae_precision="fp32",
        text_encoder_precisions=("fp32",),
    )
    set_global_server_args(server_args)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        os.environ["MASTER_PORT"] = str(probe.getsockname()[1])
    maybe_init_distributed_environment_and_model_parallel(tp_size=1, sp_size=1)
    pipeline = Ideogram4FP8Pipeline(str(ideogram4_golden.checkpoint), server_args)
    yield LoadedPipeline(pipeline, server_args)
    cleanup_dist_env_and_memory()
