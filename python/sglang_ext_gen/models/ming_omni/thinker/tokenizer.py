# SPDX-License-Identifier: Apache-2.0
"""The tokenizer, and what holds it where SGLang expects a Hugging Face processor.

The snapshot names processor and tokenizer classes that it does not ship. Ours need
only ``tokenizer.json`` and ``tokenizer_config.json`` and run no code of the snapshot.
"""

from pathlib import Path
from typing import Any

from sglang.srt.utils.hf_transformers.common import download_from_hf
from transformers import PreTrainedTokenizerFast

from sglang_ext_gen.errors import CheckpointError
from sglang_ext_gen.models.ming_omni.thinker.chat_template import chat_template
from sglang_ext_gen.models.ming_omni.thinker.checkpoint import TOKENIZER_FILES
from sglang_ext_gen.models.ming_omni.thinker.tokens import MediaTokens


class BailingTokenizer(PreTrainedTokenizerFast):
    """A plain fast tokenizer with our chat template.

    It has the name that ``tokenizer_config.json`` states, by which Transformers finds
    it even in a folder without ``config.json``.
    """

    # Not in a constructor: to a class that has one of its own Transformers hands the
    # bare vocabulary, and how tokenizer.json cuts and joins text is lost.
    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> "BailingTokenizer":
        """Load the tokenizer as it is in ``tokenizer.json``."""
        tokenizer = super().from_pretrained(*args, **kwargs)
        tokenizer.chat_template = chat_template()
        return tokenizer


class MingOmniTokenizerHolder:
    """What SGLang expects of a Hugging Face processor, for a missing one."""

    def __init__(self, tokenizer: BailingTokenizer) -> None:
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(
        cls, path: str, *, revision: str | None = None, **_: Any
    ) -> "MingOmniTokenizerHolder":
        """Load the tokenizer from a folder or the Hugging Face hub.

        Raises:
            CheckpointError: Files are missing; names them and says where they are.
        """
        folder = Path(download_from_hf(path, allow_patterns=["*.json"]))
        missing = [name for name in TOKENIZER_FILES if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{path} has no {' and no '.join(missing)}. Take the tokenizer's files "
                "from the Ming code repository and name their folder with "
                "--tokenizer-path."
            )
        tokenizer = BailingTokenizer.from_pretrained(folder)
        MediaTokens.resolve(tokenizer)
        return cls(tokenizer)
