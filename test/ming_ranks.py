# SPDX-License-Identifier: Apache-2.0
"""One rank of several that draw the same golden edit, in every parallel mode.

A module of its own: the ranks are spawned, and import it by name.
"""

import os
import traceback
from pathlib import Path
from typing import Any

from conftest import Golden

MODES: dict[str, dict[str, Any]] = {
    "cfg": {"enable_cfg_parallel": True},
    "ulysses": {"ulysses_degree": 2, "sp_degree": 2, "enable_cfg_parallel": False},
    "tp": {"tp_size": 2, "enable_cfg_parallel": False},
}


def draw_in_every_mode(
    rank: int, ports: dict[str, int], folder: Path, queue: Any
) -> None:
    """Send (rank, mode, decibels of an edit against the official latents)."""
    try:
        for mode, arguments in MODES.items():
            queue.put((rank, mode, _draw(rank, ports[mode], arguments, Golden(folder))))
    except BaseException:
        queue.put((rank, "failed", traceback.format_exc()))
        raise


def _draw(rank: int, port: int, arguments: dict[str, Any], golden: Golden) -> float:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
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

    from images import decibels
    from ming_drawing import golden_request
    from ming_studio import StoredThinker, Studio, golden_answers

    apply_plugin_hooks()
    torch.set_num_threads(1)
    server_args: Any = ServerArgs.from_kwargs(
        model_path=str(golden.checkpoint),
        backend="sglang",
        dit_precision="fp32",
        vae_precision="fp32",
        text_encoder_precisions=("fp32",),
        thinker_url="http://127.0.0.1:9",
        num_gpus=2,
        **arguments,
    )
    set_global_server_args(server_args)
    maybe_init_distributed_environment_and_model_parallel(
        tp_size=server_args.tp_size,
        sp_size=server_args.sp_degree,
        cfg_degree=2 if server_args.enable_cfg_parallel else 1,
        ulysses_degree=server_args.ulysses_degree,
        ring_degree=server_args.ring_degree,
        distributed_init_method=f"tcp://127.0.0.1:{port}",
    )
    thinker = StoredThinker(golden_answers(golden)) if rank == 0 else None
    studio = Studio(golden, thinker, server_args)
    [latents] = studio.latents([studio.request(**golden_request(golden, "edit"))])
    want = golden.tensor("edit.final_latents")
    cleanup_dist_env_and_memory()
    scale = want.abs().max()
    return decibels(latents[0] / scale, want / scale)
