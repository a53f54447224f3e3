# SPDX-License-Identifier: Apache-2.0
"""Make SGLang's language model runtime use our thinker for Ming checkpoints.

The architecture and model type are SGLang's own, so this replaces its entries;
``SGLANG_EXT_GEN_DISABLE=ming_omni`` leaves them alone.
"""

from sglang.srt.managers.multimodal_processor import PROCESSOR_MAPPING
from sglang.srt.models.registry import ModelRegistry

from sglang_ext_gen.models.ming_omni.thinker.model import (
    BailingMM2NativeForConditionalGeneration,
)
from sglang_ext_gen.models.ming_omni.thinker.processor import (
    MingOmniMultimodalProcessor,
)
from sglang_ext_gen.models.ming_omni.thinker_protocol import THINKER_ARCHITECTURE


def register_model() -> None:
    """Register processor and model; repeating it changes nothing."""
    models = ModelRegistry.models
    if models.get(THINKER_ARCHITECTURE) is BailingMM2NativeForConditionalGeneration:
        return
    models[THINKER_ARCHITECTURE] = BailingMM2NativeForConditionalGeneration
    # Found by class name, first match; SGLang's own entry has the same name.
    others = dict(PROCESSOR_MAPPING)
    PROCESSOR_MAPPING.clear()
    PROCESSOR_MAPPING[BailingMM2NativeForConditionalGeneration] = (
        MingOmniMultimodalProcessor
    )
    PROCESSOR_MAPPING.update(others)
