# SPDX-License-Identifier: Apache-2.0
"""Qwen-Image pipelines built in this process, and requests for them."""

import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

FLOAT32 = {
    "dit_precision": "fp32",
    "vae_precision": "fp32",
    "text_encoder_precisions": ("fp32",),
}

# Layers of the tiny transformer that a written adapter changes; the three projections
# of the text stream are one layer in stock's transformer.
ADAPTED = (
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.1.img_mlp.net.2",
    "transformer_blocks.1.attn.add_k_proj",
    "transformer_blocks.1.attn.add_q_proj",
    "transformer_blocks.1.attn.add_v_proj",
)
ADAPTER_RANK = 2


def start_runtime() -> None:
    """SGLang's single-process runtime, with our plugin's hooks."""
    from sglang.multimodal_gen.runtime.distributed.parallel_state import (
        maybe_init_distributed_environment_and_model_parallel,
    )
    from sglang.multimodal_gen.runtime.platforms.plugins import apply_plugin_hooks

    apply_plugin_hooks()
    torch.set_num_threads(1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        os.environ["MASTER_PORT"] = str(probe.getsockname()[1])
    maybe_init_distributed_environment_and_model_parallel(tp_size=1, sp_size=1)


@dataclass
class LoadedPipeline:
    """A real pipeline and its server arguments."""

    pipeline: Any
    server_args: Any

    def requests(self, **fields: Any) -> list[Any]:
        """The requests that ``DiffGenerator.generate(**fields)`` would queue."""
        from sglang.multimodal_gen.runtime.server_args import set_global_server_args

        from sglang_ext_gen.plugin.generate import _build_requests

        set_global_server_args(self.server_args)
        generator = _Caller(self.server_args)
        return _build_requests(generator, fields, None)  # type: ignore[arg-type]

    def run(self, **fields: Any) -> list[Any]:
        """Run a request; one ``OutputBatch`` per picture."""
        requests = self.requests(**fields)
        with torch.inference_mode():
            return self.pipeline.forward_batch(requests, self.server_args)

    def pictures(self, **fields: Any) -> torch.Tensor:
        """Run a request; [n, 3, H, W] from 0 to 1."""
        return torch.cat([image_of(result) for result in self.run(**fields)])


def image_of(result: Any) -> torch.Tensor:
    """The picture of an output, [1, 3, H, W] float32 from 0 to 1."""
    image = result.output.float()
    return image[:, :, 0] if image.dim() == 5 else image


class _Caller:
    """What ``offline`` reads of a ``DiffGenerator``."""

    def __init__(self, server_args: Any) -> None:
        self.server_args = server_args


def load_pipeline(checkpoint: Path, **options: Any) -> LoadedPipeline:
    """Build the pipeline that SGLang, with our hooks, has for a checkpoint."""
    from sglang.multimodal_gen.registry import get_model_info
    from sglang.multimodal_gen.runtime.server_args import (
        ServerArgs,
        set_global_server_args,
    )

    server_args = ServerArgs.from_kwargs(
        model_path=str(checkpoint), output_path=None, **{**FLOAT32, **options}
    )
    set_global_server_args(server_args)
    model_info = get_model_info(str(checkpoint))
    assert model_info is not None
    pipeline = model_info.pipeline_cls(str(checkpoint), server_args)
    return LoadedPipeline(pipeline, server_args)


def reference_pipeline(name: str, checkpoint: Path) -> Any:
    """A pipeline of diffusers in float32."""
    import diffusers

    pipeline = getattr(diffusers, name)
    return pipeline.from_pretrained(checkpoint, torch_dtype=torch.float32)


def decibels(image: torch.Tensor, reference: torch.Tensor) -> float:
    """Peak signal-to-noise ratio of two tensors from 0 to 1."""
    return float(-10 * torch.log10((image - reference).square().mean()))


def write_picture(path: Path, width: int, height: int, seed: int) -> Path:
    """A smooth random picture with a bright and a dark end."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    smooth.save(path)
    return path


def copy_checkpoint(source: Path, target: Path, **changes: dict[str, Any]) -> Path:
    """A copy with keys of its JSON files changed: ``{"transformer/config": {...}}``."""
    import json

    shutil.copytree(source, target)
    for name, values in changes.items():
        file = target / f"{name}.json"
        content = json.loads(file.read_text("utf-8"))
        file.write_text(json.dumps({**content, **values}), "utf-8")
    return target


def write_adapter(path: Path, seed: int, alpha: float | None, base: dict) -> dict:
    """An adapter for ``ADAPTED``; returns what it adds to each weight at strength 1."""
    generator = torch.Generator().manual_seed(seed)
    tensors, change = {}, {}
    for layer in ADAPTED:
        out_features, in_features = base[f"{layer}.weight"].shape
        down = (
            torch.randn(ADAPTER_RANK, in_features, generator=generator)
            / in_features**0.5
        )
        up = torch.randn(out_features, ADAPTER_RANK, generator=generator)
        tensors[f"transformer.{layer}.lora_A.weight"] = down
        tensors[f"transformer.{layer}.lora_B.weight"] = up
        if alpha is not None:
            tensors[f"transformer.{layer}.alpha"] = torch.tensor(alpha)
        change[f"{layer}.weight"] = (alpha or ADAPTER_RANK) / ADAPTER_RANK * (up @ down)
    save_file(tensors, path)
    return change
