# SPDX-License-Identifier: Apache-2.0
"""A request -> token ids, media items and positions, in SGLang's tokenizer process."""

import secrets
from pathlib import Path
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import (
    Modality,
    MultimodalDataItem,
    MultimodalProcessorOutput,
)
from sglang.srt.utils.hf_transformers.common import download_from_hf
from torch import Tensor

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.media.processor import ThreadedProcessor
from sglang_ext_gen.models.ming_omni.thinker import media, prompt, query_states
from sglang_ext_gen.models.ming_omni.thinker.audio import AudioConfig
from sglang_ext_gen.models.ming_omni.thinker.audio_input import log_mel
from sglang_ext_gen.models.ming_omni.thinker.checkpoint import query_scales
from sglang_ext_gen.models.ming_omni.thinker.model import (
    BailingMM2NativeForConditionalGeneration,
)
from sglang_ext_gen.models.ming_omni.thinker.prompt import Kind, Prompt, Span
from sglang_ext_gen.models.ming_omni.thinker.tokens import MediaTokens
from sglang_ext_gen.models.ming_omni.thinker.visual_input import (
    MERGE,
    VisualInput,
    image_input,
    resized_video_inputs,
    video_inputs,
)
from sglang_ext_gen.models.ming_omni.thinker_protocol import QUERY_BLOCK

# Seconds of sound per position of the audio tower.
_SECONDS_PER_POSITION = 0.02
_HASH_BITS = 62
# Media of one request; each may take seconds to decode.
MAX_MEDIA = 128


class MingOmniMultimodalProcessor(ThreadedProcessor):
    """Requests with media, or with a query block, for the Ming thinker."""

    models = [BailingMM2NativeForConditionalGeneration]  # noqa: RUF012 SGLang's type

    def __init__(
        self,
        hf_config: Any,
        server_args: Any,
        _processor: Any,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(hf_config, server_args, _processor, *args, **kwargs)
        self.tokens = MediaTokens.resolve(_processor.tokenizer)
        self.audio = AudioConfig.from_released(hf_config.audio_config)
        self.max_seconds = self.audio.n_ctx * _SECONDS_PER_POSITION
        folder = download_from_hf(
            hf_config._name_or_path, allow_patterns=["mlp/config.json"]
        )
        self.scales = query_scales(Path(folder))

    def prepare(
        self,
        text: str | list[int],
        images: list[Any],
        videos: list[Any],
        audios: list[Any],
    ) -> MultimodalProcessorOutput:
        """See ``ThreadedProcessor``; ``images`` may end with the query block."""
        count = len(images) + len(videos) + len(audios)
        if count > MAX_MEDIA:
            raise RequestError("media", f"{count} given, at most {MAX_MEDIA} allowed")
        blocks = [item for item in images if _is_query_block(item)]
        pictures = [
            image_input(media.load_image(item))
            for item in images
            if not _is_query_block(item)
        ]
        sampled = [_video(item) for item in videos]
        clips = [
            log_mel(media.load_waveform(item, self.max_seconds), self.audio.n_mels)
            for item in audios
        ]
        expanded = prompt.expand(
            text if isinstance(text, str) else str(self._tokenizer.decode(text)),
            [prompt.image_piece(_token_grid(picture)) for picture in pictures],
            [prompt.video_piece(_token_grid(v[0]), stamps) for v, stamps in sampled],
            [prompt.audio_piece(self.audio.tokens(len(clip))) for clip in clips],
            self._tokenizer.encode,
            self.tokens,
        )
        if blocks:
            expanded = self._with_query_blocks(expanded, images)
        features: dict[Kind, list[Any]] = {
            "image": pictures,
            "frame": [frame for frames, _ in sampled for frame in frames],
            "audio": clips,
            "query": list(self.scales),
        }
        queues = {kind: iter(values) for kind, values in features.items()}
        items = [_item(span, next(queues[span.kind])) for span in expanded.spans]
        return self._output(expanded, items)

    def _with_query_blocks(self, expanded: Prompt, images: list[Any]) -> Prompt:
        if not self.scales:
            raise RequestError(
                "image_data",
                "this checkpoint has no mlp/config.json, so no query tokens",
            )
        is_block = [_is_query_block(item) for item in images]
        if sum(is_block) != 1 or not is_block[-1]:
            raise RequestError("image_data", "give the query block once, and last")
        return prompt.append_query_blocks(expanded, self.scales, self.tokens)

    def _output(
        self, expanded: Prompt, items: list[MultimodalDataItem]
    ) -> MultimodalProcessorOutput:
        positions, following = prompt.position_ids(expanded)
        delta = following - len(expanded.ids)
        return MultimodalProcessorOutput(
            mm_items=items,
            input_ids=expanded.ids,
            # SGLang leaves out the modalities whose id is not given.
            im_token_id=self.tokens.image_patch,
            video_token_id=self.tokens.frame_patch,
            audio_token_id=self.tokens.audio_patch,
            mrope_positions=positions,
            mrope_position_delta=torch.tensor([[delta]]),
        )


def _is_query_block(item: Any) -> bool:
    # In process an item may be an array, whose == is no bool.
    return isinstance(item, str) and item == QUERY_BLOCK


def _video(source: Any) -> tuple[list[VisualInput], list[float]]:
    frames, size = media.load_video(source)
    if size is None:
        return video_inputs(frames)
    return resized_video_inputs(frames, *size)


def _token_grid(visual: VisualInput) -> tuple[int, int]:
    return visual.grid[0] // MERGE, visual.grid[1] // MERGE


def _item(span: Span, value: Any) -> MultimodalDataItem:
    """SGLang's item for one span; pictures, frames and clips are cached by content."""
    if span.kind == "query":
        # No feature: the model has the rows. SGLang's transport refuses empty tensors.
        item = _media_item(Modality.IMAGE, span, torch.zeros(1))
        item.model_specific_data[query_states.SCALE] = value
        # A random hash: the block is never found in the prefix cache.
        item.set_hash(secrets.randbits(_HASH_BITS))
        return item
    if span.kind == "audio":
        return _media_item(Modality.AUDIO, span, value)
    is_image = span.kind == "image"
    modality = Modality.IMAGE if is_image else Modality.VIDEO
    item = _media_item(modality, span, value.patches)
    grid = torch.tensor([[1, *value.grid]])
    item.model_specific_data["image_grid_thw" if is_image else "video_grid_thw"] = grid
    return item


def _media_item(modality: Modality, span: Span, feature: Tensor) -> MultimodalDataItem:
    return MultimodalDataItem(
        modality=modality, feature=feature, offsets=[span.offsets]
    )
