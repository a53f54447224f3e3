# SPDX-License-Identifier: Apache-2.0
"""A program: one rank of two that draw the same pictures in several parallel modes.

    python qwen_image_ranks.py RANK MASTER_PORT FOLDER

Starting SGLang takes longer than all modes together, so one pair of processes goes
through all of them. Rank 0 also draws alone and writes every mode's pictures to
``FOLDER/MODE.safetensors``.
"""

import os
import sys
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[1] / "golden" / "qwen_image"
T2I = GOLDEN / "t2i" / "Qwen-Image"
EDIT = GOLDEN / "edit" / "Qwen-Image-Edit-2509"

# Mode -> degrees of the runtime's groups, and the server arguments that ask for them.
MODES: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "one": ({}, {}),
    "cfg": ({"cfg_degree": 2}, {"enable_cfg_parallel": True}),
    "ulysses": (
        {"sp_size": 2, "ulysses_degree": 2},
        {"sp_degree": 2, "ulysses_degree": 2, "enable_cfg_parallel": False},
    ),
    "tp": ({"tp_size": 2}, {"tp_size": 2, "enable_cfg_parallel": False}),
}
# Texts of two lengths; 99 tokens of the picture, which two ranks cannot share evenly.
REQUEST: dict[str, Any] = {
    "prompt": ["a red circle on white", "the sea"],
    "negative_prompt": "low quality, blurry, a longer negative prompt",
    "width": 176,
    "height": 144,
    "num_inference_steps": 3,
    "seed": 1,
}


def main(rank: int, master_port: int, folder: Path) -> None:
    from sglang.multimodal_gen.runtime.distributed.parallel_state import (
        cleanup_dist_env_and_memory,
        maybe_init_distributed_environment_and_model_parallel,
    )
    from sglang.multimodal_gen.runtime.platforms.plugins import apply_plugin_hooks

    apply_plugin_hooks()
    for offset, (mode, (degrees, options)) in enumerate(MODES.items()):
        world_size = 2 if degrees else 1
        if rank >= world_size:
            continue
        os.environ |= {
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(master_port + offset)},
            **{"RANK": str(rank), "LOCAL_RANK": str(rank)},
            **{"WORLD_SIZE": str(world_size)},
        }
        sizes: dict[str, Any] = {"tp_size": 1, "sp_size": 1, **degrees}
        maybe_init_distributed_environment_and_model_parallel(**sizes)
        draw(folder / f"{mode}.safetensors", rank, world_size, options)
        cleanup_dist_env_and_memory()


def draw(file: Path, rank: int, world_size: int, options: dict[str, Any]) -> None:
    """All pictures of one mode."""
    from safetensors.torch import save_file

    from qwen_image_runtime import load_pipeline, write_picture

    references = [
        str(write_picture(file.with_suffix(f".{rank}.{size[0]}.png"), *size, seed=1))
        for size in ((96, 64), (48, 80))
    ]
    options = {"num_gpus": world_size, **options}
    edit = {"image_path": references, "reference_pixels": 192 * 192}
    pictures = {}
    for name, checkpoint, fields, more in (
        ("t2i", T2I, {}, {}),
        ("fp8", T2I, {}, {"weight_format": "fp8"}),
        ("edit", EDIT, {**edit, "prompt": "make it blue", "true_cfg_scale": 3}, {}),
    ):
        loaded = load_pipeline(checkpoint, **options, **more)
        pictures[name] = loaded.pictures(**{**REQUEST, **fields})
    if rank == 0:
        save_file(pictures, file)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
