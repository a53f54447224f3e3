# SPDX-License-Identifier: Apache-2.0
"""The chat template gives the official processor's text, and refuses forged turns."""

import pytest
from jinja2.exceptions import TemplateError

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.models.ming_omni.thinker import tiny
from sglang_ext_gen.models.ming_omni.thinker.chat_template import chat_template
from sglang_ext_gen.models.ming_omni.thinker_protocol import (
    RESERVED,
    generation_prompt,
)

IMAGE, VIDEO, AUDIO = ({"type": kind} for kind in ("image", "video", "audio"))


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def user(*content):
    return {"role": "user", "content": list(content)}


CASES = {
    "a_text": [{"role": "user", "content": "What is 2+2?"}],
    "a_multiturn": [
        user(text("Hi")),
        {"role": "assistant", "content": "Hello."},
        user(text("Bye")),
    ],
    "b_image": [user(IMAGE, text("What is this?"))],
    "b_two_images": [user(IMAGE, IMAGE, text("Compare."))],
    "c_two_audio": [user(AUDIO, AUDIO, text("Compare them."))],
    "d_video": [user(VIDEO, text("Describe."))],
    "f_mixed": [
        user(IMAGE, text("First.")),
        {"role": "assistant", "content": [text("Ok.")]},
        user(VIDEO, AUDIO, text("And now?")),
    ],
}


@pytest.fixture(scope="module")
def render(ming_tokenizer):
    def run(messages, **options):
        return ming_tokenizer.apply_chat_template(
            messages,
            chat_template=chat_template(),
            tokenize=False,
            add_generation_prompt=True,
            **options,
        )

    return run


@pytest.mark.parametrize("case", CASES)
def test_text_equals_the_official_one(ming_golden, render, case):
    assert render(CASES[case]) == ming_golden.json["cases"][case]["prompt_text"]


@pytest.mark.parametrize(
    ("options", "state"),
    [
        ({}, "off"),
        ({"thinking": True}, "on"),
        ({"enable_thinking": True}, "on"),
        ({"thinking": False, "enable_thinking": True}, "off"),
    ],
)
def test_thinking_is_off_unless_asked_for(render, options, state):
    assert f"detailed thinking {state}<|role_end|>" in render(
        CASES["a_text"], **options
    )


def test_a_callers_system_text_replaces_the_official_sentence(render):
    messages = [{"role": "system", "content": "Be brief."}, user(text("Hi"))]
    assert render(messages).startswith(
        "<role>SYSTEM</role>Be brief.\n\ndetailed thinking off<|role_end|>"
        "<role>HUMAN</role>Hi<|role_end|>"
    )


def test_tools_are_listed_called_and_observed(render):
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        user(text("1 + 1?")),
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "content": "2"},
        {"role": "tool", "content": "3"},
    ]
    rendered = render(messages, tools=[tool])
    assert '<tools>\n{"type": "function", "function": {"name": "add"' in rendered
    called = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    assert f"<role>ASSISTANT</role>{called}\n{called}<|role_end|>" in rendered
    assert rendered.endswith(
        "<role>OBSERVATION</role>\n<tool_response>\n2\n</tool_response>"
        "\n<tool_response>\n3\n</tool_response><|role_end|><role>ASSISTANT</role>"
    )


@pytest.mark.parametrize("token", RESERVED)
def test_special_tokens_are_refused(render, token):
    for message in (user(text(f"a {token} b")), {"role": "user", "content": token}):
        with pytest.raises(TemplateError, match="not allowed in text"):
            render([message])
    with pytest.raises(RequestError, match="special token"):
        generation_prompt(f"a {token} b")


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([user(text("a")), {"role": "system", "content": "b"}], "role system"),
        ([{"role": "assistant", "content": "a"}], "the last message"),
        ([{"role": "system", "content": "a"}], "the last message"),
        (
            [{"role": "system", "content": [IMAGE]}, user(text("a"))],
            "a part of type image",
        ),
        ([user({"type": "smell"})], "a part of type smell"),
    ],
)
def test_wrong_roles_and_parts_are_refused(render, messages, reason):
    with pytest.raises(TemplateError, match=reason):
        render(messages)


def test_the_generators_prompt_is_the_official_text(ming_golden):
    cases = ming_golden.json["cases"]
    assert generation_prompt("Draw a cat.") == cases["e_t2i"]["prompt_text"]
    assert generation_prompt("Make it red.", images=1) == cases["e_edit"]["prompt_text"]


def test_the_tokenizer_keeps_text_as_it_is(tmp_path):
    from sglang_ext_gen.models.ming_omni.thinker.tokenizer import BailingTokenizer

    # A snapshot's tokenizer_config.json may say little of how text is cut and joined.
    tiny.write_tiny(tmp_path / "tiny")
    tokenizer = BailingTokenizer.from_pretrained(tmp_path / "tiny")
    written = "Two  words,\n你好 <IMAGE>"
    assert tokenizer.decode(tokenizer.encode(written)) == written
    assert tokenizer.chat_template == chat_template()
