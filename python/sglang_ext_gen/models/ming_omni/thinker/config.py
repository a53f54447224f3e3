# SPDX-License-Identifier: Apache-2.0
"""The thinker's configuration, as released and repaired for SGLang.

Subclass of SGLang's own config for this ``model_type``. What is repaired:

- ``llm_config.rope_scaling.factor`` is null, which SGLang multiplies with: dropped.
- ``use_expert_bias`` is called ``moe_router_enable_expert_bias`` by SGLang's routers.
- ``llm_config.video_start_token`` holds the id of ``</image>``: the token after it is
  the real ``<video>``. Repaired with a warning.
- The three deepstack mergers of the vision tower are on disk but unused.
- ``vision_config.architectures``, by which SGLang chooses the tower, may be missing.

What the released file may say at all is in ``released_config.py``, and checked first.

The class lives at module level because SGLang pickles configs to spawned processes.
"""

import logging
from typing import Any

from sglang.srt.configs.bailing_moe_v2 import BailingMM2Config
from sglang.srt.multimodal.customized_mm_processor_utils import (
    _CUSTOMIZED_MM_PROCESSOR,
)
from sglang.srt.utils.hf_transformers.common import _CONFIG_REGISTRY
from transformers import AutoConfig, AutoTokenizer

from sglang_ext_gen.checkpoint.released_config import with_rope_scaling
from sglang_ext_gen.models.ming_omni.thinker.released_config import (
    ReleasedThinkerConfig,
)
from sglang_ext_gen.models.ming_omni.thinker.tokenizer import (
    BailingTokenizer,
    MingOmniTokenizerHolder,
)

logger = logging.getLogger(__name__)

MODEL_TYPE = "bailingmm_moe_v2_lite"
# Position axes (time, row, column) of the 32 rotary frequencies; the official code
# has it as a constant, not in the file.
MROPE_SECTION = (8, 12, 12)
# Stock's name of the one tower that ``released_config.py`` accepts.
VISION_ARCHITECTURE = "Qwen3MoeVisionTransformer"


class MingOmniThinkerConfig(BailingMM2Config):
    """Config of ``BailingMM2NativeForConditionalGeneration``."""

    model_type = MODEL_TYPE

    def __init__(
        self,
        llm_config: dict[str, Any] | Any = None,
        vision_config: dict[str, Any] | Any = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(llm_config, dict):
            llm_config = repaired_llm_config(llm_config)
        if isinstance(vision_config, dict):
            vision_config = {
                **vision_config,
                "deepstack_visual_indexes": [],
                "architectures": [VISION_ARCHITECTURE],
            }
        kwargs.setdefault("mrope_section", list(MROPE_SECTION))
        super().__init__(
            llm_config=llm_config,
            vision_config=vision_config,
            **kwargs,
        )

    @classmethod
    def from_dict(
        cls, config_dict: dict[str, Any], **kwargs: Any
    ) -> "MingOmniThinkerConfig":
        """From a released ``config.json``; this is how Transformers reads one.

        Raises:
            ConfigError: It holds a key or value that the thinker does not know.
        """
        ReleasedThinkerConfig.from_dict(config_dict, "config.json")
        return super().from_dict(config_dict, **kwargs)


def register_config() -> None:
    """Make SGLang and Transformers use this config and our tokenizer."""
    _CONFIG_REGISTRY[MODEL_TYPE] = MingOmniThinkerConfig
    AutoConfig.register(MODEL_TYPE, MingOmniThinkerConfig, exist_ok=True)
    AutoTokenizer.register(
        MingOmniThinkerConfig,
        fast_tokenizer_class=BailingTokenizer,
        exist_ok=True,
    )
    # SGLang only calls from_pretrained() and reads .tokenizer of what it returns.
    _CUSTOMIZED_MM_PROCESSOR[MODEL_TYPE] = MingOmniTokenizerHolder  # type: ignore[index]


def repaired_llm_config(released: dict[str, Any]) -> dict[str, Any]:
    """The released ``llm_config`` in SGLang's terms."""
    config = with_rope_scaling(released, "llm_config")
    # Without the null factor; the sections come with mrope_section.
    config["rope_scaling"] = {"rope_type": "default"}
    config["moe_router_enable_expert_bias"] = config["use_expert_bias"]
    config["video_start_token"] = _real_video_start(config)
    return config


def _real_video_start(config: dict[str, Any]) -> int | None:
    image_end = config.get("image_patch_token", -3) + 2
    given = config.get("video_start_token")
    if given != image_end:
        return given
    logger.warning(
        "llm_config.video_start_token is %d, which is </image>; using %d, <video>",
        image_end,
        image_end + 1,
    )
    return image_end + 1
