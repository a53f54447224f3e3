# SPDX-License-Identifier: Apache-2.0
"""The vision tower: Qwen2.5-VL's vision transformer.

Source: the released ``vit.safetensors`` and the architecture of transformers'
``Qwen2_5_VLVisionModel``. Pure PyTorch, so that the diffusion runtime and the language
model runtime use the same one.

Attention runs on groups: windows of 112 pixels in most layers, whole temporal
patches in the others. Groups are gathered into one padded batch, so that a layer is
one attention call however many windows there are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sglang_ext_gen.layers.rotary import apply_rotary
from sglang_ext_gen.models.lance.config import LanceVisionConfig
from sglang_ext_gen.models.lance.packing import Grid

_ROPE_THETA = 10_000.0
_NORM_EPS = 1e-6


@dataclass(frozen=True)
class TokenGroups:
    """Rows of a token sequence that attend to each other, as a padded batch.

    Args:
        rows: [groups, longest] int64; padding repeats row 0.
        mask: [groups, 1, 1, longest] bool, or None when nothing is padded.
        slots: [S] int64, where each token is in the flattened ``rows``.
    """

    rows: Tensor
    mask: Tensor | None
    slots: Tensor


def make_groups(lengths: Tensor) -> TokenGroups:
    """Groups that follow each other.

    Args:
        lengths: [groups] int64 on the target device, each at least 1.
    """
    longest = int(lengths.max())
    column = torch.arange(longest, device=lengths.device)
    valid = column < lengths[:, None]
    starts = lengths.cumsum(0) - lengths
    rows = torch.where(valid, starts[:, None] + column, 0)
    mask = None if bool(valid.all()) else valid[:, None, None]
    return TokenGroups(rows, mask, valid.flatten().nonzero().flatten())


class LanceVisionAttention(nn.Module):
    """Attention inside groups, rotated by the patch's row and column."""

    def __init__(self, config: LanceVisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], groups: TokenGroups
    ) -> Tensor:
        """x: [S, D] -> [S, D]."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.unbind(dim=1)  # each [S, H, d]
        q, k = (apply_rotary(part.float(), *rope).to(v.dtype) for part in (q, k))
        q, k, v = (part[groups.rows].transpose(1, 2) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=groups.mask)
        out = out.transpose(1, 2).flatten(2).flatten(0, 1)  # [groups * longest, D]
        return self.proj(out[groups.slots])


class LanceVisionMLP(nn.Module):
    """Gated feed-forward layer with biases."""

    def __init__(self, config: LanceVisionConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(hidden, inner)
        self.up_proj = nn.Linear(hidden, inner)
        self.down_proj = nn.Linear(inner, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """x: [S, D] -> [S, D]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LanceVisionBlock(nn.Module):
    """Pre-normed attention and feed-forward layer."""

    def __init__(self, config: LanceVisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(config.hidden_size, eps=_NORM_EPS)
        self.norm2 = nn.RMSNorm(config.hidden_size, eps=_NORM_EPS)
        self.attn = LanceVisionAttention(config)
        self.mlp = LanceVisionMLP(config)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], groups: TokenGroups
    ) -> Tensor:
        """x: [S, D] -> [S, D]."""
        x = x + self.attn(self.norm1(x), rope, groups)
        return x + self.mlp(self.norm2(x))


class LancePatchEmbed(nn.Module):
    """One linear map of a flattened patch, stored as a convolution."""

    def __init__(self, config: LanceVisionConfig) -> None:
        super().__init__()
        size = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(
            config.in_chans, config.hidden_size, size, stride=size, bias=False
        )

    def forward(self, patches: Tensor) -> Tensor:
        """[S, patch_dim] -> [S, D]."""
        return F.linear(patches, self.proj.weight.flatten(1))


class LancePatchMerger(nn.Module):
    """Joins 2 x 2 patches into one token of the decoder's width."""

    def __init__(self, config: LanceVisionConfig) -> None:
        super().__init__()
        self.merged = config.hidden_size * config.spatial_merge_size**2
        self.ln_q = nn.RMSNorm(config.hidden_size, eps=_NORM_EPS)
        self.mlp = nn.Sequential(
            nn.Linear(self.merged, self.merged),
            nn.GELU(),
            nn.Linear(self.merged, config.out_hidden_size),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[S, D] -> [S / 4, D of the decoder]."""
        return self.mlp(self.ln_q(x).view(-1, self.merged))


class LanceVisionTransformer(nn.Module):
    """Patches of one picture or video -> features in raster order."""

    def __init__(self, config: LanceVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = LancePatchEmbed(config)
        self.blocks = nn.ModuleList(
            LanceVisionBlock(config) for _ in range(config.depth)
        )
        self.merger = LancePatchMerger(config)

    def forward(self, patches: Tensor, grid: Grid) -> Tensor:
        """Encode.

        Args:
            patches: [S, patch_dim], see ``visual_input.vit_patches``.
            grid: (t, h, w) in patches; h and w are even.

        Returns:
            [S / 4, D of the decoder], in the dtype of the weights.
        """
        device, unit = patches.device, self.config.spatial_merge_size**2
        order, window_lengths = self._window_order(grid, device)
        x = self.patch_embed(patches.to(self.patch_embed.proj.weight.dtype))
        x = x.view(-1, unit, x.shape[-1])[order].flatten(0, 1)
        rope = self._rope(grid, order)
        windows = make_groups(window_lengths * unit)
        frames = make_groups(torch.full((grid[0],), grid[1] * grid[2], device=device))
        for index, block in enumerate(self.blocks):
            is_full = index in self.config.fullatt_block_indexes
            x = block(x, rope, frames if is_full else windows)
        return self.merger(x)[order.argsort()]

    def _window_order(self, grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
        """Order of merged tokens window by window, and the windows' lengths."""
        side = self.config.window_size // self.config.pixels_per_token
        merge = self.config.spatial_merge_size
        frames, height, width = grid[0], grid[1] // merge, grid[2] // merge
        rows, columns = -(-height // side), -(-width // side)
        index = torch.full(
            (frames, rows * side, columns * side), -1, dtype=torch.int64, device=device
        )
        tokens = torch.arange(frames * height * width, device=device)
        index[:, :height, :width] = tokens.view(frames, height, width)
        windows = index.view(frames, rows, side, columns, side).transpose(2, 3)
        windows = windows.reshape(-1, side**2)
        return windows[windows >= 0], (windows >= 0).sum(1)

    def _rope(self, grid: Grid, order: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, each [S, 1, d / 2] float32, in window order."""
        merge, device = self.config.spatial_merge_size, order.device
        _, height, width = grid
        row, column = torch.meshgrid(
            torch.arange(height, device=device),
            torch.arange(width, device=device),
            indexing="ij",
        )
        head_dim = self.config.hidden_size // self.config.num_heads
        exponents = torch.arange(0, head_dim // 2, 2, device=device).float()
        frequencies = _ROPE_THETA ** (-exponents / (head_dim // 2))  # [d / 4]
        angles = torch.stack([row, column], dim=-1).float()[..., None] * frequencies
        angles = angles.flatten(2)  # [h, w, d / 2]
        merged = angles.view(height // merge, merge, width // merge, merge, -1)
        merged = merged.transpose(1, 2).reshape(-1, merge**2, angles.shape[-1])
        merged = merged.repeat(grid[0], 1, 1)[order].flatten(0, 1)[:, None]
        return merged.cos(), merged.sin()
