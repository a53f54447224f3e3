# SPDX-License-Identifier: Apache-2.0
"""Config and tokenizer holder of the thinker."""

from pathlib import Path
from typing import Any

from sglang.srt.configs import model_config
from sglang.srt.multimodal.customized_mm_processor_utils import (
    register_customized_processor,
)
from sglang.srt.utils.hf_transformers.common import _CONFIG_REGISTRY
from transformers import AutoConfig, AutoTokenizer
from transformers.models.qwen2 import Qwen2Config

from sglang_ext_gen.models.lance.thinker.prompt import chat_template

ARCHITECTURE = "LanceForConditionalGeneration"
MODEL_TYPE = "lance_thinker"


class LanceThinkerConfig(Qwen2Config):
    """A Qwen2 decoder with three-axis positions, and a vision tower.

    Args:
        vision_config: The released config of the tower, as it is.
        vision_weights: File of the tower; None when the model file bundles it.
        stored_vocab_size: Vocabulary rows on disk. ``vocab_size`` is the length of
            the tokenizer; the rows beyond it are padding and are not loaded.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        vision_config: dict[str, Any] | None = None,
        vision_weights: str | None = None,
        stored_vocab_size: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.vision_config = vision_config or {}
        self.vision_weights = vision_weights
        self.stored_vocab_size = stored_vocab_size

    @property
    def rope(self) -> dict[str, Any]:
        """Theta and sections of the three-axis rotation."""
        parameters: Any = self.rope_parameters
        return dict(parameters)

    @property
    def num_kv_heads(self) -> int:
        """Key and value heads; Transformers allows None in between."""
        assert self.num_key_value_heads is not None, "llm_config.json states it"
        return self.num_key_value_heads


class LanceTokenizerHolder:
    """What SGLang expects of a Hugging Face processor: something with a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, path: str, **_: Any) -> "LanceTokenizerHolder":
        """Load the tokenizer and give it our chat template."""
        tokenizer = AutoTokenizer.from_pretrained(Path(path), trust_remote_code=False)
        tokenizer.chat_template = chat_template()
        return cls(tokenizer)


def register_config() -> None:
    """Make SGLang and Transformers know this config; repeating it changes nothing."""
    _CONFIG_REGISTRY[MODEL_TYPE] = LanceThinkerConfig
    AutoConfig.register(MODEL_TYPE, LanceThinkerConfig, exist_ok=True)
    holder: Any = LanceTokenizerHolder  # annotated with Transformers' own classes
    config: Any = LanceThinkerConfig
    register_customized_processor(holder)(config)
    if ARCHITECTURE not in model_config.multimodal_model_archs:
        model_config.multimodal_model_archs.append(ARCHITECTURE)
