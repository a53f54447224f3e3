# SPDX-License-Identifier: Apache-2.0
"""The thinker's decoder in plain torch, to show which mistakes the golden data sees.

Written from the specification, not from the served code: loops, float32, no cache.
Each flag of ``Variant`` makes one mistake that a peer makes or that is easy to make.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

HEADS, KV_HEADS, HEAD_DIM, ROTARY = 4, 2, 128, 64
GROUPS, TOP_GROUPS, TOP_K, SCALING = 4, 2, 4, 2.5
EPSILON, THETA = 1e-6, 2_400_000.0
MROPE_AXIS = [1 + j % 2 if j < 24 else 0 for j in range(32)]


@dataclass(frozen=True)
class Variant:
    """Mistakes; all False is the official model."""

    sequential_positions: bool = False
    text_router_everywhere: bool = False
    unnormalised_features: bool = False
    prenorm_states: bool = False
    no_routed_scaling: bool = False


def load(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the root shards in float32."""
    tensors = {}
    for file in sorted(folder.glob("model-*.safetensors")):
        with safe_open(file, "pt") as stored:
            tensors |= {name: stored.get_tensor(name).float() for name in stored.keys()}
    return tensors


@torch.no_grad()
def decode(
    weights: dict[str, Tensor],
    ids: Tensor,
    positions: Tensor,
    modality: Tensor,
    features: Tensor | None,
    variant: Variant,
) -> Tensor:
    """Hidden states of a prompt.

    Args:
        weights: From ``load``.
        ids: [T].
        positions: [3, T] (time, row, column).
        modality: [T]: 0 text, 1 picture, frame or query, 2 audio.
        features: [media tokens, D] in the order of their tokens.
        variant: Mistakes to make.

    Returns:
        [T, D] after the final norm.
    """
    x = weights["model.model.word_embeddings.weight"][ids.long()].clone()
    if features is not None:
        # Unit rows; other lengths stand for a projector without normalisation.
        x[modality > 0] = features * (3.0 if variant.unnormalised_features else 1.0)
    if variant.sequential_positions:
        positions = torch.arange(len(ids)).expand(3, -1)
    if variant.text_router_everywhere:
        modality = torch.zeros_like(modality)
    angles = _angles(positions)
    for index in range(4):
        layer = {
            name.removeprefix(prefix): tensor
            for prefix in [f"model.model.layers.{index}."]
            for name, tensor in weights.items()
            if name.startswith(prefix)
        }
        x = x + _attention(layer, _norm(x, layer["input_layernorm.weight"]), angles)
        y = _norm(x, layer["post_attention_layernorm.weight"])
        is_dense = index == 0
        x = x + (
            _mlp(layer, "mlp.", y) if is_dense else _moe(layer, y, modality, variant)
        )
    return x if variant.prenorm_states else _norm(x, weights["model.model.norm.weight"])


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON) * weight


def _angles(positions: Tensor) -> Tensor:
    frequencies = THETA ** (-torch.arange(0, ROTARY, 2).float() / ROTARY)
    return positions.float()[MROPE_AXIS].T * frequencies  # [T, 32]


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    half = ROTARY // 2
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b, rest = x[..., :half], x[..., half:ROTARY], x[..., ROTARY:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)


def _attention(layer: dict[str, Tensor], x: Tensor, angles: Tensor) -> Tensor:
    packed = x @ layer["attention.query_key_value.weight"].T
    sizes = [n * HEAD_DIM for n in (HEADS, KV_HEADS, KV_HEADS)]
    q, k, v = (part.unflatten(-1, (-1, HEAD_DIM)) for part in packed.split(sizes, -1))
    q = _rotate(_norm(q, layer["attention.q_norm.weight"]), angles)
    k = _rotate(_norm(k, layer["attention.k_norm.weight"]), angles)
    k, v = (part.repeat_interleave(HEADS // KV_HEADS, 1) for part in (k, v))
    q, k, v = (part.transpose(0, 1) for part in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.transpose(0, 1).flatten(1) @ layer["attention.dense.weight"].T


def _mlp(layer: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    gate, up, down = (
        layer[f"{name}{part}_proj.weight"] for part in ("gate", "up", "down")
    )
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


def route(logits: Tensor, bias: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Chosen experts and their weights: [T, E] logits, [E] or [T, E] bias."""
    scores = logits.sigmoid()
    biased = scores + bias
    grouped = biased.unflatten(-1, (GROUPS, -1))
    best = grouped.topk(2, -1).values.sum(-1).topk(TOP_GROUPS, -1).indices
    keep = torch.zeros(grouped.shape[:2], dtype=torch.bool).scatter(1, best, True)
    masked = grouped.masked_fill(~keep[..., None], -torch.inf).flatten(1)
    chosen = masked.topk(TOP_K, -1).indices
    weights = scores.gather(1, chosen)
    return chosen, weights / (weights.sum(-1, keepdim=True) + 1e-20) * scaling


def _moe(
    layer: dict[str, Tensor], x: Tensor, modality: Tensor, variant: Variant
) -> Tensor:
    out = _mlp(layer, "mlp.shared_experts.", x)
    scaling = 1.0 if variant.no_routed_scaling else SCALING
    for number, gate in enumerate(("gate", "image_gate", "audio_gate")):
        tokens = (modality == number).nonzero().flatten()
        logits = x[tokens] @ layer[f"mlp.{gate}.weight"].T
        chosen, weights = route(logits, layer[f"mlp.{gate}.expert_bias"], scaling)
        for slot in range(TOP_K):
            for row, token in enumerate(tokens.tolist()):
                expert = f"mlp.experts.{int(chosen[row, slot])}."
                out[token] += weights[row, slot] * _mlp(layer, expert, x[token])
    return out
