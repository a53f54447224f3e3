# SPDX-License-Identifier: Apache-2.0
"""A request -> token ids, patches and positions, in SGLang's tokenizer process."""

from typing import Any

import torch
from sglang.srt.managers.schedule_batch import (
    Modality,
    MultimodalDataItem,
    MultimodalProcessorOutput,
)

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.media.checks import read_media
from sglang_ext_gen.media.processor import ThreadedProcessor
from sglang_ext_gen.models.lance import sources, visual_input
from sglang_ext_gen.models.lance.config import LanceVisionConfig
from sglang_ext_gen.models.lance.packing import SpecialTokens
from sglang_ext_gen.models.lance.tasks import RESOLUTIONS, TASKS
from sglang_ext_gen.models.lance.thinker import prompt

# What an item carries besides its patches.
GRID, MARKERS = "lance_grid", "lance_markers"


class LanceMultimodalProcessor(ThreadedProcessor):
    """Questions about one picture or one video.

    The size preset is the official one of the medium; ``--mm-process-config`` may set
    another: ``{"image": {"resolution": "image_512res"}}``.
    """

    def __init__(
        self,
        hf_config: Any,
        server_args: Any,
        _processor: Any,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(hf_config, server_args, _processor, *args, **kwargs)
        self.text_tokenizer = _processor.tokenizer
        self.special = SpecialTokens.from_tokenizer(self.text_tokenizer)
        self.vision = LanceVisionConfig.from_dict(
            hf_config.vision_config, "vision_config"
        )
        self.resolutions = {
            "image": _resolution(self.image_config, "image"),
            "video": _resolution(self.video_config, "video"),
        }

    def prepare(
        self,
        text: str | list[int],
        images: list[Any],
        videos: list[Any],
        audios: list[Any],
    ) -> MultimodalProcessorOutput:
        """See ``ThreadedProcessor``; at most one medium."""
        if audios:
            raise RequestError("audio", "Lance does not hear")
        if len(images) + len(videos) > 1:
            raise RequestError(
                "image" if images else "video",
                f"{len(images) + len(videos)} media given, Lance takes one picture or "
                "one video a request",
            )
        medium = "image" if images else "video"
        if not isinstance(text, str):
            text = str(self.text_tokenizer.decode(text))
        has_medium = bool(images or videos)
        if has_medium and prompt.PLACEHOLDER not in text:
            text = prompt.wrap_question(text, medium)
        patches, grid = None, None
        if has_medium:
            data = read_media((images or videos)[0], medium)
            frames = [sources.read_image(data)] if images else sources.read_video(data)
            patches, grid = visual_input.vit_patches(
                frames, self.resolutions[medium], self.vision
            )
        ids = self.text_tokenizer.encode(text, add_special_tokens=False)
        merge = self.vision.spatial_merge_size
        merged = (grid[0], grid[1] // merge, grid[2] // merge) if grid else None
        expanded = prompt.expand(ids, merged, self.special)
        item = None
        if patches is not None and expanded.offsets is not None:
            item = MultimodalDataItem(
                modality=Modality.IMAGE if images else Modality.VIDEO,
                feature=patches,
                offsets=[expanded.offsets],
            )
            item.model_specific_data[GRID] = grid
            item.model_specific_data[MARKERS] = (
                self.special.vision_start,
                self.special.vision_end,
            )
        return self._output(expanded, item)

    def _output(
        self, expanded: prompt.ExpandedPrompt, item: MultimodalDataItem | None
    ) -> MultimodalProcessorOutput:
        ids = torch.cat([segment.token_ids for segment in expanded.segments])
        positions = torch.cat([s.position_ids for s in expanded.segments], dim=1)
        delta = int(positions.max()) + 1 - len(ids)
        return MultimodalProcessorOutput(
            mm_items=[item] if item is not None else [],
            input_ids=ids.tolist(),
            # SGLang leaves out the modalities whose id is not given.
            im_token_id=self.special.placeholder,
            video_token_id=self.special.placeholder,
            mrope_positions=positions,
            mrope_position_delta=torch.tensor([[delta]]),
        )


def _resolution(config: dict[str, Any], medium: str) -> str:
    """The size preset of a medium.

    Raises:
        RequestError: ``--mm-process-config`` names none of the presets.
    """
    name = config.get("resolution", TASKS[f"x2t_{medium}"].resolution)
    if name not in RESOLUTIONS:
        allowed = ", ".join(RESOLUTIONS)
        raise RequestError("resolution", f"{name!r} given, expected one of {allowed}")
    return name
