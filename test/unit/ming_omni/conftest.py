# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the Ming tests."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from conftest import Golden
from server.servers import free_ports

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def ming_golden(golden_dir: Callable[[str], Path]) -> Golden:
    """Golden data of the thinker; its folder is the checkpoint, too."""
    return Golden(golden_dir("ming_thinker"))


@pytest.fixture(scope="session")
def ming_tokenizer(ming_golden: Golden) -> "PreTrainedTokenizerFast":
    """The tiny checkpoint's tokenizer, as the server loads it."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(ming_golden.path)


@pytest.fixture(scope="session")
def drawing_golden(golden_dir: Callable[[str], Path]) -> Golden:
    """Golden data of the generator alone, on random query states."""
    return Golden(golden_dir("ming_image_generation"))


@pytest.fixture(scope="session")
def omni_golden(golden_dir: Callable[[str], Path]) -> Golden:
    """Golden data of thinker and generator together."""
    return Golden(golden_dir("ming_omni"))


@pytest.fixture(scope="session")
def diffusion_runtime(omni_golden: Golden) -> Iterator[Any]:
    """SGLang's diffusion runtime in this process, one rank; its server arguments."""
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

    apply_plugin_hooks()
    torch.set_num_threads(1)
    server_args = ServerArgs.from_kwargs(
        model_path=str(omni_golden.checkpoint),
        backend="sglang",
        dit_precision="fp32",
        vae_precision="fp32",
        text_encoder_precisions=("fp32",),
        # Nothing is asked of it here.
        thinker_url="http://127.0.0.1:9",
    )
    set_global_server_args(server_args)
    _, _, port = free_ports()
    maybe_init_distributed_environment_and_model_parallel(
        tp_size=1, sp_size=1, distributed_init_method=f"tcp://127.0.0.1:{port}"
    )
    yield server_args
    cleanup_dist_env_and_memory()
