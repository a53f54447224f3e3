# SPDX-License-Identifier: Apache-2.0
"""Waveform -> log-mel frames of the audio tower (Whisper's front end).

Source: the official audio processor with its Whisper flag, which the official scripts
always set: 128 mel bands in the release, no padding to 30 seconds.
"""

import functools

import numpy as np
import torch
from torch import Tensor

SAMPLE_RATE = 16_000
_FFT, _HOP = 400, 160
_FLOOR = 1e-10
_RANGE = 8.0  # bels below the loudest cell that are kept


def log_mel(waveform: np.ndarray, bands: int) -> Tensor:
    """Log-mel frames of one clip.

    Args:
        waveform: [samples] float32 in [-1, 1] at 16 kHz; at least half a window.
        bands: Mel bands of the audio tower.

    Returns:
        [samples // 160, bands] float32.
    """
    samples = torch.from_numpy(np.ascontiguousarray(waveform, dtype=np.float32))
    window = torch.hann_window(_FFT)
    spectrum = torch.stft(samples, _FFT, _HOP, window=window, return_complex=True)
    power = spectrum[:, :-1].abs() ** 2
    bels = torch.log10(torch.clamp(_mel_filters(bands) @ power, min=_FLOOR))
    bels = torch.maximum(bels, bels.max() - _RANGE)
    return ((bels + 4.0) / 4.0).T.contiguous()


@functools.cache
def _mel_filters(bands: int) -> Tensor:
    """[bands, 201] float32: Slaney's mel scale, each triangle of unit area."""
    edges = _mel_to_hertz(
        np.linspace(_hertz_to_mel(0.0), _hertz_to_mel(SAMPLE_RATE / 2), bands + 2)
    )
    bins = np.linspace(0.0, SAMPLE_RATE / 2, _FFT // 2 + 1)
    slopes = edges[:, None] - bins[None, :]
    widths = np.diff(edges)
    rising = -slopes[:-2] / widths[:-1, None]
    falling = slopes[2:] / widths[1:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    area = 2.0 / (edges[2:] - edges[:-2])
    return torch.from_numpy(triangles * area[:, None]).float()


# Slaney's mel scale: linear below 1 kHz (15 mel), logarithmic above.
_LINEAR = 200.0 / 3.0
_BREAK_HERTZ, _BREAK_MEL = 1000.0, 15.0
_LOG_STEP = np.log(6.4) / 27.0


def _hertz_to_mel(hertz: float) -> float:
    if hertz < _BREAK_HERTZ:
        return hertz / _LINEAR
    return _BREAK_MEL + float(np.log(hertz / _BREAK_HERTZ)) / _LOG_STEP


def _mel_to_hertz(mel: np.ndarray) -> np.ndarray:
    above = _BREAK_HERTZ * np.exp(_LOG_STEP * (mel - _BREAK_MEL))
    return np.where(mel < _BREAK_MEL, mel * _LINEAR, above)
