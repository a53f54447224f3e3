# SPDX-License-Identifier: Apache-2.0
"""What ``sglang-ext-gen demo`` asks of Ming: pictures, an edit, a chat about one."""

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sglang_ext_gen.models.ming_omni.thinker_client import OwnThinker, post_json

# Sizes for a tiny model on any machine.
_THINKER = (
    *("--dtype", "float32", "--context-length", "2048"),
    *("--max-total-tokens", "16384", "--mem-fraction-static", "0.3"),
)
_ANSWER_SECONDS = 300.0
_MAX_TOKENS = 24


def demo_requests() -> list[dict[str, Any]]:
    """A picture from a prompt, one with words in it, and an edit of the first."""
    return [
        {
            "prompt": "A red fox on a bench in the snow",
            "width": 256,
            "height": 192,
            "seed": 1,
            "num_inference_steps": 6,
        },
        {
            "prompt": 'A shop sign reading "OPEN 24h"',
            "width": 192,
            "height": 256,
            "seed": 2,
            "num_inference_steps": 6,
        },
        {
            "prompt": "Make the fox blue",
            # A result of the demo, by name.
            "image_path": "ming_omni-1",
            "width": 256,
            "height": 192,
            "seed": 3,
            "num_inference_steps": 6,
        },
    ]


@contextmanager
def demo_chat(
    checkpoint: Path,
) -> Iterator[tuple[dict[str, Any], Callable[[Path], str]]]:
    """A thinker that serves the generator and answers a question about a picture.

    Args:
        checkpoint: A tiny one.

    Yields:
        Load options that name the thinker, and a function from a picture to the
        question with its answer.
    """
    thinker = OwnThinker(str(checkpoint), _THINKER)
    try:
        thinker.wait_until_ready()
        [url] = thinker.addresses()
        yield {"thinker_url": url}, lambda picture: _ask(url, picture)
    finally:
        thinker.stop()


def _ask(url: str, picture: Path) -> str:
    question = "What is in this picture?"
    data = base64.b64encode(picture.read_bytes()).decode("ascii")
    image = {"url": f"data:image/png;base64,{data}"}
    body = {
        "model": "ming",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": image},
                    {"type": "text", "text": question},
                ],
            }
        ],
        "max_tokens": _MAX_TOKENS,
        "temperature": 0,
    }
    answer = post_json(f"{url}/v1/chat/completions", body, _ANSWER_SECONDS)
    return f"{question} {answer['choices'][0]['message']['content']!r}"
