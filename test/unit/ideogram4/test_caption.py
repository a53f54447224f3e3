# SPDX-License-Identifier: Apache-2.0
"""JSON captions of Ideogram 4: what is built, what is accepted, what is refused."""

import json
import logging
from typing import Any

import pytest

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.models.ideogram4.caption import (
    Caption,
    Element,
    StyleDescription,
    advise_on_caption,
    build_caption,
    looks_like_json_caption,
    validate_caption,
)

PHOTO = {
    "aesthetics": "calm",
    "lighting": "dusk",
    "photo": "85mm",
    "medium": "photograph",
    "color_palette": ["#A1B2C3"],
}
ART = {
    "aesthetics": "bold",
    "lighting": "flat",
    "medium": "print",
    "art_style": "woodcut",
}
ELEMENTS = [
    {"type": "obj", "bbox": [0, 10, 500, 1000], "desc": "a café", "color_palette": []},
    {"type": "text", "text": "ÆON 茶", "desc": "a sign"},
]


def caption(**changes: Any) -> dict[str, Any]:
    """A valid caption with top-level changes."""
    return {
        "high_level_description": "A café at dusk",
        "style_description": PHOTO,
        "compositional_deconstruction": {"background": "sea", "elements": ELEMENTS},
    } | changes


def with_style(**changes: Any) -> dict[str, Any]:
    return caption(style_description=PHOTO | changes)


def with_elements(*elements: Any) -> dict[str, Any]:
    composition = {"background": "sea", "elements": list(elements)}
    return caption(compositional_deconstruction=composition)


def with_element(**changes: Any) -> dict[str, Any]:
    """A caption whose second element is an object with the given fields."""
    return with_elements(ELEMENTS[0], {"type": "obj", "desc": "x"} | changes)


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def test_golden_prompt_is_valid_and_already_in_its_written_form(ideogram4_golden):
    prompt = ideogram4_golden.json["request"]["prompt"]
    assert validate_caption(prompt).to_json() == prompt


def test_every_field_survives_a_round_trip():
    text = dumps(caption())
    got = validate_caption(text)
    assert got == Caption(
        background="sea",
        elements=(
            Element("obj", "a café", bbox=(0, 10, 500, 1000), color_palette=()),
            Element("text", "a sign", text="ÆON 茶"),
        ),
        high_level_description="A café at dusk",
        style_description=StyleDescription(
            "calm", "dusk", "photograph", photo="85mm", color_palette=("#A1B2C3",)
        ),
    )
    assert got.to_json() == text


@pytest.mark.parametrize(
    "value",
    [
        {"compositional_deconstruction": {"background": "", "elements": []}},
        caption(style_description=ART),
        caption(style_description=ART | {"color_palette": ["#00FF00"] * 16}),
        with_elements({"type": "obj", "bbox": [0, 0, 0, 0], "desc": "x"}),
    ],
    ids=["smallest", "art", "16 colours", "empty box"],
)
def test_other_valid_captions(value):
    text = dumps(value)
    assert validate_caption(text).to_json() == text


def test_spaces_and_line_breaks_between_tokens_are_accepted():
    assert validate_caption(json.dumps(caption(), indent=2)).to_json() == dumps(
        caption()
    )


def test_build_writes_one_compact_line_in_the_trained_order():
    text = build_caption(
        elements=[
            Element(type="text", desc="a sign", text='"Ω"\nline', bbox=(1, 2, 3, 4)),
            Element(type="obj", desc="a tree", color_palette=("#0A0B0C",)),
        ],
        background="hills",
        style_description=StyleDescription(
            art_style="ink", medium="paper", lighting="soft", aesthetics="sparse"
        ),
        high_level_description="Höhe",
    )
    assert text == (
        '{"high_level_description":"Höhe","style_description":{"aesthetics":"sparse",'
        '"lighting":"soft","medium":"paper","art_style":"ink"},'
        '"compositional_deconstruction":{"background":"hills","elements":[{"type":'
        '"text","bbox":[1,2,3,4],"text":"\\"Ω\\"\\nline","desc":"a sign"},{"type":'
        '"obj","desc":"a tree","color_palette":["#0A0B0C"]}]}}'
    )
    assert "\n" not in text


def test_build_checks_what_it_is_given():
    style = StyleDescription("a", "l", "m", photo="p", art_style="s")
    with pytest.raises(RequestError, match="has both of photo and art_style"):
        build_caption(background="b", elements=[], style_description=style)
    with pytest.raises(RequestError, match=r"elements\[0\].text is missing"):
        build_caption(background="b", elements=[Element("text", "d")])
    with pytest.raises(RequestError, match="unknown key 'text'; allowed here: type, b"):
        build_caption(background="b", elements=[Element("obj", "d", text="t")])


COMPOSITION = "caption.compositional_deconstruction"
ELEMENT = rf"{COMPOSITION}.elements\[1\]"
STYLE = "caption.style_description"

REFUSED = {
    "a list": ([], r"caption is \[\]; expected an object with the keys high_level_d"),
    "text": ("a cat", "caption is 'a cat'; expected an object"),
    "number": (7, "caption is 7; expected an object"),
    "null": (None, "caption is None; expected an object"),
    "empty": ({}, "caption.compositional_deconstruction is missing"),
    "unknown key": (
        caption(aspect_ratio="1:1"),
        "caption has the unknown key 'aspect_ratio'; allowed here: high_level_descr",
    ),
    "description": (
        caption(high_level_description=None),
        "caption.high_level_description is None; expected a string",
    ),
    "order": (
        dict(reversed(caption().items())),
        "caption has its keys in the order compositional_deconstruction, style_des",
    ),
    "composition": (
        caption(compositional_deconstruction="x"),
        f"{COMPOSITION} is 'x'; expected an object with the keys background, elem",
    ),
    "no background": (
        caption(compositional_deconstruction={"elements": []}),
        f"{COMPOSITION}.background is missing",
    ),
    "background": (
        caption(compositional_deconstruction={"background": 1, "elements": []}),
        f"{COMPOSITION}.background is 1; expected a string",
    ),
    "no elements": (
        caption(compositional_deconstruction={"background": "x"}),
        f"{COMPOSITION}.elements is missing",
    ),
    "elements": (
        caption(compositional_deconstruction={"background": "x", "elements": {}}),
        f"{COMPOSITION}.elements is {{}}; expected a list",
    ),
    "style": (caption(style_description=[]), rf"{STYLE} is \[\]; expected an object"),
    "photo and art": (with_style(art_style="x"), f"{STYLE} has both of photo and art"),
    "neither": (
        caption(style_description={"aesthetics": "x"}),
        f"{STYLE} has neither of photo and art_style; give exactly one",
    ),
    "no lighting": (
        caption(style_description={"aesthetics": "x", "photo": "y", "medium": "z"}),
        f"{STYLE}.lighting is missing",
    ),
    "style value": (with_style(photo=35), f"{STYLE}.photo is 35; expected a string"),
    "style key": (with_style(mood="x"), f"{STYLE} has the unknown key 'mood'"),
    "art in photo order": (
        caption(style_description=dict(reversed(ART.items()))),
        "trained on aesthetics, lighting, medium, art_style",
    ),
    "palette": (
        with_style(color_palette="#FFFFFF"),
        f"{STYLE}.color_palette is '#FFFFFF'; expected a list of at most 16",
    ),
    "17 colours": (
        with_style(color_palette=["#FFFFFF"] * 17),
        f"{STYLE}.color_palette has 17 colours; at most 16",
    ),
    "6 colours": (
        with_element(color_palette=["#FFFFFF"] * 6),
        f"{ELEMENT}.color_palette has 6 colours; at most 5",
    ),
    "element": (
        with_elements("y"),
        rf"{COMPOSITION}.elements\[0\] is 'y'; expected an object",
    ),
    "no type": (
        with_elements({"desc": ""}),
        rf"{COMPOSITION}.elements\[0\].type is missing",
    ),
    "type": (with_element(type="object"), f"{ELEMENT}.type is 'object'; expected 'obj"),
    "type list": (with_element(type=["obj"]), rf"{ELEMENT}.type is \['obj'\]; expect"),
    "text of obj": (with_element(text="x"), f"{ELEMENT} has the unknown key 'text'"),
    "no text": (with_element(type="text"), f"{ELEMENT}.text is missing"),
    "blank text": (
        with_elements({"type": "text", "text": " ", "desc": "y"}),
        r"elements\[0\].text is ' '; expected the words",
    ),
    "desc": (with_element(desc=["x"]), rf"{ELEMENT}.desc is \['x'\]; expected a str"),
    "element order": (
        with_element(color_palette=[], bbox=[0, 0, 1, 1]),
        f"{ELEMENT} has its keys in the order type, desc, color_palette, bbox; "
        "the model was trained on type, bbox, desc, color_palette",
    ),
}


@pytest.mark.parametrize(
    ("value", "message"), REFUSED.values(), ids=list(REFUSED.keys())
)
def test_refused_captions_name_the_key_and_what_is_allowed(value, message):
    with pytest.raises(RequestError, match=message) as error:
        validate_caption(dumps(value))
    assert error.value.field == "prompt"


@pytest.mark.parametrize(
    "bbox",
    [
        None,
        "0 0 1 1",
        [],
        [0, 0, 1],
        [0, 0, 1, 1, 1],
        [0, 0, 1, 1001],
        [-1, 0, 1, 1],
        [0, 0, 0.5, 1],
        [0, 0, 1, True],
        [0, 0, 1, "1"],
        [0, 0, 1, float("nan")],
        [5, 0, 4, 1],
        [0, 5, 1, 4],
    ],
    ids=str,
)
def test_refused_boxes(bbox):
    value = with_elements({"type": "obj", "bbox": bbox, "desc": "x"})
    with pytest.raises(
        RequestError, match=r"bbox is .*; expected \[y_min, x_min, y_max, x_max\], int"
    ):
        validate_caption(dumps(value))


@pytest.mark.parametrize(
    "color", ["FFFFFF", "#fff", "#ffffff", "#GGGGGG", "#FFFFFF ", "#FFFFFF\n", 0, None]
)
def test_refused_colors(color):
    with pytest.raises(RequestError, match=r"color_palette\[1\] is .*; expected '#RR"):
        validate_caption(dumps(with_style(color_palette=["#FFFFFF", color])))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the JSON caption is broken: Expecting value: line 1"),
        (dumps(caption())[:-1], "the JSON caption is broken: Expecting"),
        (dumps(caption()) + "}", "the JSON caption is broken: Extra data"),
        ('{"a":1,"b":{},"a":2}', "has the key 'a' twice"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 10_000, "the JSON caption is broken: Exceeds the limit"),
        (r'{"high_level_description":"\ud800"}', "surrogate without its pair"),
        (r'{"\udfff":0}', "surrogate without its pair"),
    ],
    ids=["empty", "cut", "tail", "twice", "deep", "digits", "surrogate", "key"],
)
def test_refused_texts(text, message):
    with pytest.raises(RequestError, match=message):
        validate_caption(text)


def test_a_paired_surrogate_is_a_character():
    text = dumps(caption(high_level_description="@")).replace("@", r"\ud83d\ude00")
    assert validate_caption(text).high_level_description == "😀"


def test_messages_stay_short_whatever_is_sent():
    with pytest.raises(RequestError) as error:
        validate_caption(dumps(with_element(type="x" * 1_000_000)))
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ('{"high_level_description":"x"}', True),
        ('\n { "high_level', True),
        ("{}", True),
        ("a red circle", False),
        ("{red|blue} circle", False),
        ('["a"]', False),
        ('say {"a"}', False),
        ("", False),
    ],
)
def test_looks_like_json_caption(prompt, expected):
    assert looks_like_json_caption(prompt) is expected


def test_plain_text_is_warned_about_once(caplog):
    logger = logging.getLogger("test_plain_text_is_warned_about_once")
    with caplog.at_level(logging.WARNING):
        advise_on_caption(dumps(caption()), logger)
        assert not caplog.records
        advise_on_caption("a red circle", logger)
        advise_on_caption("a blue circle", logger)
    assert len(caplog.records) == 1
    assert "trained on JSON captions" in caplog.text


def test_the_fault_of_a_malformed_caption_is_logged(caplog):
    logger = logging.getLogger("test_the_fault_of_a_malformed_caption_is_logged")
    with caplog.at_level(logging.WARNING):
        advise_on_caption('{"high_level_description": 5}', logger)
    assert "not as the model was trained" in caplog.text
    assert "high_level_description" in caplog.text or "compositional" in caplog.text
