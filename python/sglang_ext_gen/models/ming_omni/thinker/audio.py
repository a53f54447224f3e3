# SPDX-License-Identifier: Apache-2.0
"""The audio tower (a Whisper encoder) and its projector.

Source: the official model code (``audio.*`` and ``linear_proj_audio.*``). Deviation:
each clip is encoded on its own. The official code pads the shorter clips of a request
with silence and attends over the padding, so that a clip's features depend on its
neighbours; clips of one length give the same result either way, and only so can an
encoded clip be cached.

Replicated over tensor-parallel ranks: 0.6 GB against 200 GB of experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglang_ext_gen.errors import RequestError


@dataclass(frozen=True)
class AudioConfig:
    """``audio_config`` of the released file; ``n_*`` are Whisper's names."""

    n_ctx: int
    n_head: int
    n_layer: int
    n_mels: int
    n_state: int
    ds_kernel_size: int
    ds_stride: int

    @classmethod
    def from_released(cls, config: Any) -> "AudioConfig":
        """From SGLang's ``WhisperEncoderConfig``."""
        return cls(
            **config.whisper_encoder_config,
            ds_kernel_size=config.ds_kernel_size,
            ds_stride=config.ds_stride,
        )

    @property
    def max_frames(self) -> int:
        """Longest clip in mel frames (100 per second)."""
        return 2 * self.n_ctx

    def tokens(self, frames: int) -> int:
        """Language model tokens of a clip of mel frames; 25 a second in the release."""
        features = (frames - 1) // 2 + 1
        kernel = self.ds_kernel_size
        return (features + kernel // 2 * 2 - kernel) // self.ds_stride + 1


class AudioAttention(nn.Module):
    """Full self-attention; the key projection has no bias."""

    def __init__(self, n_state: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.query = nn.Linear(n_state, n_state)
        self.key = nn.Linear(n_state, n_state, bias=False)
        self.value = nn.Linear(n_state, n_state)
        self.out = nn.Linear(n_state, n_state)

    def forward(self, x: Tensor) -> Tensor:
        # x: [1, M, n_state]
        heads = [
            part.unflatten(-1, (self.n_head, -1)).transpose(1, 2)
            for part in (self.query(x), self.key(x), self.value(x))
        ]
        return self.out(
            F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        )


class AudioBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, n_state: int, n_head: int) -> None:
        super().__init__()
        self.attn = AudioAttention(n_state, n_head)
        self.attn_ln = nn.LayerNorm(n_state)
        self.mlp = nn.Sequential(
            nn.Linear(n_state, 4 * n_state), nn.GELU(), nn.Linear(4 * n_state, n_state)
        )
        self.mlp_ln = nn.LayerNorm(n_state)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.attn_ln(x))
        return x + self.mlp(self.mlp_ln(x))


class AudioTower(nn.Module):
    """Log-mel frames -> features, at half the frame rate."""

    positional_embedding: Tensor

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.max_frames = config.max_frames
        self.conv1 = nn.Conv1d(config.n_mels, config.n_state, 3, padding=1)
        self.conv2 = nn.Conv1d(config.n_state, config.n_state, 3, stride=2, padding=1)
        # Whisper's sinusoids, taken from the checkpoint, which rounds them to bf16.
        self.register_buffer(
            "positional_embedding", torch.empty(config.n_ctx, config.n_state)
        )
        self.blocks = nn.ModuleList(
            AudioBlock(config.n_state, config.n_head) for _ in range(config.n_layer)
        )
        self.ln_post = nn.LayerNorm(config.n_state)

    def forward(self, mel: Tensor) -> Tensor:
        """Encode one clip.

        Args:
            mel: [M, n_mels].

        Returns:
            [(M - 1) // 2 + 1, n_state].

        Raises:
            RequestError: The clip is longer than the tower has positions for.
        """
        if mel.shape[0] > self.max_frames:
            raise RequestError("audio", f"at most {self.max_frames / 100:g} s allowed")
        x = F.gelu(self.conv1(mel.T[None]))
        x = F.gelu(self.conv2(x)).transpose(1, 2)
        x = x + self.positional_embedding[: x.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.ln_post(x)[0]


class AudioProjector(nn.Sequential):
    """Tower features -> embeddings of the language model, at half their rate."""

    def __init__(self, config: AudioConfig, hidden_size: int) -> None:
        # Positions 0 and 3 carry the weights, as on disk.
        super().__init__(
            nn.Conv1d(
                config.n_state,
                hidden_size,
                config.ds_kernel_size,
                stride=config.ds_stride,
                padding=config.ds_kernel_size // 2,
            ),
            _ChannelsLast(),
            nn.GELU(),
            nn.Linear(hidden_size, hidden_size),
        )

    def forward(self, input: Tensor) -> Tensor:
        """[M, n_state] -> [tokens, D] float32, each row of length 1."""
        return F.normalize(super().forward(input.T[None])[0].float(), dim=-1)


class _ChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def encode_clips(
    tower: AudioTower, projector: AudioProjector, clips: Sequence[Tensor]
) -> list[Tensor]:
    """Embeddings of each clip, encoded one by one.

    Args:
        clips: [M, n_mels] each.

    Returns:
        [tokens, D] float32 each.
    """
    weight = tower.conv1.weight
    return [
        projector(tower(clip.to(device=weight.device, dtype=weight.dtype)))
        for clip in clips
    ]
