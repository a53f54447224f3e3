# SPDX-License-Identifier: Apache-2.0
"""The chat template of the thinker, and where the visual block stands in it.

Source: the official prompt layout. The visual block is one stretch of placeholders,
its two markers included: all of it is one bidirectional whole, so the markers too
depend on the picture, and must not be shared between pictures by the prefix cache.

- The official instruction of the medium is the system message when the caller gives
  none. A text without a medium has none.
- The medium comes before the text of its message, whatever the order in the request.
- Special tokens in text are refused: they would forge turns or media.
"""

import json
from dataclasses import dataclass

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.models.lance.packing import (
    Grid,
    Segment,
    SpecialTokens,
    pack_answer,
)
from sglang_ext_gen.models.lance.tasks import TASKS

PLACEHOLDER = "<|video_pad|>"
BLOCK = f"<|vision_start|>{PLACEHOLDER}<|vision_end|>"
RESERVED = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    PLACEHOLDER,
    "<|endoftext|>",
)

_TEMPLATE = """
{%- macro plain(text) -%}
  {%- for token in RESERVED -%}
    {%- if token in text -%}
      {{- raise_exception('the special token ' + token + ' is not allowed in text') -}}
    {%- endif -%}
  {%- endfor -%}
  {{- text -}}
{%- endmacro -%}
{%- set seen = namespace(medium='') -%}
{%- for message in messages -%}
  {%- if message.content is not string -%}
    {%- for part in message.content or [] -%}
      {%- if part.type in INSTRUCTIONS -%}
        {%- set seen.medium = part.type -%}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endfor -%}
{%- if messages[0].role not in ['system', 'developer'] and seen.medium -%}
  {{- '<|im_start|>system\\n' + INSTRUCTIONS[seen.medium] + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
  {%- if message.role not in ['system', 'developer', 'user', 'assistant'] -%}
    {{- raise_exception('role ' + message.role|string + ' is not allowed here') -}}
  {%- endif -%}
  {%- set role = 'system' if message.role == 'developer' else message.role -%}
  {{- '<|im_start|>' + role + '\\n' -}}
  {%- if message.content is string -%}
    {{- plain(message.content) -}}
  {%- else -%}
    {%- for part in message.content or [] -%}
      {%- if part.type in INSTRUCTIONS -%}{{- BLOCK -}}{%- endif -%}
    {%- endfor -%}
    {%- for part in message.content or [] -%}
      {%- if part.type == 'text' -%}{{- plain(part.text) -}}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def chat_template() -> str:
    """The template as Jinja source, with the constants it uses written in."""
    constants = {
        "RESERVED": list(RESERVED),
        "INSTRUCTIONS": {
            "image": TASKS["x2t_image"].system_prompt,
            "video": TASKS["x2t_video"].system_prompt,
        },
        "BLOCK": BLOCK,
    }
    head = "".join(
        f"{{%- set {name} = {json.dumps(value)} -%}}\n"
        for name, value in constants.items()
    )
    return head + _TEMPLATE.lstrip("\n")


def wrap_question(question: str, medium: str) -> str:
    """The official prompt around a plain question (``sgl.Engine``'s raw prompts)."""
    for token in RESERVED:
        if token in question:
            raise RequestError("prompt", f"the special token {token} is not allowed")
    instruction = TASKS[f"x2t_{medium}"].system_prompt
    return (
        f"<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n{BLOCK}"
        f"{question}<|im_end|>\n<|im_start|>assistant\n"
    )


@dataclass(frozen=True)
class ExpandedPrompt:
    """Segments of a prompt whose placeholder was given its size.

    Args:
        segments: Text, or text, block, text.
        offsets: First and last position of the block, markers included; None
            without a medium.
    """

    segments: tuple[Segment, ...]
    offsets: tuple[int, int] | None


def expand(
    token_ids: list[int], grid: Grid | None, special: SpecialTokens
) -> ExpandedPrompt:
    """Give the placeholder of a tokenised prompt its size.

    Args:
        token_ids: The rendered prompt.
        grid: Merged grid of the medium, or None.
        special: Ids of markers and placeholder.

    Raises:
        RequestError: Placeholders and media do not agree.
    """
    count = token_ids.count(special.placeholder)
    if count != (grid is not None):
        raise RequestError(
            "prompt",
            f"{count} visual blocks in the prompt and {int(grid is not None)} media; "
            "Lance takes one picture or one video a request",
        )
    if grid is None:
        return ExpandedPrompt(pack_answer(token_ids, None, (), special), None)
    at = token_ids.index(special.placeholder)
    before, after = token_ids[: at - 1], token_ids[at + 2 :]
    markers = token_ids[at - 1 : at + 2 : 2]
    if markers != [special.vision_start, special.vision_end]:
        raise RequestError("prompt", "the visual block has lost its markers")
    segments = pack_answer(before, grid, after, special)
    start = len(before)
    return ExpandedPrompt(segments, (start, start + len(segments[1].token_ids) - 1))
