# SPDX-License-Identifier: Apache-2.0
"""The chat template: messages -> text with ``<IMAGE>``, ``<VIDEO>``, ``<AUDIO>``.

The released template says "detailed thinking off" only, and SGLang takes it for one
that knows no media and drops them. This one gives the text of the official processor:

- The official system sentence when the caller gives none; a caller's system message
  replaces it.
- ``chat_template_kwargs={"thinking": true}`` (or ``enable_thinking``) says "on".
- Roles: user is HUMAN, assistant is ASSISTANT, a run of tool messages is one
  OBSERVATION; tools are listed and called as JSON between tags of the vocabulary.
- Media come in the order of the content; media of one kind that follow one another
  are separated by a newline, as in the official processor.
- Text with special tokens is refused: it would forge turns or media.

Anything refused raises, which SGLang answers with HTTP 400 and the reason.
"""

import json

from sglang_ext_gen.models.ming_omni.thinker_protocol import (
    AUDIO,
    DEFAULT_SYSTEM,
    IMAGE,
    RESERVED,
    VIDEO,
)

_TEMPLATE = """
{%- macro plain(text) -%}
  {%- if text is not string -%}
    {{- raise_exception('text must be a string') -}}
  {%- endif -%}
  {%- for token in RESERVED -%}
    {%- if token in text -%}
      {{- raise_exception('the special token ' + token + ' is not allowed in text') -}}
    {%- endif -%}
  {%- endfor -%}
  {{- text -}}
{%- endmacro -%}
{%- macro content_of(message, may_show) -%}
  {%- if message.content is string -%}
    {{- plain(message.content) -}}
  {%- else -%}
    {%- set last = namespace(type='') -%}
    {%- for part in message.content or [] -%}
      {%- if part.type == 'text' -%}
        {{- plain(part.text) -}}
      {%- elif part.type in PLACEHOLDERS and may_show -%}
        {{- '\\n' if part.type == last.type else '' -}}
        {{- PLACEHOLDERS[part.type] -}}
      {%- else -%}
        {{- raise_exception('a part of type ' + part.type|string
            + ' is not allowed in a message of ' + message.role) -}}
      {%- endif -%}
      {%- set last.type = part.type -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- set thinks = thinking|default(enable_thinking|default(false)) -%}
{%- set has_system = messages and messages[0].role in ['system', 'developer'] -%}
{{- '<role>SYSTEM</role>' -}}
{{- content_of(messages[0], false) if has_system else DEFAULT_SYSTEM -}}
{{- '\\n\\n' -}}
{%- if tools -%}
  {{- TOOLS_BEFORE -}}
  {%- for tool in tools -%}
    {{- '\\n' + plain(tool|tojson) -}}
  {%- endfor -%}
  {{- TOOLS_AFTER -}}
{%- endif -%}
{{- 'detailed thinking ' + ('on' if thinks else 'off') + '<|role_end|>' -}}
{%- set turns = messages[1:] if has_system else messages -%}
{%- for message in turns -%}
  {%- if message.role == 'user' -%}
    {{- '<role>HUMAN</role>' + content_of(message, true) + '<|role_end|>' -}}
  {%- elif message.role == 'assistant' -%}
    {{- '<role>ASSISTANT</role>' + content_of(message, false) -}}
    {%- for call in message.tool_calls or [] -%}
      {%- set function = call.function if call.function is defined else call -%}
      {{- '\\n' if message.content or not loop.first else '' -}}
      {{- '<tool_call>\\n{"name": ' + function.name|tojson + ', "arguments": ' -}}
      {{- plain(function.arguments if function.arguments is string
          else function.arguments|tojson) + '}\\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|role_end|>' -}}
  {%- elif message.role == 'tool' -%}
    {{- '<role>OBSERVATION</role>' if loop.previtem is not defined
        or loop.previtem.role != 'tool' else '' -}}
    {{- '\\n<tool_response>\\n' + content_of(message, false)
        + '\\n</tool_response>' -}}
    {{- '<|role_end|>' if loop.nextitem is not defined
        or loop.nextitem.role != 'tool' else '' -}}
  {%- else -%}
    {{- raise_exception('role ' + message.role|string + ' is not allowed here; use a '
        + 'first system message, then user, assistant and tool') -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {%- if not messages or messages[-1].role not in ['user', 'tool'] -%}
    {{- raise_exception('the last message must be of user or tool') -}}
  {%- endif -%}
  {{- '<role>ASSISTANT</role>' -}}
{%- endif -%}
"""

# The tool format of the Ling language models, which the thinker is one of.
_TOOLS_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n"
    "<tools>"
)
_TOOLS_AFTER = (
    "\n</tools>\n\nFor each function call, return a json object with function name and "
    "arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>\n\n'
)


def chat_template() -> str:
    """The template as Jinja source, with the constants it uses written in."""
    constants = {
        "RESERVED": list(RESERVED),
        "PLACEHOLDERS": {"image": IMAGE, "video": VIDEO, "audio": AUDIO},
        "DEFAULT_SYSTEM": DEFAULT_SYSTEM,
        "TOOLS_BEFORE": _TOOLS_BEFORE,
        "TOOLS_AFTER": _TOOLS_AFTER,
    }
    return _TEMPLATE_HEAD.format_map(
        {
            name: json.dumps(value, ensure_ascii=False)
            for name, value in constants.items()
        }
    ) + _TEMPLATE.lstrip("\n")


_TEMPLATE_HEAD = """\
{{%- set RESERVED = {RESERVED} -%}}
{{%- set PLACEHOLDERS = {PLACEHOLDERS} -%}}
{{%- set DEFAULT_SYSTEM = {DEFAULT_SYSTEM} -%}}
{{%- set TOOLS_BEFORE = {TOOLS_BEFORE} -%}}
{{%- set TOOLS_AFTER = {TOOLS_AFTER} -%}}
"""
