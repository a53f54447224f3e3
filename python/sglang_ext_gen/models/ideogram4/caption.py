# SPDX-License-Identifier: Apache-2.0
"""The JSON captions that Ideogram 4 was trained on: building and checking them.

The model takes a plain string. It was trained only on captions of this form, written
on one line; plain text works, less well:

    high_level_description           optional, recommended: one or two sentences
    style_description                optional
        aesthetics, lighting, photo, medium, color_palette         a photograph, or
        aesthetics, lighting, medium, art_style, color_palette     anything else
    compositional_deconstruction
        background
        elements                     a list of
            type "obj":   bbox, desc, color_palette
            type "text":  bbox, text, desc, color_palette

``bbox`` and the palettes are optional; everything else in a listed object is required.
A palette holds "#RRGGBB" in upper case, at most 16 for the picture and 5 for an
element. A box is [y_min, x_min, y_max, x_max] on a 0..1000 grid over the picture.

Source: the vendor's prompting guide and caption verifier (ideogram-oss/ideogram4,
``docs/prompting.md``, ``caption_verifier.py``). Like the verifier this refuses unknown
keys and keys in another order than the trained one. Deviations: a key given twice, an
empty ``text`` and a lone surrogate are refused too, and an error names one fault, the
first.
"""

import functools
import json
import logging
import re
import reprlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from sglang_ext_gen.errors import RequestError

BBOX_GRID = 1000
MAX_STYLE_COLORS = 16
MAX_ELEMENT_COLORS = 5

ElementType = Literal["obj", "text"]

# Key orders of the training captions.
_CAPTION_KEYS = (
    "high_level_description",
    "style_description",
    "compositional_deconstruction",
)
_PHOTO_KEYS = ("aesthetics", "lighting", "photo", "medium", "color_palette")
_ART_KEYS = ("aesthetics", "lighting", "medium", "art_style", "color_palette")
_COMPOSITION_KEYS = ("background", "elements")
_ELEMENT_KEYS: dict[str, tuple[str, ...]] = {
    "obj": ("type", "bbox", "desc", "color_palette"),
    "text": ("type", "bbox", "text", "desc", "color_palette"),
}
_OPTIONAL_KEYS = {
    "high_level_description",
    "style_description",
    "bbox",
    "color_palette",
}

_HEX_COLOR = re.compile(r"#[0-9A-F]{6}")
# The start of a JSON object; prose in braces has no quote after the brace.
_OBJECT_START = re.compile(r'\s*\{\s*["}]')


@dataclass(frozen=True)
class StyleDescription:
    """How the whole picture looks; exactly one of ``photo`` and ``art_style``.

    Args:
        aesthetics: For example "warm, playful".
        lighting: For example "soft morning light".
        medium: For example "photograph" or "oil on canvas".
        photo: Camera terms of a photograph, for example "85mm, shallow focus".
        art_style: The style of anything that is not a photograph.
        color_palette: At most 16 of "#RRGGBB", upper case.
    """

    aesthetics: str
    lighting: str
    medium: str
    photo: str | None = None
    art_style: str | None = None
    color_palette: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Element:
    """One thing in the picture, or one piece of text in it.

    Args:
        type: "obj", or "text" for words that the picture shows.
        desc: What it looks like.
        text: The words, verbatim; required for "text", not allowed for "obj".
        bbox: (y_min, x_min, y_max, x_max), integers in 0..1000.
        color_palette: At most 5 of "#RRGGBB", upper case.
    """

    type: ElementType
    desc: str
    text: str | None = None
    bbox: tuple[int, int, int, int] | None = None
    color_palette: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Caption:
    """A whole caption. ``build_caption`` makes one that is checked."""

    background: str
    elements: tuple[Element, ...]
    high_level_description: str | None = None
    style_description: StyleDescription | None = None

    def to_json(self) -> str:
        """The prompt: one line, compact, trained key order, non-ASCII unescaped.

        Nothing is checked here; ``validate_caption`` does.
        """
        style = self.style_description
        caption = {
            "high_level_description": self.high_level_description,
            "style_description": None if style is None else _style_to_dict(style),
            "compositional_deconstruction": {
                "background": self.background,
                "elements": [_element_to_dict(element) for element in self.elements],
            },
        }
        return json.dumps(
            _without_none(caption), ensure_ascii=False, separators=(",", ":")
        )


def build_caption(
    *,
    background: str,
    elements: Sequence[Element],
    high_level_description: str | None = None,
    style_description: StyleDescription | None = None,
) -> str:
    """Build a checked caption, to be passed as the prompt.

    Args:
        background: What is behind the elements.
        elements: The things and texts in the picture.
        high_level_description: The picture in one or two sentences; recommended.
        style_description: How the whole picture looks.

    Raises:
        RequestError: A value is not allowed; the message names its key.
    """
    caption = Caption(
        background=background,
        elements=tuple(elements),
        high_level_description=high_level_description,
        style_description=style_description,
    )
    text = caption.to_json()
    validate_caption(text)
    return text


def validate_caption(text: str) -> Caption:
    """Read a JSON caption and check all of it.

    Spaces and line breaks between tokens are accepted; ``Caption.to_json`` of the
    result writes the caption as the model saw captions in training.

    Raises:
        RequestError: For field ``prompt``; the message names the key's path, what was
            given and what is allowed.
    """
    caption = _read_object(_parse(text), "caption", _CAPTION_KEYS)
    composition_path = "caption.compositional_deconstruction"
    composition = _read_object(
        caption["compositional_deconstruction"], composition_path, _COMPOSITION_KEYS
    )
    elements = composition["elements"]
    if not isinstance(elements, list):
        _refuse(f"{composition_path}.elements", elements, "a list of elements")
    style_path = "caption.style_description"
    return Caption(
        background=_read_string(composition, "background", composition_path),
        elements=tuple(
            _read_element(element, f"{composition_path}.elements[{i}]")
            for i, element in enumerate(elements)
        ),
        high_level_description=_read_optional_string(
            caption, "high_level_description", "caption"
        ),
        style_description=_read_style(caption["style_description"], style_path)
        if "style_description" in caption
        else None,
    )


def looks_like_json_caption(prompt: str) -> bool:
    """Whether a prompt is meant as a JSON caption: it begins like a JSON object."""
    return _OBJECT_START.match(prompt) is not None


def advise_on_caption(prompt: str, logger: logging.Logger) -> None:
    """Log what would make a prompt work better; refuse nothing.

    A malformed JSON caption is drawn as it is, as in the references, but its fault
    is named: such captions look like a fault of the model. That plain text works
    less well is said once per process and logger.
    """
    if not looks_like_json_caption(prompt):
        _warn_plain_text(logger)
        return
    try:
        validate_caption(prompt)
    except RequestError as error:
        logger.warning("This JSON caption is not as the model was trained: %s", error)


@functools.cache
def _warn_plain_text(logger: logging.Logger) -> None:
    logger.warning(
        "Ideogram 4 was trained on JSON captions only: plain text works, less well. "
        "Build captions with sglang_ext_gen.models.ideogram4.caption.build_caption. "
        "This is said once."
    )


def _style_to_dict(style: StyleDescription) -> dict[str, Any]:
    # Both alternatives are written if both are given, so that the check names them.
    keys = _PHOTO_KEYS if style.photo is not None else _ART_KEYS
    fields = dict.fromkeys(keys) | vars(style)
    return _without_none(fields)


def _element_to_dict(element: Element) -> dict[str, Any]:
    fields = {
        "type": element.type,
        "bbox": element.bbox,
        "text": element.text,
        "desc": element.desc,
        "color_palette": element.color_palette,
    }
    return _without_none(fields)


def _without_none(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def _refuse(path: str, given: object, allowed: str) -> NoReturn:
    # reprlib keeps the message short whatever was sent.
    raise RequestError("prompt", f"{path} is {reprlib.repr(given)}; expected {allowed}")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise RequestError(
            "prompt", f"the JSON caption has the key {reprlib.repr(twice)} twice"
        )
    return fields


def _parse(text: str) -> Any:
    """JSON to Python, with every fault of hostile text as a RequestError."""
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys)
        # A lone surrogate ("\ud800") is a Python string but no Unicode text; it would
        # stop the tokenizer.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RequestError:
        raise
    except UnicodeEncodeError as error:
        raise RequestError(
            "prompt", "the JSON caption has an escaped surrogate without its pair"
        ) from error
    except RecursionError as error:
        raise RequestError("prompt", "the JSON caption is nested too deeply") from error
    except ValueError as error:
        # JSONDecodeError, and integers of more digits than Python converts.
        raise RequestError("prompt", f"the JSON caption is broken: {error}") from error
    return value


def _read_object(value: object, path: str, keys: tuple[str, ...]) -> dict[str, Any]:
    """Check that a JSON object has the given keys, in this order.

    Keys in ``_OPTIONAL_KEYS`` may be left out.
    """
    if not isinstance(value, dict):
        _refuse(path, value, f"an object with the keys {', '.join(keys)}")
    unknown = [key for key in value if key not in keys]
    if unknown:
        raise RequestError(
            "prompt",
            f"{path} has the unknown key {reprlib.repr(unknown[0])}; "
            f"allowed here: {', '.join(keys)}",
        )
    missing = [key for key in keys if key not in value and key not in _OPTIONAL_KEYS]
    if missing:
        raise RequestError("prompt", f"{path}.{missing[0]} is missing; it is required")
    order = [key for key in keys if key in value]
    if list(value) != order:
        raise RequestError(
            "prompt",
            f"{path} has its keys in the order {', '.join(value)}; "
            f"the model was trained on {', '.join(order)}",
        )
    return value


def _read_string(fields: dict[str, Any], key: str, path: str) -> str:
    value = fields[key]
    if not isinstance(value, str):
        _refuse(f"{path}.{key}", value, "a string")
    return value


def _read_optional_string(fields: dict[str, Any], key: str, path: str) -> str | None:
    return _read_string(fields, key, path) if key in fields else None


def _read_style(value: object, path: str) -> StyleDescription:
    if not isinstance(value, dict):
        _refuse(path, value, "an object with aesthetics, lighting, medium, ...")
    if ("photo" in value) == ("art_style" in value):
        found = "both" if "photo" in value else "neither"
        raise RequestError(
            "prompt",
            f"{path} has {found} of photo and art_style; give exactly one: photo for "
            "a photograph, art_style for anything else",
        )
    keys = _PHOTO_KEYS if "photo" in value else _ART_KEYS
    style = _read_object(value, path, keys)
    return StyleDescription(
        aesthetics=_read_string(style, "aesthetics", path),
        lighting=_read_string(style, "lighting", path),
        medium=_read_string(style, "medium", path),
        photo=_read_optional_string(style, "photo", path),
        art_style=_read_optional_string(style, "art_style", path),
        color_palette=_read_palette(style, path, MAX_STYLE_COLORS),
    )


def _read_element(value: object, path: str) -> Element:
    if not isinstance(value, dict):
        _refuse(path, value, "an object with the keys type, bbox, text, desc, ...")
    if "type" not in value:
        raise RequestError("prompt", f"{path}.type is missing; it is required")
    kind = value["type"]
    if kind not in ("obj", "text"):
        _refuse(f"{path}.type", kind, "'obj', or 'text' for words in the picture")
    element = _read_object(value, path, _ELEMENT_KEYS[kind])
    text = _read_optional_string(element, "text", path)
    if text is not None and not text.strip():
        _refuse(f"{path}.text", text, "the words that the picture shows")
    return Element(
        type=kind,
        desc=_read_string(element, "desc", path),
        text=text,
        bbox=_read_bbox(element["bbox"], f"{path}.bbox") if "bbox" in element else None,
        color_palette=_read_palette(element, path, MAX_ELEMENT_COLORS),
    )


def _read_bbox(value: object, path: str) -> tuple[int, int, int, int]:
    allowed = f"[y_min, x_min, y_max, x_max], integers in 0..{BBOX_GRID}"
    # `type() is int`, because True is an int to isinstance.
    if not isinstance(value, list) or [type(v) for v in value] != [int] * 4:
        _refuse(path, value, allowed)
    y_min, x_min, y_max, x_max = value
    if not all(0 <= v <= BBOX_GRID for v in value):
        _refuse(path, value, allowed)
    if y_min > y_max or x_min > x_max:
        _refuse(path, value, f"{allowed}, with y_min <= y_max and x_min <= x_max")
    return (y_min, x_min, y_max, x_max)


def _read_palette(
    fields: dict[str, Any], path: str, limit: int
) -> tuple[str, ...] | None:
    if "color_palette" not in fields:
        return None
    palette, path = fields["color_palette"], f"{path}.color_palette"
    if not isinstance(palette, list):
        _refuse(path, palette, f"a list of at most {limit} colours")
    if len(palette) > limit:
        raise RequestError(
            "prompt", f"{path} has {len(palette)} colours; at most {limit} are allowed"
        )
    for i, color in enumerate(palette):
        if not isinstance(color, str) or not _HEX_COLOR.fullmatch(color):
            _refuse(f"{path}[{i}]", color, "'#RRGGBB' with upper-case hex digits")
    return tuple(palette)
