# SPDX-License-Identifier: Apache-2.0
"""A program: one picture from a checkpoint through ``DiffGenerator``.

    python stock_picture.py CHECKPOINT PICTURE

Prints one JSON object: which of our pipelines this process knows, and which hooks are
in force in it.
"""

import json
import os
import sys
from pathlib import Path

REQUEST = {
    "prompt": "a red fox",
    "width": 256,
    "height": 256,
    "num_inference_steps": 2,
    "guidance_scale": 3.0,
    "negative_prompt": "blue",
    "seed": 3,
}


def main(checkpoint: str, picture: Path, stdout: int) -> None:
    from sglang.multimodal_gen import DiffGenerator
    from sglang.multimodal_gen.registry import get_registered_pipeline_names

    from server.servers import free_ports
    from sglang_ext_gen.plugin.hooks import applied_hooks
    from sglang_ext_gen.registry import FAMILIES

    _, scheduler_port, master_port = free_ports()
    generator = DiffGenerator.from_pretrained(
        model_path=checkpoint,
        backend="sglang",
        # What stock cannot load must fail here, not come from diffusers.
        native_only_components=("text_encoder", "transformer", "vae"),
        scheduler_port=scheduler_port,
        master_port=master_port,
    )
    try:
        generator.generate(
            sampling_params_kwargs={
                **REQUEST,
                "output_path": str(picture.parent),
                "output_file_name": picture.name,
            }
        )
    finally:
        generator.shutdown()
    ours = {family.pipeline_name for family in FAMILIES}
    report = {
        "pipelines": sorted(ours & set(get_registered_pipeline_names())),
        "hooks": sum(applied_hooks("diffusion").values()),
    }
    os.write(stdout, json.dumps(report).encode())


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    original = os.dup(1)
    os.dup2(2, 1)  # SGLang logs to stdout
    main(sys.argv[1], Path(sys.argv[2]), original)
