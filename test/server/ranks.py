# SPDX-License-Identifier: Apache-2.0
"""A program: one rank of two that draw the same pictures in several parallel modes.

    python ranks.py RANK MASTER_PORT FOLDER

Starting SGLang takes longer than all modes and families together, so one pair of
processes goes through all of them, in float32 over gloo on the CPU. What a rank drew
is in ``FOLDER/MODE.RANK.safetensors``; in the mode "one" rank 0 draws alone.

- Ideogram 4: two prompts of different lengths for the padding masks, an odd number of
  image tokens for uneven shards.
- Qwen-Image: the same, as text to image, FP8 weights and an edit.
- Ming: an edit with a second frame, and 48 image tokens that are padded to 64. The
  stored query states are known to rank 0 only, which must hand them on. As replicas
  (``dp``) both ranks know them, and each draws a picture of its own.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden"
T2I = GOLDEN / "qwen_image" / "t2i" / "Qwen-Image"
EDIT = GOLDEN / "qwen_image" / "edit" / "Qwen-Image-Edit-2509"

# Mode -> the server arguments that ask for it.
MODES: dict[str, dict[str, Any]] = {
    "one": {},
    "cfg": {"enable_cfg_parallel": True},
    "ulysses": {"sp_degree": 2, "ulysses_degree": 2, "enable_cfg_parallel": False},
    "tp": {"tp_size": 2, "enable_cfg_parallel": False},
    "dp": {"dp_size": 2, "enable_cfg_parallel": False},
}
# What the rank of a replica draws.
REPLICAS = ("edit", "t2i")
IDEOGRAM4: dict[str, Any] = {
    "prompt": ["a red fox in the snow at night", "ok"],
    "seed": 7,
    "height": 272,
    "width": 272,  # 17 x 17 tokens
    "num_inference_steps": 4,
    "guidance_schedule": [7.0, 5.0, 3.0, 1.0],
}
QWEN_IMAGE: dict[str, Any] = {
    "prompt": ["a red circle on white", "the sea"],
    "negative_prompt": "low quality, blurry, a longer negative prompt",
    "width": 176,
    "height": 144,  # 99 tokens
    "num_inference_steps": 3,
    "seed": 1,
}


def main(rank: int, master_port: int, folder: Path) -> None:
    from safetensors.torch import save_file
    from sglang.multimodal_gen.runtime.distributed.parallel_state import (
        cleanup_dist_env_and_memory,
        maybe_init_distributed_environment_and_model_parallel,
    )
    from sglang.multimodal_gen.runtime.platforms.plugins import apply_plugin_hooks

    apply_plugin_hooks()
    for offset, (mode, options) in enumerate(MODES.items()):
        world_size = 2 if options else 1
        if rank >= world_size:
            continue
        os.environ |= {
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(master_port + offset)},
            **{"RANK": str(rank), "LOCAL_RANK": str(rank)},
            **{"WORLD_SIZE": str(world_size)},
        }
        maybe_init_distributed_environment_and_model_parallel(
            tp_size=options.get("tp_size", 1),
            sp_size=options.get("sp_degree", 1),
            ulysses_degree=options.get("ulysses_degree", 1),
            cfg_degree=2 if options.get("enable_cfg_parallel") else 1,
            dp_size=options.get("dp_size", 1),
        )
        options = {**options, "num_gpus": world_size}
        own = folder / f"{mode}.{rank}"
        own.mkdir()
        if mode == "dp":
            pictures = {"ming_omni": ming_omni(0, options, REPLICAS[rank])}
        else:
            pictures = {
                "ideogram4": ideogram4(own, options),
                **qwen_image(own, options),
                "ming_omni": ming_omni(rank, options),
            }
        save_file(pictures, folder / f"{mode}.{rank}.safetensors")
        cleanup_dist_env_and_memory()


def ideogram4(folder: Path, options: dict[str, Any]) -> "Tensor":
    """Pictures of a checkpoint with even numbers of heads, unlike the golden one's."""
    from qwen_image_runtime import load_pipeline
    from sglang_ext_gen.models.ideogram4.tiny import write_tiny

    write_tiny(folder / "ideogram4")
    return load_pipeline(folder / "ideogram4", **options).pictures(**IDEOGRAM4)


def qwen_image(folder: Path, options: dict[str, Any]) -> dict[str, "Tensor"]:
    """Pictures of each kind."""
    from qwen_image_runtime import load_pipeline, write_picture

    references = [
        str(write_picture(folder / f"{size[0]}.png", *size, seed=1))
        for size in ((96, 64), (48, 80))
    ]
    edit = {"image_path": references, "reference_pixels": 192 * 192}
    pictures = {}
    for name, checkpoint, fields, more in (
        ("t2i", T2I, {}, {}),
        ("fp8", T2I, {}, {"weight_format": "fp8"}),
        ("edit", EDIT, {**edit, "prompt": "make it blue", "true_cfg_scale": 3}, {}),
    ):
        loaded = load_pipeline(checkpoint, **options, **more)
        pictures[name] = loaded.pictures(**{**QWEN_IMAGE, **fields})
    return pictures


def ming_omni(rank: int, options: dict[str, Any], case: str = "edit") -> "Tensor":
    """Latents of a golden case; rank is that in the replica."""
    from sglang.multimodal_gen.runtime.server_args import (
        ServerArgs,
        set_global_server_args,
    )

    from conftest import Golden
    from ming_drawing import golden_request
    from ming_studio import StoredThinker, Studio, golden_answers
    from qwen_image_runtime import FLOAT32

    golden = Golden(GOLDEN / "ming_omni")
    server_args: Any = ServerArgs.from_kwargs(
        model_path=str(golden.checkpoint),
        backend="sglang",
        thinker_url="http://127.0.0.1:9",
        **FLOAT32,
        **options,
    )
    set_global_server_args(server_args)
    thinker = StoredThinker(golden_answers(golden)) if rank == 0 else None
    studio = Studio(golden, thinker, server_args)
    [latents] = studio.latents([studio.request(**golden_request(golden, case))])
    return latents


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
