# SPDX-License-Identifier: Apache-2.0
"""One side of ``bench_denoise.py``: the Ideogram 4 pipeline of diffusers >= 0.40.

Runs under an interpreter of its own (``--reference-python``), because the diffusers
that SGLang pins has no such model. diffusers cannot read the FP8 release, so weights
are dequantised here and take twice the memory. Prompts are not padded (``[D]`` pads
them to 2048 tokens by default).
"""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from denoise_protocol import Message, StepClock, peak_rss_mib, serve
from safetensors.torch import load_file

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def load(options: Message) -> tuple[Message, Callable[[Message], Message]]:
    """Load the checkpoint; ``options`` as for SGLang, without ``load_options``."""
    from transformers import AutoTokenizer, Qwen3VLConfig, Qwen3VLModel

    rss_before = peak_rss_mib()
    # Any: type checkers see the diffusers that SGLang pins.
    diffusers: Any = importlib.import_module("diffusers")
    folder, dtype = Path(options["model"]), DTYPES[options["precision"]]
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def transformer(name: str) -> torch.nn.Module:
        model = diffusers.Ideogram4Transformer2DModel.from_config(
            json.loads((folder / name / "config.json").read_text("utf-8"))
        )
        file = folder / name / "diffusion_pytorch_model.safetensors"
        return fill(model, split_attention(dequantize(load_file(file))), dtype)

    config = Qwen3VLConfig.from_pretrained(folder / "text_encoder")
    encoder_weights = dequantize(load_file(folder / "text_encoder/model.safetensors"))
    pipeline = diffusers.Ideogram4Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(
            folder / "scheduler"
        ),
        vae=diffusers.AutoencoderKLFlux2.from_pretrained(
            folder / "vae", torch_dtype=dtype
        ),
        text_encoder=fill(Qwen3VLModel(config), encoder_weights, dtype),
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        transformer=transformer("transformer"),
        unconditional_transformer=transformer("unconditional_transformer"),
    ).to(device)
    pipeline.set_progress_bar_config(disable=True)
    description = {
        "pipeline": f"diffusers {diffusers.__version__}",
        "rss_before_loading_mib": rss_before,
    }
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else bool
    clock = StepClock(pipeline.transformer, synchronize)
    return description, lambda request: {**run(pipeline, request), **clock.take()}


def run(pipeline: Any, request: Message) -> Message:
    """Make one picture and report what it cost."""
    has_cuda = torch.cuda.is_available()
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    plan, fields = request["plan"], request["fields"]
    picture = pipeline(
        fields["prompt"],
        height=fields["height"],
        width=fields["width"],
        num_inference_steps=len(plan["guidance"]),
        guidance_schedule=plan["guidance"],
        mu=plan["mu"],
        std=plan["std"],
        max_sequence_length=num_tokens(pipeline.tokenizer, fields["prompt"]),
        generator=torch.Generator("cpu").manual_seed(fields["seed"]),
    ).images[0]
    picture.save(request["picture"])
    params = [
        param
        for model in (pipeline.transformer, pipeline.unconditional_transformer)
        for param in model.parameters()
    ]
    return {
        "peak_rss_mib": peak_rss_mib(),
        "peak_cuda_mib": torch.cuda.max_memory_allocated() / 2**20 if has_cuda else 0,
        "dit_bytes": sum(param.nbytes for param in params),
        "dit_bf16_bytes": sum(2 * param.numel() for param in params),
    }


def num_tokens(tokenizer: Any, prompt: str) -> int:
    """Length of the rendered prompt."""
    messages = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
    text = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def dequantize(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """float32 weights; scales are used up."""
    full = {}
    for name, weight in weights.items():
        if name.endswith(".weight_scale"):
            continue
        scale = weights.get(f"{name}_scale")
        full[name] = (
            weight.float() if scale is None else weight.float() * scale[:, None]
        )
    return full


def split_attention(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Vendor names of the attention projections to diffusers names."""
    renamed = {}
    for name, weight in weights.items():
        if name.endswith("attention.qkv.weight"):
            stem = name.removesuffix("qkv.weight")
            for part, rows in zip("qkv", weight.chunk(3), strict=True):
                renamed[f"{stem}to_{part}.weight"] = rows
        else:
            renamed[name.replace("attention.o.", "attention.to_out.0.")] = weight
    return renamed


def fill(
    model: torch.nn.Module, weights: dict[str, torch.Tensor], dtype: torch.dtype
) -> torch.nn.Module:
    """Load every weight; parameters become ``dtype``, buffers stay as they are.

    Rotary frequencies in bf16 would turn every position into another one.
    """
    model.load_state_dict(weights, strict=True)
    for param in model.parameters():
        param.data = param.data.to(dtype)
    return model.eval().requires_grad_(False)


if __name__ == "__main__":
    serve(load)
