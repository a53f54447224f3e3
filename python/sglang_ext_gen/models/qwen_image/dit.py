# SPDX-License-Identifier: Apache-2.0
"""Stock's transformer, able to run what it gets wrong in a batch or on several ranks.

- A batch where references have their own time (2511): see ``forward``.
- Sequence parallelism with tokens that the ranks cannot share evenly, or texts of
  several lengths: stock pads the picture with tokens that attention then sees, and
  takes no mask over the text. Here attention gets a mask over both.
"""

import functools
import math
from typing import Any

import torch
from sglang.multimodal_gen.runtime.distributed import (
    get_sp_parallel_rank,
    get_sp_world_size,
)
from sglang.multimodal_gen.runtime.models.dits.qwen_image import (
    QwenImageTransformer2DModel,
)
from torch import Tensor


class QwenImageExtTransformer(QwenImageTransformer2DModel):
    """Stock's class; see ``forward``."""

    # Adapters saved by diffusers carry the component's name; stock drops such keys.
    lora_param_names_mapping = {r"^transformer\.(.*)$": r"\1"}  # noqa: RUF012

    # Stock's denoising stage reads the parameters' names to know what to pass.
    @functools.wraps(QwenImageTransformer2DModel.forward)
    def forward(self, hidden_states: Tensor, **inputs: Any) -> Any:
        """As stock's; see the module docstring for the deviations.

        Args:
            hidden_states: [B, I, 64], under sequence parallelism this rank's part.
            inputs: Stock's other arguments.
        """
        # Stock appends one time 0 for the references whatever the batch; each row of
        # a 2511 checkpoint (``zero_cond_t``) needs its own.
        self.timestep_zero = self.timestep_zero.new_zeros(hidden_states.shape[0])
        if get_sp_world_size() > 1:
            inputs = mask_padding(inputs, get_sp_parallel_rank(), get_sp_world_size())
        return super().forward(hidden_states, **inputs)


def mask_padding(inputs: dict[str, Any], rank: int, ranks: int) -> dict[str, Any]:
    """The transformer's inputs with a mask over padding, where there is any.

    Args:
        inputs: ``encoder_hidden_states`` [B, T, D] of all ranks, its mask [B, T] or
            None, ``img_shapes``, and the rotary caches, the text's [T, d].
        rank: This rank of the sequence-parallel group.
        ranks: How many there are.

    Returns:
        The inputs; where something is padded with the text and its caches padded to a
        multiple of ``ranks`` and ``attn_mask`` [B, (T + I) / ranks] over this rank's
        part. Stock deals out the text, then every rank's part is [text, picture].
    """
    sizes = _shared_sizes(inputs["img_shapes"][0])
    text_mask = inputs.get("encoder_hidden_states_mask")
    # Alike on every rank: attention gathers the mask from all of them or from none.
    if text_mask is None and all(size % ranks == 0 for size in sizes):
        return inputs
    picture = _valid_tokens(sizes, rank, ranks)
    text = inputs["encoder_hidden_states"]
    text = text[0] if isinstance(text, list) else text
    text_mask = text_mask[0] if isinstance(text_mask, list) else text_mask
    rows, length = text.shape[:2]
    missing = -length % ranks
    if text_mask is None:
        text_mask = text.new_ones(rows, length, dtype=torch.bool)
    text_mask = _pad(text_mask.bool(), missing, dim=1)
    local = (length + missing) // ranks
    attn_mask = torch.cat(
        [
            text_mask[:, rank * local : (rank + 1) * local],
            picture.to(text.device).expand(rows, -1),
        ],
        dim=1,
    )
    return {
        **inputs,
        "encoder_hidden_states": _pad(text, missing, dim=1),
        "encoder_hidden_states_mask": None,
        **{name: _pad_text_cache(inputs.get(name), missing) for name in _CACHES},
        "attention_kwargs": {
            **(inputs.get("attention_kwargs") or {}),
            "attn_mask": attn_mask,
        },
    }


_CACHES = ("freqs_cis", "freqs_complex")


def _shared_sizes(shapes: list[tuple[int, int, int]]) -> tuple[int, int]:
    """Tokens of the picture and of all its references, each dealt out on its own."""
    sizes = [math.prod(shape) for shape in shapes]
    return sizes[0], sum(sizes[1:])


def _valid_tokens(sizes: tuple[int, int], rank: int, ranks: int) -> Tensor:
    """Which of this rank's tokens are no padding, [I / ranks] bool."""
    parts = []
    for size in sizes:
        local = math.ceil(size / ranks)
        parts.append(torch.arange(rank * local, (rank + 1) * local) < size)
    return torch.cat(parts)


def _pad(tensor: Tensor, count: int, dim: int) -> Tensor:
    shape = list(tensor.shape)
    shape[dim] = count
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=dim)


def _pad_text_cache(
    caches: tuple[Tensor, Tensor] | None, count: int
) -> tuple[Tensor, Tensor] | None:
    if caches is None:
        return None
    picture, text = caches
    return picture, _pad(text, count, dim=0)
