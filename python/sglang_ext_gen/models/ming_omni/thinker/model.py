# SPDX-License-Identifier: Apache-2.0
"""The thinker: towers, query tokens and decoder, on top of SGLang's Bailing classes.

Data flow: token ids and media items -> embeddings (towers, projectors of unit length,
learnable query tokens) -> decoder -> final norm -> logits, and the hidden states of
query tokens where a request asks for them.

The class keeps SGLang's architecture name: its lists of multimodal architectures and of
those with three routers go by name. What SGLang's own class lacks and this one has:
audio, learnable query tokens, weights that are proved complete, a vision tower without
the unused deepstack mergers, and CPU operation.
"""

import copy
import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.managers.mm_utils import prepare_mm_inputs
from sglang.srt.managers.schedule_batch import MultimodalDataItem
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, PPProxyTensors
from sglang.srt.models.bailing_mm import (
    BailingMM2NativeForConditionalGeneration as StockThinker,
)
from sglang.srt.models.bailing_moe import BailingMoESparseMoeBlock
from sglang.srt.platforms import current_platform
from sglang.srt.utils.hf_transformers.common import download_from_hf
from torch import Tensor, nn

from sglang_ext_gen.errors import ConfigError
from sglang_ext_gen.models.ming_omni.thinker import query_states
from sglang_ext_gen.models.ming_omni.thinker.audio import (
    AudioConfig,
    AudioProjector,
    AudioTower,
    encode_clips,
)
from sglang_ext_gen.models.ming_omni.thinker.checkpoint import THINKER, query_scales
from sglang_ext_gen.models.ming_omni.thinker.config import MingOmniThinkerConfig
from sglang_ext_gen.models.ming_omni.thinker.tensors import thinker_specs
from sglang_ext_gen.models.ming_omni.thinker.weights import (
    load_query_tokens,
    load_thinker,
)
from sglang_ext_gen.platforms.cpu_reference import CpuReferencePlatform

logger = logging.getLogger(__name__)

_SIDE_FILES = ["config.json", "mlp/config.json", "mlp/model.safetensors"]


class BailingMM2NativeForConditionalGeneration(StockThinker):
    """Ming-flash-omni 2.0's thinker under SGLang's name for it."""

    def __init__(
        self,
        config: MingOmniThinkerConfig,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        # SGLang's class refuses a config with audio, which is built below.
        without_audio = copy.copy(config)
        without_audio.audio_config = None
        super().__init__(without_audio, quant_config, prefix)
        self.config = config
        if self.pp_group.world_size > 1:
            raise ConfigError(
                "the Ming thinker cannot be split into pipeline stages; use --tp-size"
            )
        self.folder = Path(
            download_from_hf(config._name_or_path, allow_patterns=_SIDE_FILES)
        )
        hidden = config.llm_config.hidden_size
        audio_config = AudioConfig.from_released(config.audio_config)
        self.audio = AudioTower(audio_config)
        self.linear_proj_audio = AudioProjector(audio_config, hidden)
        self.query_tokens = nn.ParameterDict(
            {
                f"{side}x{side}": nn.Parameter(torch.empty(side * side, hidden))
                for side in query_scales(self.folder)
            }
        )
        if isinstance(current_platform, CpuReferencePlatform):
            self._scale_experts_in_router()

    def _scale_experts_in_router(self) -> None:
        # SGLang's plain-torch experts ignore routed_scaling_factor (2.5); on every
        # other path the expert kernel or the router applies it.
        for module in self.modules():
            if isinstance(module, BailingMoESparseMoeBlock):
                module.topk.topk_config.apply_routed_scaling_factor_on_output = True

    def get_image_feature(self, items: list[MultimodalDataItem]) -> list[Tensor]:
        """Embeddings of pictures and query blocks, one [tokens, D] per item."""
        pictures = [item for item in items if not query_states.is_query_block(item)]
        encoded = iter(self._encode_pictures(pictures))
        return [
            self.query_tokens[f"{side}x{side}"]
            if (side := item.model_specific_data.get(query_states.SCALE)) is not None
            else next(encoded)
            for item in items
        ]

    def _encode_pictures(self, items: list[MultimodalDataItem]) -> list[Tensor]:
        if not items:
            return []
        grids = torch.cat([_tensor(item.image_grid_thw) for item in items])
        merged = self.config.vision_config.spatial_merge_size**2
        counts = (grids.prod(dim=1) // merged).tolist()
        # Copies, so that a cached picture does not keep its whole batch alive.
        embeddings = super().get_image_feature(items).split(counts)
        return [part.clone() for part in embeddings]

    def get_audio_feature(self, items: list[MultimodalDataItem]) -> list[Tensor]:
        """Embeddings of clips, one [tokens, D] per item."""
        clips = [_tensor(item.feature) for item in items]
        return encode_clips(self.audio, self.linear_proj_audio, clips)

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        forward_batch: ForwardBatch,
        input_embeds: Tensor | None = None,
        get_embedding: bool = False,
        pp_proxy_tensors: PPProxyTensors | None = None,
    ) -> LogitsProcessorOutput:
        """Logits of one batch; see SGLang's class for the arguments.

        Query blocks in the batch put their states into ``customized_info``.
        """
        # prepare_mm_inputs drops the media, so the blocks are noted before.
        mm_inputs = forward_batch.mm_inputs
        embeds = prepare_mm_inputs(
            input_ids, forward_batch, self.model, {}, multimodal_model=self
        )
        hidden_states = self.model.model(
            None, forward_batch.mrope_positions, forward_batch, embeds
        )
        output = self.model.logits_processor(
            None, hidden_states, self.model.lm_head, forward_batch
        )
        prefixes = forward_batch.extend_prefix_lens_cpu
        lengths = forward_batch.extend_seq_lens_cpu
        # All three are there while prompts are computed, none while decoding.
        if mm_inputs and prefixes is not None and lengths is not None:
            output.customized_info = query_states.collect(
                hidden_states, mm_inputs, prefixes, lengths
            )
        return output

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Fill all parameters from the stream of shards, and from ``mlp/``.

        Raises:
            CheckpointError: The checkpoint is not a complete thinker.
        """
        specs = thinker_specs(THINKER.at(self.folder).config, {})
        filled = load_thinker(self, weights, specs)
        scales = list(load_query_tokens(dict(self.query_tokens), self.folder))
        logger.info(
            "Ming thinker: %d parameters filled, query tokens %s",
            len(filled),
            ", ".join(scales)
            or "absent (no mlp/config.json): it chats, but feeds no image generator",
        )
        return filled | {f"query_tokens.{scale}" for scale in scales}


def _tensor(value: object) -> Tensor:
    # SGLang types these fields as object: they cross processes.
    assert isinstance(value, Tensor), f"a tensor was sent, {type(value)} came"
    return value


EntryClass = BailingMM2NativeForConditionalGeneration
