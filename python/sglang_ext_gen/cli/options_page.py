# SPDX-License-Identifier: Apache-2.0
"""``docs/options.md``: what becomes of each of SGLang's options, family by family.

``make docs`` writes the page; a test compares it with the tables.
"""

import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path

from sglang_ext_gen.diffusion.options import OptionRow, as_written, stock_options
from sglang_ext_gen.registry import FAMILIES, ModelFamily
from sglang_ext_gen.request.fields import CHANGE_NOTHING

_INTRODUCTION = """\
# What becomes of SGLang's options

Made by `make docs` from the tables in `python/sglang_ext_gen/diffusion/options.py` and
in each family's `options.py` and `request.py`; do not edit.

Every server argument of SGLang's diffusion runtime, every `SGLANG_*` variable that it
reads, and every field of its requests is here once for all families, or once a family:

- **refused**: nothing would obey it. Loading stops with its name before a worker
  starts, a request before it is queued. What asks for nothing is never refused: off,
  or the default.
- **does not apply**: it is about something that is not there. One that is given
  changes nothing, and an argument or variable is logged.
- **works** as SGLang says.

`a*` stands for all names that begin so. A name without dashes is an argument of Python
(`DiffGenerator.from_pretrained`) that has no flag. The families' own options and
request fields are in the [README](../README.md); over HTTP, requests have fewer fields.
"""
# Names that are shown as one where all of them share a row.
_PREFIXES = (
    *("--disagg-", "--kv-cache-quant", "--layerwise-", "--log-requests", "--lora-"),
    *("--minimax-h3-", "--vae-config.", "SGLANG_CACHE_DIT_SECONDARY_"),
    *("SGLANG_DIFFUSION_MINIMAX_H3_", "SGLANG_S3_", "SGLANG_SANA_WM_"),
    *("SGLANG_USE_ROCM_", "frame_interpolation_", "progressive_", "rollout"),
)

Rows = Mapping[str, OptionRow]


def request_options(family: ModelFamily) -> dict[str, OptionRow]:
    """Name -> row of each of stock's request fields; imports SGLang."""
    from sglang.multimodal_gen.configs.sample.sampling_params import SamplingParams

    params = family.load(family.sampling_params)
    helps = {field.name: field.help for field in params.request_fields}
    rows: dict[str, OptionRow] = {}
    for name in (field.name for field in fields(SamplingParams)):
        _, refusal, reason = helps.get(name, "").rpartition("Refused: ")
        if refusal:
            rows[name] = OptionRow("refused", (name,), reason.rstrip("."))
        elif name in CHANGE_NOTHING and name not in helps:
            rows[name] = OptionRow("does not apply", (name,), CHANGE_NOTHING[name])
        elif name in params.used_fields():
            rows[name] = OptionRow("works", (name,))
        else:
            rows[name] = OptionRow("refused", (name,), "nothing reads it")
    return rows


def options_page() -> str:
    """The page in Markdown; imports SGLang."""
    options, requests = {}, {}
    for family in FAMILIES:
        table = stock_options(family.load(family.stock_options))
        options[family.title] = {as_written(name): row for name, row in table.items()}
        requests[family.title] = request_options(family)
    parts = {"Server arguments and variables": options, "Request fields": requests}
    lines = [_INTRODUCTION]
    for heading, tables in parts.items():
        lines += [f"## {heading}", ""]
        first, *others = tables.values()
        common = {
            name
            for name, row in first.items()
            if all(rows[name] == row for rows in others)
        }
        shared = {name: row for name, row in first.items() if name in common}
        lines += ["### All families", "", *_section(shared, first)]
        # Families with one table share a section.
        titles: dict[tuple[tuple[str, OptionRow], ...], list[str]] = {}
        for title, rows in tables.items():
            own = tuple((n, row) for n, row in rows.items() if n not in common)
            titles.setdefault(own, []).append(title)
        for own, names in titles.items():
            lines += [f"### {', '.join(names)}", "", *_section(dict(own), first)]
    return "\n".join(lines).rstrip() + "\n"


def _section(rows: Rows, all_names: Rows) -> Iterator[str]:
    """A table of what is refused, one of what does not apply, and what works."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, row in rows.items():
        why = row.reason
        if row.unless:
            why += f" (allowed: {', '.join(str(value) for value in row.unless)})"
        groups.setdefault((row.status, why), []).append(name)
    for status in ("refused", "does not apply"):
        found = {why: names for (is_, why), names in groups.items() if is_ == status}
        if found:
            yield from (f"| {status} | why |", "| --- | --- |")
            for why, names in found.items():
                yield f"| {' '.join(_shortened(names, all_names))} | {why} |"
            yield ""
    working = groups.get(("works", ""))
    if working:
        text = f"Works: {', '.join(_shortened(working, all_names))}."
        yield from textwrap.wrap(
            text, width=88, break_long_words=False, break_on_hyphens=False
        )
        yield ""


def _shortened(names: list[str], all_names: Rows) -> list[str]:
    """Names with quotes, and ``prefix*`` for all that begin so."""
    shown: dict[str, None] = {}
    for name in names:
        for prefix in _PREFIXES:
            alike = [other for other in all_names if other.startswith(prefix)]
            if name in alike and set(alike) <= set(names):
                name = f"{prefix}*"
        shown[f"`{name}`"] = None
    return list(shown)


def main() -> None:
    """Write the page to the path in the arguments."""
    Path(sys.argv[1]).write_text(options_page(), "utf-8")


if __name__ == "__main__":
    main()
