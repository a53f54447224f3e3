# SPDX-License-Identifier: Apache-2.0
"""Special tokens of the Ming vocabulary, resolved by their text.

Ids in ``config.json`` are not enough: it has none for audio, and its
``video_start_token`` is really ``</image>``.
"""

from dataclasses import dataclass
from typing import Any

from sglang_ext_gen.errors import ConfigError

IMAGE_PATCH = "<imagePatch>"
IMAGE_START = "<image>"
IMAGE_END = "</image>"
VIDEO_START = "<video>"
VIDEO_END = "</video>"
FRAME_PATCH = "<framePatch>"
AUDIO_PATCH = "<audioPatch>"
AUDIO_START = "<audio>"
AUDIO_END = "</audio>"


@dataclass(frozen=True)
class MediaTokens:
    """Ids of the tokens that carry media."""

    image_patch: int
    image_start: int
    image_end: int
    video_start: int
    video_end: int
    frame_patch: int
    audio_patch: int
    audio_start: int
    audio_end: int

    @classmethod
    def resolve(cls, tokenizer: Any) -> "MediaTokens":
        """Look the tokens up in a Hugging Face tokenizer.

        Raises:
            ConfigError: It is not Ming's tokenizer; names the missing tokens.
        """
        texts = {
            "image_patch": IMAGE_PATCH,
            "image_start": IMAGE_START,
            "image_end": IMAGE_END,
            "video_start": VIDEO_START,
            "video_end": VIDEO_END,
            "frame_patch": FRAME_PATCH,
            "audio_patch": AUDIO_PATCH,
            "audio_start": AUDIO_START,
            "audio_end": AUDIO_END,
        }
        vocabulary = tokenizer.get_vocab()
        missing = [text for text in texts.values() if text not in vocabulary]
        if missing:
            raise ConfigError(
                f"the tokenizer lacks {', '.join(missing)}; give Ming's own with "
                "--tokenizer-path"
            )
        tokens = cls(**{name: vocabulary[text] for name, text in texts.items()})
        # The query block is built from the patch id, as in the official code.
        follow = (tokens.image_patch + 1, tokens.image_patch + 2)
        if (tokens.image_start, tokens.image_end) != follow:
            raise ConfigError(
                f"{IMAGE_START} and {IMAGE_END} must follow {IMAGE_PATCH} in the "
                f"vocabulary, found {tokens.image_start} and {tokens.image_end} after "
                f"{tokens.image_patch}"
            )
        return tokens
