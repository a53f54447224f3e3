# SPDX-License-Identifier: Apache-2.0
"""Register the thinker and its processor with SGLang."""

from sglang.srt.managers.multimodal_processor import PROCESSOR_MAPPING
from sglang.srt.models.registry import ModelRegistry

from sglang_ext_gen.models.lance.thinker.config import ARCHITECTURE
from sglang_ext_gen.models.lance.thinker.model import LanceForConditionalGeneration
from sglang_ext_gen.models.lance.thinker.processor import LanceMultimodalProcessor


def register_model() -> None:
    """Register processor and model; repeating it changes nothing."""
    ModelRegistry.models[ARCHITECTURE] = LanceForConditionalGeneration
    PROCESSOR_MAPPING[LanceForConditionalGeneration] = LanceMultimodalProcessor
