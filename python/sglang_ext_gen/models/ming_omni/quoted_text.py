# SPDX-License-Identifier: Apache-2.0
"""Which words of a prompt shall be drawn as text: the official rule, quirks included.

Only one span is ever used. Curly quotes win over straight ones wherever they stand, an
empty last span means no text, and two apostrophes of plain English may count as quotes.
"""

import re

# Straight quotes, single and double curly ones, in the order of the official list,
# whose last element is used.
_PATTERNS = ('"(.*?)"', "\u2018(.*?)\u2019", "\u201c(.*?)\u201d")
_OPENING = ('"', "\u2018", "\u201c")
_REMOVAL = ("remove", "delete", "erase")
# Longest span between apostrophes that counts as quoted; a Chinese character is 3.
_MAX_APOSTROPHE_SPAN = 20
_TEMPLATE = 'Text "{}". '
_MARK = 'Text "'


def quoted_text(prompt: str) -> str:
    """The text that the prompt quotes, as the glyph encoder wants it.

    Returns:
        ``Text "SALE". `` with its trailing space, or nothing.
    """
    text = prompt
    if _apostrophes_are_quotes(text):
        text = text.replace("'", '"')
    spans = [span for pattern in _PATTERNS for span in re.findall(pattern, text)]
    if len(spans) == 1 and _is_removed(text):
        return ""
    return _TEMPLATE.format(spans[-1]) if spans and spans[-1] else ""


def as_glyph_text(text: str) -> str:
    """A text that the user gives instead: wrapped, unless it is already."""
    return text if not text or text.startswith(_MARK) else _TEMPLATE.format(text)


def _apostrophes_are_quotes(text: str) -> bool:
    pieces = text.split("'")
    if len(pieces) < 3 or len(pieces) % 2 == 0:
        return False
    return all(_length(span) < _MAX_APOSTROPHE_SPAN for span in pieces[1::2])


def _length(span: str) -> int:
    return sum(3 if "\u4e00" <= character <= "\u9fff" else 1 for character in span)


def _is_removed(text: str) -> bool:
    """Whether a word for removing comes before the first quote."""
    lowered = text.lower()
    quotes = [index for mark in _OPENING if (index := text.find(mark)) >= 0]
    words = [index for word in _REMOVAL if (index := lowered.find(word)) >= 0]
    return bool(words) and min(words) < min(quotes)
