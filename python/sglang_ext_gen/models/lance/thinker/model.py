# SPDX-License-Identifier: Apache-2.0
"""The thinker: vision tower, Qwen2 decoder with q/k norms, language head.

Deliberate differences from SGLang's Qwen2.5-VL: norms of queries and keys per head,
attention that is bidirectional inside a visual block (``attention.py``), an untied
head, and a vocabulary that ends with the tokenizer: the padding rows of the release,
which would win over real tokens, are not loaded.
"""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.logits_processor import LogitsProcessor, LogitsProcessorOutput
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead
from sglang.srt.managers.mm_utils import general_mm_embed_routine, pad_mm_tokens
from sglang.srt.managers.schedule_batch import MultimodalDataItem
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.qwen2 import Qwen2Attention, Qwen2DecoderLayer, Qwen2Model
from sglang.srt.models.utils import apply_qk_norm
from sglang.srt.utils import add_prefix
from torch import Tensor, nn

from sglang_ext_gen.models.lance.config import (
    LanceTransformerConfig,
    LanceVisionConfig,
)
from sglang_ext_gen.models.lance.tensors import transformer_specs, vision_specs
from sglang_ext_gen.models.lance.thinker import weights as thinker_weights
from sglang_ext_gen.models.lance.thinker.attention import (
    BlockAttention,
    attending,
    find_blocks,
)
from sglang_ext_gen.models.lance.thinker.config import LanceThinkerConfig
from sglang_ext_gen.models.lance.thinker.processor import GRID, MARKERS
from sglang_ext_gen.models.lance.vision import LanceVisionTransformer
from sglang_ext_gen.models.lance.weights import BUNDLED_VISION


class LanceThinkerAttention(Qwen2Attention):
    """Qwen2 attention with norms of queries and keys, and visual blocks."""

    def __init__(
        self,
        config: LanceThinkerConfig,
        layer_id: int,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ) -> None:
        rope = config.rope
        super().__init__(
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_kv_heads,
            layer_id=layer_id,
            rope_theta=rope["rope_theta"],
            rope_scaling=rope,
            max_position_embeddings=config.max_position_embeddings,
            quant_config=quant_config,
            prefix=prefix,
        )
        self.q_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.attn = BlockAttention(
            self.num_heads,
            self.head_dim,
            self.scaling,
            num_kv_heads=self.num_kv_heads,
            layer_id=layer_id,
            quant_config=quant_config,
            prefix=add_prefix("attn", prefix),
        )

    def forward(
        self, positions: Tensor, hidden_states: Tensor, forward_batch: ForwardBatch
    ) -> Tensor:
        """hidden_states: [S, D] -> [S, D]."""
        qkv, _ = self.qkv_proj(hidden_states)
        q, k, v = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        q, k = apply_qk_norm(
            q=q,
            k=k,
            q_norm=self.q_norm,
            k_norm=self.k_norm,
            head_dim=self.head_dim,
            alt_stream=None,
        )
        q, k = self.rotary_emb(positions, q, k)
        output, _ = self.o_proj(self.attn(q, k, v, forward_batch))
        return output


class LanceThinkerLayer(Qwen2DecoderLayer):
    """Qwen2's layer with our attention."""

    def __init__(
        self,
        config: LanceThinkerConfig,
        layer_id: int = 0,
        start_layer: int = 0,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
        alt_stream: Any = None,
    ) -> None:
        super().__init__(
            config, layer_id, start_layer, quant_config, prefix, alt_stream
        )
        self.self_attn = LanceThinkerAttention(
            config, layer_id, quant_config, add_prefix("self_attn", prefix)
        )
        self.input_layernorm.fuse_input_quant(self.self_attn.qkv_proj)


class LanceForConditionalGeneration(nn.Module):
    """Answers questions about a picture or a video, or plain text."""

    is_mrope_enabled = True

    def __init__(
        self,
        config: LanceThinkerConfig,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.config = config
        self.vision_config = LanceVisionConfig.from_dict(
            config.vision_config, "vision_config"
        )
        self.model = Qwen2Model(
            config,
            quant_config,
            add_prefix("model", prefix),
            decoder_layer_type=LanceThinkerLayer,
        )
        self.lm_head = ParallelLMHead(
            config.vocab_size,
            config.hidden_size,
            quant_config=quant_config,
            prefix=add_prefix("lm_head", prefix),
        )
        self.visual = LanceVisionTransformer(self.vision_config)
        self.logits_processor = LogitsProcessor(config)

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of tokens; SGLang asks for it."""
        return self.model.embed_tokens

    def pad_input_ids(self, input_ids: Any, mm_inputs: Any) -> Any:
        """Give every block an id of its own picture, for the prefix cache."""
        return pad_mm_tokens(input_ids, mm_inputs)

    def get_image_feature(self, items: list[MultimodalDataItem]) -> Tensor:
        """Embeddings of whole blocks, markers included: [tokens, D]."""
        return torch.cat([self._embed_block(item) for item in items])

    def get_video_feature(self, items: list[MultimodalDataItem]) -> Tensor:
        """As for pictures."""
        return self.get_image_feature(items)

    def _embed_block(self, item: MultimodalDataItem) -> Tensor:
        device = self.visual.patch_embed.proj.weight.device
        data: dict[str, Any] = item.model_specific_data
        patches = item.feature
        assert isinstance(patches, Tensor), "made by our processor"
        features = self.visual(patches.to(device), tuple(data[GRID]))
        markers = torch.tensor(data[MARKERS], device=device)
        edges = self.model.embed_tokens(markers).to(features.dtype)
        return torch.cat([edges[:1], features, edges[1:]])

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        forward_batch: ForwardBatch,
        **_: Any,
    ) -> LogitsProcessorOutput:
        """Logits of one batch; ``positions`` gives way to three-axis ones."""
        # The routine below drops the media, so the blocks are noted before.
        blocks = find_blocks(forward_batch, forward_batch.mm_inputs or [])
        with attending(tuple(blocks)):
            hidden_states = general_mm_embed_routine(
                input_ids=input_ids,
                forward_batch=forward_batch,
                language_model=self.model,
                multimodal_model=self,
                positions=forward_batch.mrope_positions,
            )
        return self.logits_processor(
            input_ids, hidden_states, self.lm_head, forward_batch
        )

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Fill all parameters from the checkpoint directory and the vision tower.

        Raises:
            CheckpointError: The checkpoint is not complete.
        """
        if self.config.vision_weights is not None:
            file = Path(self.config.vision_weights)
            weights = chain(weights, thinker_weights.read_vision(file))
        specs = chain(
            transformer_specs(_released_config(self.config)),
            vision_specs(self.vision_config, BUNDLED_VISION),
        )
        return thinker_weights.load(self, weights, specs, self.config.vocab_size)


def _released_config(config: LanceThinkerConfig) -> LanceTransformerConfig:
    return LanceTransformerConfig(
        vocab_size=config.stored_vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_kv_heads,
        rms_norm_eps=config.rms_norm_eps,
        rope_theta=config.rope["rope_theta"],
        mrope_section=tuple(config.rope["mrope_section"]),
    )
