# SPDX-License-Identifier: Apache-2.0
"""The Z-Image transformer with a reference picture as a second frame.

Source: diffusers' ``ZImageTransformer2DModel`` and the official fork of it.

Deliberate differences from the references, none of which changes a value:

- What does not depend on time is an input of ``forward``: the caption behind its
  refiner, rotations, the reference's tokens.
- Guidance branches share the noise refiner, which sees no caption.
- q, k, v and the two halves of a gated layer are one matrix each.
- Both streams are sharded over sequence-parallel ranks. Attention does not depend on
  the order of tokens, and both counts are multiples of 32, so each rank holds its part
  of the image followed by its part of the caption.

Padding rows are learned tokens that take part in attention. Norms accumulate in
float32 and rotations are applied in float32, whatever the compute dtype.
"""

import math
from dataclasses import dataclass

import torch
from sglang.multimodal_gen.runtime.distributed.sp_shard_utils import (
    build_shard_plan,
    gather_seq,
    shard_like,
)
from sglang.multimodal_gen.runtime.layers.attention import USPAttention
from sglang.multimodal_gen.runtime.managers.memory_managers.layerwise_offload import (
    LayerwiseOffloadableModuleMixin,
)
from torch import Tensor, nn
from torch.nn import functional as F

from sglang_ext_gen.diffusion.step_cache import StepCachedTransformer
from sglang_ext_gen.errors import ConfigError
from sglang_ext_gen.layers.fp8_linear import (
    MergedColumnParallelFP8Linear,
    RowParallelFP8Linear,
    tensor_parallel,
)
from sglang_ext_gen.layers.rotary import apply_rotation, axes_rotation
from sglang_ext_gen.models.ming_omni.config import (
    PATCH,
    TIME_FREQUENCIES,
    TIME_HIDDEN,
    TOKEN_MULTIPLE,
    TransformerConfig,
)

TIME_MAX_PERIOD = 1.0e4
# Query and key norms ignore the config's norm_eps.
QK_NORM_EPS = 1.0e-5
FINAL_NORM_EPS = 1.0e-6


@dataclass(frozen=True)
class Caption:
    """A prompt behind the context refiner, constant over the steps.

    Args:
        rows: [B, P, D] in the compute dtype, P a multiple of 32.
        rotation: [P, d / 2] complex64.
    """

    rows: Tensor
    rotation: Tensor


@dataclass(frozen=True)
class Canvas:
    """The image side of a request, constant over the steps.

    Args:
        grid: Height and width in patches.
        reference: [B, I, D] embedded patches of the reference picture, or None.
        rotation: [J, d / 2] complex64, J image tokens with padding.
    """

    grid: tuple[int, int]
    reference: Tensor | None
    rotation: Tensor


class ZImageAttention(nn.Module):
    """Attention over all tokens, normalised queries and keys.

    Args:
        is_replicated: True where all ranks hold the whole sequence.
    """

    def __init__(
        self, config: TransformerConfig, dtype: torch.dtype, *, is_replicated: bool
    ) -> None:
        super().__init__()
        dim, heads = config.dim, config.n_heads
        _, tp_size = tensor_parallel()
        if heads % tp_size:
            raise ConfigError(
                f"tp_size {tp_size} does not divide the {heads} attention heads"
            )
        self.num_heads, self.head_dim = heads // tp_size, config.head_dim
        linear = {"bias": False, "is_quantized": False, "dtype": dtype}
        self.to_qkv = MergedColumnParallelFP8Linear(dim, (dim,) * 3, **linear)
        self.to_out = RowParallelFP8Linear(dim, dim, **linear)
        self.norm_q = nn.RMSNorm(self.head_dim, eps=QK_NORM_EPS, dtype=dtype)
        self.norm_k = nn.RMSNorm(self.head_dim, eps=QK_NORM_EPS, dtype=dtype)
        self.attn = USPAttention(
            num_heads=self.num_heads,
            head_size=self.head_dim,
            skip_sequence_parallel=is_replicated,
        )

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        """x: [B, S_local, D] -> [B, S_local, D]."""
        qkv = self.to_qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        q, k, v = qkv.unbind(dim=2)  # each [B, S, H, d]
        q = apply_rotation(self.norm_q(q), rotation)
        k = apply_rotation(self.norm_k(k), rotation)
        return self.to_out(self.attn(q, k, v).flatten(-2))


class ZImageFeedForward(nn.Module):
    """Gated feed-forward layer, ``w2(silu(w1 x) * w3 x)``."""

    def __init__(self, config: TransformerConfig, dtype: torch.dtype) -> None:
        super().__init__()
        dim, inner = config.dim, config.ffn_dim
        linear = {"bias": False, "is_quantized": False, "dtype": dtype}
        self.w13 = MergedColumnParallelFP8Linear(dim, (inner, inner), **linear)
        self.w2 = RowParallelFP8Linear(inner, dim, **linear)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, S, D] -> [B, S, D]."""
        gate, up = self.w13(x).chunk(2, dim=-1)
        return self.w2(F.silu(gate) * up)


class ZImageBlock(nn.Module):
    """Sandwich-normed block; modulated by time unless it refines the caption."""

    def __init__(
        self, config: TransformerConfig, dtype: torch.dtype, *, is_modulated: bool
    ) -> None:
        super().__init__()
        dim, eps = config.dim, config.norm_eps
        self.attention = ZImageAttention(config, dtype, is_replicated=not is_modulated)
        self.feed_forward = ZImageFeedForward(config, dtype)
        self.attention_norm1 = nn.RMSNorm(dim, eps=eps, dtype=dtype)
        self.attention_norm2 = nn.RMSNorm(dim, eps=eps, dtype=dtype)
        self.ffn_norm1 = nn.RMSNorm(dim, eps=eps, dtype=dtype)
        self.ffn_norm2 = nn.RMSNorm(dim, eps=eps, dtype=dtype)
        if is_modulated:
            self.adaLN_modulation = nn.Linear(
                config.modulation_width, 4 * dim, dtype=dtype
            )

    def forward(self, x: Tensor, rotation: Tensor, time: Tensor | None) -> Tensor:
        """x: [B, S_local, D], time: [1, A] or None -> [B, S_local, D]."""
        if time is None:
            x = x + self.attention_norm2(
                self.attention(self.attention_norm1(x), rotation)
            )
            return x + self.ffn_norm2(self.feed_forward(self.ffn_norm1(x)))
        scale_attn, gate_attn, scale_ffn, gate_ffn = self.adaLN_modulation(time).chunk(
            4, dim=-1
        )
        y = self.attention(self.attention_norm1(x) * (1 + scale_attn), rotation)
        x = x + gate_attn.tanh() * self.attention_norm2(y)
        y = self.feed_forward(self.ffn_norm1(x) * (1 + scale_ffn))
        return x + gate_ffn.tanh() * self.ffn_norm2(y)


class ZImageTimeEmbedding(nn.Module):
    """Sinusoid of the time, then a two-layer perceptron."""

    def __init__(self, config: TransformerConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.mlp_in = nn.Linear(TIME_FREQUENCIES, TIME_HIDDEN, dtype=dtype)
        self.mlp_out = nn.Linear(TIME_HIDDEN, config.modulation_width, dtype=dtype)

    def forward(self, time: Tensor) -> Tensor:
        """time: scalar float32, already scaled -> [1, A] in the compute dtype."""
        half = TIME_FREQUENCIES // 2
        index = torch.arange(half, dtype=torch.float32, device=time.device)
        angles = time * torch.exp(index * (-math.log(TIME_MAX_PERIOD) / half))
        sinusoid = torch.cat([angles.cos(), angles.sin()])[None]
        return self.mlp_out(F.silu(self.mlp_in(sinusoid.to(self.mlp_in.weight.dtype))))


class ZImageFinalLayer(nn.Module):
    """Modulated layer norm and projection to patches."""

    def __init__(self, config: TransformerConfig, dtype: torch.dtype) -> None:
        super().__init__()
        patch = config.in_channels * PATCH * PATCH
        self.linear = nn.Linear(config.dim, patch, dtype=dtype)
        self.adaLN_modulation = nn.Linear(
            config.modulation_width, config.dim, dtype=dtype
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x: [B, S, D], time: [1, A] -> [B, S, 4 C]."""
        scale = self.adaLN_modulation(F.silu(time))
        normed = F.layer_norm(x, x.shape[-1:], eps=FINAL_NORM_EPS)
        return self.linear(normed * (1 + scale))


class ZImageTransformer(
    StepCachedTransformer, LayerwiseOffloadableModuleMixin, nn.Module
):
    """Predicts the direction from noise to picture.

    Args:
        config: Of ``transformer/config.json``.
        dtype: Compute dtype.
    """

    layer_names = ["layers"]  # noqa: RUF012  (SGLang reads it from the class)

    def __init__(self, config: TransformerConfig, *, dtype: torch.dtype) -> None:
        super().__init__()
        self._init_teacache_state()
        self.config = config
        self.dtype = dtype
        self.hidden_size, self.num_attention_heads = config.dim, config.n_heads
        dim, patch = config.dim, config.in_channels * PATCH * PATCH

        def blocks(count: int, *, is_modulated: bool) -> nn.ModuleList:
            return nn.ModuleList(
                ZImageBlock(config, dtype, is_modulated=is_modulated)
                for _ in range(count)
            )

        self.x_embedder = nn.Linear(patch, dim, dtype=dtype)
        self.t_embedder = ZImageTimeEmbedding(config, dtype)
        self.cap_norm = nn.RMSNorm(
            config.cap_feat_dim, eps=config.norm_eps, dtype=dtype
        )
        self.cap_embedder = nn.Linear(config.cap_feat_dim, dim, dtype=dtype)
        self.x_pad_token = nn.Parameter(torch.empty(1, dim, dtype=dtype))
        self.cap_pad_token = nn.Parameter(torch.empty(1, dim, dtype=dtype))
        self.noise_refiner = blocks(config.n_refiner_layers, is_modulated=True)
        self.context_refiner = blocks(config.n_refiner_layers, is_modulated=False)
        self.layers = blocks(config.n_layers, is_modulated=True)
        self.final_layer = ZImageFinalLayer(config, dtype)

    def refine_caption(self, caption: Tensor) -> Caption:
        """Everything that happens to the caption alone; once per request.

        Args:
            caption: [B, T, C] float32 rows.
        """
        rows = self.cap_embedder(self.cap_norm(caption.to(self.dtype)))
        rows = _pad_rows(rows, self.cap_pad_token)
        positions = torch.zeros(rows.shape[1], 3, dtype=torch.int64, device=rows.device)
        # Padding goes on counting.
        positions[:, 0] = torch.arange(1, rows.shape[1] + 1, device=rows.device)
        rotation = self._rotation(positions, (rows.shape[1], 0, 0))
        for block in self.context_refiner:
            rows = block(rows, rotation, None)
        return Caption(rows, rotation)

    def prepare_canvas(
        self, height: int, width: int, caption_rows: int, reference: Tensor | None
    ) -> Canvas:
        """Positions of the image tokens, and the embedded reference; once per request.

        Args:
            height: Of the latents.
            width: Of the latents.
            caption_rows: P, which the frames are numbered behind.
            reference: [B, C, height, width] latents of the reference, or None.
        """
        device = self.x_pad_token.device
        grid = (height // PATCH, width // PATCH)
        frames = 1 if reference is None else 2
        positions = torch.cartesian_prod(
            torch.arange(caption_rows + 1, caption_rows + 1 + frames, device=device),
            *(torch.arange(size, device=device) for size in grid),
        )
        padding = -len(positions) % TOKEN_MULTIPLE
        positions = F.pad(positions, (0, 0, 0, padding))
        embedded = None if reference is None else self._embed(reference)
        last = (caption_rows + frames, grid[0] - 1, grid[1] - 1)
        return Canvas(grid, embedded, self._rotation(positions, last))

    def forward(
        self, latents: Tensor, time: Tensor, caption: Caption, canvas: Canvas
    ) -> Tensor:
        """The model's output for every guidance branch.

        Args:
            latents: [B, C, h, w] float32.
            time: Scalar float32, ``(1000 - timestep) / 1000``: 0 is pure noise.
            caption: Of k B prompts, branch by branch.
            canvas: Of the B pictures.

        Returns:
            [k B, C, h, w] float32, from noise to picture: minus what the scheduler
            calls the velocity.
        """
        embedding = self.time_signal(time)
        x = self._embed(latents)
        num_tokens = x.shape[1]
        if canvas.reference is not None:
            x = torch.cat([x, canvas.reference], dim=1)
        x = _pad_rows(x, self.x_pad_token)  # [B, J, D]
        image, text = (build_shard_plan(n) for n in (x.shape[1], len(caption.rotation)))
        padded = x.shape[1]
        x = shard_like(x, image)
        rotation = shard_like(canvas.rotation, image, dim=0)
        for block in self.noise_refiner:
            x = block(x, rotation, embedding)
        branches = caption.rows.shape[0] // x.shape[0]
        local = x.shape[1]
        x = torch.cat([x.repeat(branches, 1, 1), shard_like(caption.rows, text)], dim=1)
        rotation = torch.cat([rotation, shard_like(caption.rotation, text, dim=0)])

        def blocks(x: Tensor) -> Tensor:
            for block in self.layers:
                x = block(x, rotation, embedding)
            return x

        x = self.run_blocks(x, blocks)
        patches = gather_seq(self.final_layer(x[:, :local], embedding), padded)
        return _to_latents(patches[:, :num_tokens].float(), canvas.grid)

    def time_signal(self, time: Tensor) -> Tensor:
        """What modulates all layers: scalar float32 -> [1, A]."""
        return self.t_embedder(time.float() * self.config.t_scale)

    def _embed(self, latents: Tensor) -> Tensor:
        return self.x_embedder(_to_patches(latents).to(self.dtype))

    def _rotation(self, positions: Tensor, last: tuple[int, int, int]) -> Tensor:
        """Of positions up to ``last``, which is known without asking the GPU."""
        config = self.config
        if any(end >= n for end, n in zip(last, config.axes_lens, strict=True)):
            raise ConfigError(
                f"positions up to {list(last)} are beyond the model's axes_lens "
                f"{config.axes_lens}"
            )
        return axes_rotation(positions, config.axes_dims, config.rope_theta)


def _pad_rows(rows: Tensor, token: Tensor) -> Tensor:
    """[B, S, D] -> S rounded up to a multiple of 32 with copies of a learned row."""
    missing = -rows.shape[1] % TOKEN_MULTIPLE
    if missing == 0:
        return rows
    return torch.cat([rows, token.expand(rows.shape[0], missing, -1)], dim=1)


def _to_patches(latents: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, I, 4 C]; a patch is (row, column, channel)."""
    patches = latents.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def _to_latents(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, I, 4 C] -> [B, C, h, w]."""
    split = patches.unflatten(2, (PATCH, PATCH, -1)).unflatten(1, grid)
    return split.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
