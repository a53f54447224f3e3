# SPDX-License-Identifier: Apache-2.0
"""Three routers by modality, in plain torch, for machines without Triton.

SGLang computes the router logits of text, picture and audio tokens in one Triton
kernel. On CPU this does the same. Which tokens are whose comes from SGLang: patch
tokens of pictures, frames and query blocks go to ``image_gate``, those of audio to
``audio_gate``, all others (markers, timestamps, every generated token) to ``gate``.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Order of the gates in SGLang's kernel arguments and modality ids.
_GATES = 3


def multi_gate(
    original: Callable[..., tuple[Tensor, Tensor]],
    hidden_states: Tensor,
    multi_gate_indices: tuple[Tensor, Tensor],
    *weights_and_biases: Any,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Around ``multi_gate_triton_kernel``: torch where there is no Triton.

    Args:
        original: SGLang's function.
        hidden_states: [T, D].
        multi_gate_indices: Token indices in blocks of one modality, padded with T,
            and the modality of each block.
        weights_and_biases: Three [E, D] weights and three [E] biases.
        options: Passed to ``original``.

    Returns:
        [T, E] logits and [T, E] bias of each token's own router.
    """
    if hidden_states.device.type != "cpu":
        return original(
            hidden_states, multi_gate_indices, *weights_and_biases, **options
        )
    weights = weights_and_biases[:_GATES]
    biases = weights_and_biases[_GATES:]
    token_indices, modality_ids = multi_gate_indices
    count, experts = hidden_states.shape[0], weights[0].shape[0]
    logits = hidden_states.new_empty(count, experts)
    bias_of_token = torch.empty(count, experts, dtype=torch.float32)
    blocks = token_indices.view(len(modality_ids), -1)
    for gate in range(_GATES):
        tokens = blocks[modality_ids == gate].flatten()
        tokens = tokens[tokens < count].long()
        # The same precision as a text-only batch: see SGLang's BailingMoEGate.
        routed = hidden_states[tokens].to(weights[gate].dtype) @ weights[gate].T
        logits[tokens] = routed.to(logits.dtype)
        bias_of_token[tokens] = biases[gate].float()
    return logits, bias_of_token
