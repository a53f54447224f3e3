# SPDX-License-Identifier: Apache-2.0
"""One denoising step of each family on a pretended GPU, for ``count_kernels.py``.

A function for each family. It gets a checkpoint at full size without data, and says
what happens in one step of one picture.
"""

import pkgutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from count_kernels import TEXT_TOKENS, Step
from pretend_gpu import fake_module
from sglang.multimodal_gen.runtime.managers.forward_context import set_forward_context
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sglang_ext_gen.checkpoint.component import StoredComponent

CUDA = torch.device("cuda")


def _build(
    part: StoredComponent[Any], mode: FakeTensorMode, options: Any = None
) -> Any:
    """The module as a server builds it, on the pretended GPU."""
    make = pkgutil.resolve_name(part.component.build)
    return fake_module(make(part, torch.bfloat16, options).eval(), mode)


def _in_step(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with set_forward_context(1, attn_metadata=None, forward_batch=None):
            return run()

    return call


def ideogram4(folder: Path, mode: FakeTensorMode, width: int, height: int) -> Step:
    """The conditional branch, and the step's arithmetic."""
    from sglang_ext_gen.models.ideogram4 import packing, schedule
    from sglang_ext_gen.models.ideogram4.checkpoint import TRANSFORMER

    transformer = _build(TRANSFORMER.at(folder), mode, None)
    config = transformer.config
    with mode, torch.no_grad():
        text = packing.pack_text(
            [torch.empty(TEXT_TOKENS, config.llm_features_dim, device=CUDA)]
        )
        image = packing.image_position_ids(height, width, CUDA)
        positions = torch.cat([text.position_ids, image], dim=1)
        sequence = transformer.pack(positions, None)
        rows = transformer.project_text(text)
        latents = torch.empty(1, image.shape[1], config.in_channels, device=CUDA)
        times = torch.empty(21, device=CUDA)

    def run() -> Tensor:
        velocity = transformer(latents, times[1], sequence, rows)
        velocity = schedule.blend_guidance(velocity, velocity, 7.0)
        return schedule.euler_step(latents, velocity, times[1], times[2])

    return Step(transformer, _in_step(run))


def ming_omni(folder: Path, mode: FakeTensorMode, width: int, height: int) -> Step:
    """Both branches as rows of one call, and the step's arithmetic."""
    from sglang_ext_gen.models.ming_omni import schedule
    from sglang_ext_gen.models.ming_omni.checkpoint import SCHEDULER, TRANSFORMER

    transformer = _build(TRANSFORMER.at(folder), mode, None)
    scheduler, config = SCHEDULER.at(folder).config, transformer.config
    size = (height // 8, width // 8)
    with mode, torch.no_grad(), set_forward_context(0, None, forward_batch=None):
        caption = transformer.refine_caption(
            torch.empty(2, 256, config.cap_feat_dim, device=CUDA)
        )
        canvas = transformer.prepare_canvas(*size, caption.rows.shape[1], None)
        latents = torch.empty(1, config.in_channels, *size, device=CUDA)
        sigmas = torch.empty(31, device=CUDA)

    def run() -> Tensor:
        time = schedule.model_time(sigmas[1], scheduler)
        conditional, negative = transformer(latents, time, caption, canvas).chunk(2)
        output = schedule.combine(conditional, negative, 4.0)
        return schedule.euler_step(latents, output, sigmas[1], sigmas[2])

    return Step(transformer, _in_step(run))


def lance(folder: Path, mode: FakeTensorMode, width: int, height: int) -> Step:
    """Both branches as rows of one call, and the step's arithmetic."""
    from sglang_ext_gen.models.lance.checkpoint import TRANSFORMERS
    from sglang_ext_gen.models.lance.generation import LanceLoop
    from sglang_ext_gen.models.lance.mot import NoiseBlock, Prefix
    from sglang_ext_gen.models.lance.schedule import Guidance

    variant = "Lance_3B"
    part = TRANSFORMERS[variant].at(folder)
    options = SimpleNamespace(weight_format="released")
    transformer = _build(part, mode, options)
    config = transformer.config
    tokens = height // 16 * (width // 16)
    with mode:
        rope = torch.empty(2, tokens + 2, 1, config.head_dim // 2, device=CUDA)

        def prefix(length: int) -> tuple[Prefix, ...]:
            shape = (1, config.num_key_value_heads, length, config.head_dim)
            rows = tuple(
                torch.empty(shape, device=CUDA, dtype=torch.bfloat16)
                for _ in range(config.num_hidden_layers)
            )
            return (Prefix(rows, rows),)

        loop = LanceLoop(
            times=torch.empty(31, device=CUDA),
            guidance=Guidance(4.0, (0.4, 1.0), "global", 0.0),
            guided=(True, True),
            block=NoiseBlock(
                markers=torch.empty(2, dtype=torch.int64, device=CUDA),
                positions=torch.empty(tokens, config.hidden_size, device=CUDA),
                is_clean=torch.empty(tokens, dtype=torch.bool, device=CUDA),
                rope=(rope, rope),
            ),
            conditional=prefix(TEXT_TOKENS + 65),
            unconditional=prefix(65),
        )
        latents = torch.empty(1, tokens, transformer.llm2vae.out_features, device=CUDA)

    def run() -> Tensor:
        velocities = transformer(latents, **loop.inputs(1))
        return loop.advance(1, latents, velocities)

    return Step(transformer, _in_step(run))
