# SPDX-License-Identifier: Apache-2.0
"""What stock's stages ask of the pipeline: positions, masks, sizes of references.

Subclasses of stock's configs that change only the contracts named in ``README.md``.
The classes are pickled to every worker, so they stay at module level.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from sglang.multimodal_gen.configs.models import DiTConfig
from sglang.multimodal_gen.configs.models.dits.qwenimage import QwenImageDitConfig
from sglang.multimodal_gen.configs.pipeline_configs.qwen_image import (
    QwenImageEditPlusPipelineConfig,
    QwenImagePipelineConfig,
    _shard_qwen_edit_freqs_cis_for_sp,
)
from sglang.multimodal_gen.runtime.distributed import get_local_torch_device
from sglang.multimodal_gen.runtime.platforms import current_platform
from sglang.multimodal_gen.runtime.utils.vision import preprocess_image
from torch import Tensor

from sglang_ext_gen.checkpoint.component import refuse
from sglang_ext_gen.diffusion.pipeline_config import FamilyPipelineConfig
from sglang_ext_gen.errors import ConfigError
from sglang_ext_gen.models.qwen_image.checkpoint import (
    check_checkpoint,
    components_from_elsewhere,
)
from sglang_ext_gen.models.qwen_image.options import LOAD_OPTIONS, STOCK_OPTIONS
from sglang_ext_gen.models.qwen_image.references import size_for_pixels
from sglang_ext_gen.models.qwen_image.request import (
    DEFAULT_REFERENCE_PIXELS,
    PIXELS_PER_TOKEN,
)
from sglang_ext_gen.request.fields import carries

# SGLang's Req. Its types call every field optional; earlier stages fill them.
Request = Any
# Tokens of the chat template in front of the prompt, which the model never sees.
TEMPLATE_TOKENS = 34
# The reference tokenises at most this many prompt tokens.
_MAX_PROMPT_TOKENS = 1024
# What the text encoder looks at: the first release sees the picture at full size.
_LOOK_PIXELS, _FIRST_LOOK_PIXELS = 384 * 384, 1024 * 1024
_EDIT_TEMPLATE = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, "
    "size, texture, objects, background), then explain how the user's text "
    "instruction should alter or modify the image. Generate a new image that meets "
    "the user's requirements while maintaining consistency with the original input "
    "where appropriate.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"


_MADE = "it quantises the bf16 weights of the release while it loads them"
# Server arguments that our loader of FP8 weights does not follow, and why.
_NOT_WITH_FP8 = {
    "use_fsdp_inference": "FSDP would shard a weight without its scale, use tensor or "
    "sequence parallelism",
    "quantization": "choose one of the two",
    "quantization_ignored_layers": "it quantises all linears of the transformer",
    "transformer_weights_path": _MADE,
    "direct_gpu_weight_loading": _MADE,
    "nunchaku_config": _MADE,
}
_OF_EACH_COMPONENT = (
    "component_quantizations",
    "component_quantization_ignored_layers",
    "component_weights_paths",
    "component_direct_gpu_weight_loading",
)


@dataclass
@carries(LOAD_OPTIONS)
class QwenImageConfig(FamilyPipelineConfig):
    """What generation and edits share."""

    load_options = LOAD_OPTIONS
    stock_options = STOCK_OPTIONS
    other_components: ClassVar[tuple[str, ...]] = ("tokenizer", "scheduler")
    # A component that stock's strict loaders refuse must not be loaded by diffusers.
    native_only_components: ClassVar[tuple[str, ...]] = (
        "transformer",
        "text_encoder",
        "vae",
    )
    # Noise is always drawn on the CPU: the same seed gives the same picture
    # on any device.
    generator_device: str | None = "cpu"
    dit_config: DiTConfig = field(default_factory=QwenImageDitConfig)
    transformer_class_override: str | None = "QwenImageExtTransformer"

    def get_latent_dtype(self, prompt_dtype: torch.dtype) -> torch.dtype:
        """Latents and Euler steps are float32 whatever the model computes in."""
        return torch.float32

    def check_options(self, server_args: Any) -> None:
        """Refuse what our FP8 weights or a CPU cannot do, and a damaged checkpoint.

        Raises:
            ConfigError: Names the options.
            CheckpointError: Names what is wrong with the checkpoint.
        """
        if self.weight_format == "fp8":
            for name, reason in _NOT_WITH_FP8.items():
                if getattr(server_args, name):
                    raise ConfigError(f"{name}: not with weight_format fp8; {reason}")
            for name in _OF_EACH_COMPONENT:
                if getattr(server_args, name).get("transformer"):
                    raise ConfigError(
                        f"{name}.transformer: not with weight_format fp8; {_MADE}"
                    )
        if current_platform.is_cpu() and server_args.has_layerwise_offload_components():
            # Stock would find it in a worker, after loading.
            raise ConfigError(
                "dit_layerwise_offload: there is no accelerator to offload from"
            )
        folder = Path(server_args.model_path)
        if folder.is_dir():
            without = components_from_elsewhere(server_args)
            refuse(folder, check_checkpoint(folder, without))


@dataclass
class QwenImageExtPipelineConfig(QwenImageConfig, QwenImagePipelineConfig):
    """Text to image."""

    def tokenize_prompt(
        self, prompts: list[str], tokenizer: Any, tok_kwargs: dict[str, Any]
    ) -> Any:
        """Tokenise as the reference does: no padding, template beyond the limit.

        Stock takes ``max_sequence_length`` for the length with the template and
        pads to it.
        """
        kwargs = {
            **tok_kwargs,
            "max_length": _MAX_PROMPT_TOKENS + TEMPLATE_TOKENS,
            "padding": True,
            "truncation": True,
        }
        return tokenizer(prompts, **kwargs)


@dataclass
class QwenImageEditExtPipelineConfig(QwenImageConfig, QwenImageEditPlusPipelineConfig):
    """Edits with one or several references, for all three releases.

    Args:
        is_first_release: Whether the checkpoint is Qwen-Image-Edit without a date;
            set by the pipeline from ``model_index.json``.
    """

    other_components: ClassVar[tuple[str, ...]] = (
        *QwenImageConfig.other_components,
        "processor",
    )
    is_first_release: bool = False

    def prepare_image_processor_kwargs(
        self, batch: Request, neg: bool = False
    ) -> dict[str, Any]:
        """Text and pictures for the text encoder; an empty prompt is a prompt."""
        images = batch.condition_image
        count = len(images) if isinstance(images, list) else 1
        pictures = _PICTURE
        if not self.is_first_release:
            pictures = "".join(f"Picture {i + 1}: {_PICTURE}" for i in range(count))
        prompt = batch.negative_prompt if neg else batch.prompt
        return {
            "text": [_EDIT_TEMPLATE.format(pictures + prompt)],
            "padding": True,
            "per_prompt_images": [images],
        }

    def calculate_condition_image_size(
        self, image: Any, width: int, height: int
    ) -> tuple[int, int]:
        """Size at which the text encoder looks at a reference."""
        pixels = _FIRST_LOOK_PIXELS if self.is_first_release else _LOOK_PIXELS
        return size_for_pixels(pixels, width, height)

    def calculate_vae_image_size(
        self, image: Any, width: int, height: int
    ) -> tuple[int, int]:
        """Default size at which a reference is encoded, and of the picture."""
        return size_for_pixels(DEFAULT_REFERENCE_PIXELS, width, height)

    def preprocess_vae_image(self, batch: Request, vae_image_processor: Any) -> Request:
        """Resize each reference for the VAE, to about ``reference_pixels``.

        Sets ``batch.vae_image`` (tensors [1, 3, h, w] from -1 to 1) and
        ``batch.vae_image_sizes`` (width, height).
        """
        pixels = batch.sampling_params.reference_pixels or DEFAULT_REFERENCE_PIXELS
        images: Sequence[Any] = batch.condition_image
        sizes = [size_for_pixels(pixels, *image.size) for image in images]
        device = get_local_torch_device()
        batch.vae_image = [
            preprocess_image(image, device=device, size=size)
            for image, size in zip(images, sizes, strict=True)
        ]
        batch.vae_image_sizes = sizes
        return batch

    def postprocess_image_latent(
        self, latent_condition: Tensor, batch: Request
    ) -> Tensor:
        """[1, C / 4, 1, h, w] -> [1, I, C]; a group of requests is joined later."""
        _, channels, _, height, width = latent_condition.shape
        patches = latent_condition.reshape(channels, height // 2, 2, width // 2, 2)
        return patches.permute(1, 3, 0, 2, 4).reshape(1, -1, channels * 4)

    def _prepare_edit_cond_kwargs(
        self,
        batch: Request,
        prompt_embeds: list[Tensor],
        rotary_emb: Any,
        device: torch.device,
        dtype: torch.dtype,
        *,
        negative: bool = False,
    ) -> dict[str, Any]:
        """Positions and masks of a batch whose rows have the same geometry."""
        rows, text_length = prompt_embeds[0].shape[:2]
        grids = [
            (1, height // PIXELS_PER_TOKEN, width // PIXELS_PER_TOKEN)
            for width, height in [(batch.width, batch.height), *batch.vae_image_sizes]
        ]
        lengths, mask = self._prepare_text_conditioning(
            batch, 0, text_length, rows, negative=negative
        )
        img_shapes = [grids] * rows
        real, complex_ = self.get_freqs_cis(
            img_shapes, lengths, rotary_emb, device, dtype
        )
        own_tokens = grids[0][1] * grids[0][2]
        return {
            "txt_seq_lens": lengths,
            "freqs_cis": _shard_qwen_edit_freqs_cis_for_sp(real, own_tokens, device),
            "freqs_complex": _shard_qwen_edit_freqs_cis_for_sp(
                complex_, own_tokens, device
            ),
            "img_shapes": img_shapes,
            "encoder_hidden_states_mask": mask,
        }
