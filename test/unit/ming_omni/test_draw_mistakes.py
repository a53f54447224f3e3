# SPDX-License-Identifier: Apache-2.0
"""The wrong variants that golden.json lists, made here one at a time.

Each must lose what the official code loses with the same mistake: so the mistake is
caught, and the step that it is in does what the official step does.
"""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from conftest import Golden
from ming_drawing import golden_request
from ming_studio import StoredThinker, Studio, golden_answers, psnr, stored_levels
from sglang_ext_gen.models.ming_omni import connector, schedule

pytestmark = pytest.mark.slow

# Of the loss in dB; both runs round to 8 bits and add in different orders.
TOLERANCE_DB = 0.6
Make = Callable[[Studio, pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def studio(omni_golden: Golden, diffusion_runtime: Any) -> Studio:
    thinker = StoredThinker(golden_answers(omni_golden))
    return Studio(omni_golden, thinker, diffusion_runtime)


def patched(find: Callable[[Studio], Any], name: str, value: Any) -> Make:
    """Replace one attribute of what ``find`` finds."""
    return lambda studio, monkeypatch: monkeypatch.setattr(find(studio), name, value)


def stages(studio: Studio) -> Any:
    """The module, which imports SGLang."""
    from sglang_ext_gen.models.ming_omni import stages

    return stages


def in_module(module: Any, name: str, value: Any) -> Make:
    return patched(lambda studio: module, name, value)


def changed(find: Callable[[Studio], Any], name: str, **values: Any) -> Make:
    """Replace fields of a frozen dataclass."""

    def make(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
        owner = find(studio)
        monkeypatch.setattr(owner, name, replace(getattr(owner, name), **values))

    return make


def wrapped(find: Callable[[Studio], Any], name: str, change: Callable) -> Make:
    """Change what a method returns; ``change`` gets the result and the arguments."""

    def make(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
        owner = find(studio)
        original = getattr(owner, name)

        def call(*arguments: Any) -> Any:
            return change(original(*arguments), *arguments)

        monkeypatch.setattr(owner, name, call)

    return make


def causal_attention(*arguments: Any, **options: Any) -> Tensor:
    return F.scaled_dot_product_attention(*arguments, **options, is_causal=True)


def trimmed(rows: Tensor | None, batch: Any) -> Tensor | None:
    return None if rows is None else rows[rows.abs().sum(dim=1) > 0]


def with_glyphs_against(made: Any, batch: Any, rows: list[Tensor]) -> Any:
    negative = made.caption.clone()
    negative[: len(rows[0])] = 0
    return replace(made, negative=negative)


def without_reference(made: Any, batch: Any, rows: list[Tensor]) -> Any:
    return replace(made, reference=None)


def default_sigma_min(config: Any, steps: int, tokens: int) -> Tensor:
    def shifted(sigma: Tensor) -> Tensor:
        return config.shift * sigma / (1 + (config.shift - 1) * sigma)

    lowest = float(shifted(torch.tensor(1 / config.num_train_timesteps)))
    sigmas = shifted(torch.linspace(1, lowest, steps, dtype=torch.float64).float())
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def bfloat16_noise(seed: int, channels: int, height: int, width: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (1, channels, height, width)
    return torch.randn(shape, generator=generator, dtype=torch.bfloat16).float()


def resized(filter_: Image.Resampling) -> Callable[..., Image.Image]:
    return lambda image, height, width: image.resize((width, height), filter_)


def cropped(image: Image.Image, height: int, width: int) -> Image.Image:
    return ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)


def unscaled(latents: Tensor, image: Image.Image) -> Tensor:
    return latents / 0.3611 + 0.1159


def pixels_from_zero(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    config, vae = studio.condition.vae_config, studio.decode.modules["vae"]

    def to_latents(image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None]
        encoded: Any = vae.encode(pixels.float() / 255)  # type: ignore[operator]
        mean = encoded.latent_dist.mode()
        return (mean - config.shift_factor) * config.scaling_factor

    monkeypatch.setattr(studio.condition, "_to_latents", to_latents)


def pad_tokens_of_zero(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    transformer: Any = studio.denoise.transformer
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        monkeypatch.setattr(token, "data", torch.zeros_like(token))


def unmasked_glyphs(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = studio.condition.modules["glyph_encoder"]

    def forward(ids: Tensor, mask: Tensor) -> Tensor:
        rows = module.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return module.mapper(rows, mask).float()

    monkeypatch.setattr(module, "forward", forward)


def condition(studio: Studio) -> Any:
    return studio.condition


def connector_of(studio: Studio) -> Any:
    return studio.condition.modules["text_encoder"].connector


def unchanged(rows: Tensor) -> Tensor:
    return rows


MISTAKES: dict[str, Make] = {
    "connector_causal": in_module(
        connector,
        "F",
        SimpleNamespace(
            silu=F.silu,
            normalize=F.normalize,
            scaled_dot_product_attention=causal_attention,
        ),
    ),
    # A module cannot be replaced for a while, its forward can.
    "connector_without_final_norm": patched(
        lambda studio: connector_of(studio).norm, "forward", unchanged
    ),
    "connector_skipped": patched(connector_of, "forward", unchanged),
    "byt5_padding_trimmed": wrapped(condition, "_glyph_rows", trimmed),
    "byt5_dropped": wrapped(condition, "_glyph_rows", lambda rows, batch: None),
    "byt5_padding_not_zeroed": unmasked_glyphs,
    "byt5_text_without_trailing_space": wrapped(
        stages, "quoted_text", lambda text, prompt: text.rstrip()
    ),
    "byt5_span_without_wrapper_text": patched(
        stages, "quoted_text", lambda prompt: prompt.split('"')[1]
    ),
    "byt5_rows_kept_on_negative_side": wrapped(
        condition, "_finish", with_glyphs_against
    ),
    "cfg_as_uncond_plus_g_times_diff": in_module(
        schedule, "combine", lambda pos, neg, scale: neg + scale * (pos - neg)
    ),
    "cfg_off": in_module(schedule, "uses_guidance", lambda scale: False),
    "cfg_threshold_g_gt_0": in_module(schedule, "uses_guidance", lambda g: g > 0),
    "dynamic_shift": changed(
        lambda studio: studio.denoise, "config", use_dynamic_shifting=True
    ),
    "sigma_min_not_zeroed": in_module(schedule, "make_sigmas", default_sigma_min),
    "other_noise": patched(stages, "output_seeds", lambda batch: [batch.seed + 1]),
    "noise_drawn_in_bfloat16": in_module(schedule, "draw_noise", bfloat16_noise),
    "learned_pad_tokens_zeroed": pad_tokens_of_zero,
    "vae_decode_without_shift": changed(
        lambda studio: studio.decode, "config", shift_factor=0.0
    ),
    "vae_decode_without_scale_and_shift": changed(
        lambda studio: studio.decode, "config", shift_factor=0.0, scaling_factor=1.0
    ),
    "vae_reference_ignored": wrapped(condition, "_finish", without_reference),
    "reference_resize_bicubic": patched(
        stages, "stretched", resized(Image.Resampling.BICUBIC)
    ),
    "reference_resize_lanczos": patched(
        stages, "stretched", resized(Image.Resampling.LANCZOS)
    ),
    "reference_crop_instead_of_stretch": patched(stages, "stretched", cropped),
    "reference_latent_unscaled": wrapped(condition, "_to_latents", unscaled),
    "reference_pixels_0_to_1": pixels_from_zero,
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_loses_what_it_loses_officially(name, studio, omni_golden, monkeypatch):
    listed = omni_golden.json["sensitivity"]["results"][name]
    case = next(iter(listed))
    with monkeypatch.context() as patches, torch.no_grad():
        MISTAKES[name](studio, patches)
        request = studio.request(**golden_request(omni_golden, case))
        [levels] = studio.draw([request])
    found = psnr(levels[0], stored_levels(omni_golden, case))
    assert found == pytest.approx(listed[case]["psnr_db"], abs=TOLERANCE_DB)
