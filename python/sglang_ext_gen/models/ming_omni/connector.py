# SPDX-License-Identifier: Apache-2.0
"""Query states -> condition rows: projection, connector, projection, unit length.

Source: the condition method of the official code. The connector is a Qwen2 decoder in
which every token sees every other: the official code takes the causal flag off the
attention and adds a mask of ones, which changes nothing else. Its final norm counts.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sglang_ext_gen.layers.rotary import apply_rotary, rope_cos_sin
from sglang_ext_gen.models.ming_omni.config import BridgeConfig, ConnectorConfig

# PyTorch's own default for normalisation to unit length, used by the official code.
UNIT_EPS = 1e-12
CAPTION_SCALE = 1000.0


class ConnectorAttention(nn.Module):
    """Grouped-query attention without a mask."""

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.heads = (config.num_attention_heads, config.num_key_value_heads)
        queries, keys = (count * self.head_dim for count in self.heads)
        self.qkv_proj = nn.Linear(config.hidden_size, queries + 2 * keys)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [B, T, D] -> [B, T, D]."""
        query_heads, key_heads = self.heads
        qkv = self.qkv_proj(x).unflatten(-1, (-1, self.head_dim))
        q, k, v = qkv.split((query_heads, key_heads, key_heads), dim=2)
        q, k = apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).flatten(-2))


class ConnectorMLP(nn.Module):
    """Gated feed-forward layer."""

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_up_proj = nn.Linear(hidden, 2 * inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, D] -> [B, T, D]."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class ConnectorLayer(nn.Module):
    """One pre-norm layer."""

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = nn.RMSNorm(hidden, eps=eps)
        self.self_attn = ConnectorAttention(config)
        self.post_attention_layernorm = nn.RMSNorm(hidden, eps=eps)
        self.mlp = ConnectorMLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [B, T, D] -> [B, T, D]."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Connector(nn.Module):
    """``connector/``: embeddings in, hidden states after the final norm out."""

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(
            ConnectorLayer(config) for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, D] -> [B, T, D]."""
        positions = torch.arange(x.shape[1], device=x.device)
        cos, sin = rope_cos_sin(
            positions, self.config.head_dim, self.config.rope_theta, x.dtype
        )
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)


class Bridge(nn.Module):
    """``mlp/``: the projections before and behind the connector."""

    def __init__(
        self, config: BridgeConfig, connector: ConnectorConfig, thinker_width: int
    ) -> None:
        super().__init__()
        width = connector.hidden_size
        self.proj_in = nn.Linear(thinker_width, width)
        self.proj_out = nn.Linear(width, config.diffusion_c_input_dim)


class ConditionEncoder(nn.Module):
    """Connector and projections.

    Args:
        bridge: Of ``mlp/config.json``.
        connector: Of ``connector/config.json``.
        thinker_width: Width of the thinker's hidden states.
    """

    def __init__(
        self, bridge: BridgeConfig, connector: ConnectorConfig, thinker_width: int
    ) -> None:
        super().__init__()
        self.config = bridge
        self.thinker_width = thinker_width
        self.bridge = Bridge(bridge, connector, thinker_width)
        self.connector = Connector(connector)

    def forward(self, query_states: Tensor) -> Tensor:
        """Condition rows of unit length.

        Args:
            query_states: [B, T, thinker width], final-norm states of the query tokens.

        Returns:
            [B, T, C] float32.
        """
        dtype = self.bridge.proj_in.weight.dtype
        hidden = self.connector(self.bridge.proj_in(query_states.to(dtype)))
        return F.normalize(self.bridge.proj_out(hidden).float(), dim=-1, eps=UNIT_EPS)


def scale_caption(rows: Tensor, config: BridgeConfig) -> Tensor:
    """What the transformer gets: all rows, glyph rows too, at one length.

    Args:
        rows: [..., T, C]; rows of zeros stay so.
        config: Says whether the checkpoint wants it.
    """
    if not config.text_encoder_norm:
        return rows
    return F.normalize(rows, dim=-1, eps=UNIT_EPS) * CAPTION_SCALE
