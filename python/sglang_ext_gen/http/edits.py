# SPDX-License-Identifier: Apache-2.0
"""``POST /v1/images/edits``: the fields and checks of generations, and pictures.

The form is checked like a JSON body and becomes the body of stock's
``/v1/images/generations``, with the pictures as paths: stock's own edits route reads a
fixed list of form fields and drops the family's.

A picture is uploaded (``image``, ``image[]``) or, after the uploads in order, named by
its address (``url``, ``url[]``), which the server fetches as ``media/fetch.py``
allows. How many pictures a model takes, and of which size, is the family's to say.

Differences from stock: ``mask`` and a prompt enhancer are refused instead of ignored.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.http import images
from sglang_ext_gen.http.served_model import ServedModel
from sglang_ext_gen.http.uploads import Form
from sglang_ext_gen.media import fetch, limits
from sglang_ext_gen.media.images import as_paths
from sglang_ext_gen.request.fields import RequestField

PATH = "/v1/images/edits"
# The family's name of a field -> the client's.
SPELLING = {"image_path": "image"}

_ADDRESSES = RequestField("url", "strs", "Addresses of pictures.")
# What the route has beyond the fields of generations.
FIELDS = (_ADDRESSES,)
_FILES = ("image", "image[]")
_REFUSED = {
    "mask": "this model edits by words, not by a mask",
    "input_fidelity": "the pictures are always followed closely",
}
# The prompt enhancer of the generations route would not see the pictures.
_FORWARDED = tuple(f for f in images.FORWARDED if f is not images.ENHANCE_PROMPT)


async def checked_edit_body(
    form: Form, model: ServedModel, folder: Path
) -> dict[str, Any]:
    """Check an edit and rewrite it as a body for ``/v1/images/generations``.

    Fields are checked before anything is fetched.

    Args:
        form: The request.
        model: The model that would run it.
        folder: Where fetched pictures go; see ``media/upload_folders.py``.

    Raises:
        RequestError: Names the field, in the client's spelling.
        Refusal: 400, a field that is not known.
    """
    fields = dict(form.fields)
    addresses = as_paths(fields.pop(_ADDRESSES.name, None))
    uploaded = _uploaded(form)
    for name in fields:
        if name in _REFUSED:
            raise RequestError(name, _REFUSED[name])
    fetched = [folder / f"url-{index}" for index in range(len(addresses))]
    paths = [*uploaded, *fetched]
    if not paths:
        raise RequestError("image", "missing, expected at least one picture to edit")
    if len(paths) > limits.MAX_IMAGES:
        raise RequestError(
            "image", f"{len(paths)} pictures given, at most {limits.MAX_IMAGES}"
        )
    checked = images.checked_image_body(
        fields,
        model,
        sources={"image_path": [str(path) for path in paths]},
        spelling=SPELLING,
        forwarded=_FORWARDED,
    )
    if fetched:
        await asyncio.to_thread(_fetch, addresses, fetched)
    # As on stock's edits route; its generations route prefers a URL.
    return {"response_format": "b64_json", **checked}


def _uploaded(form: Form) -> list[Path]:
    for file in form.files:
        if file.field not in _FILES:
            reason = _REFUSED.get(file.field, "a file given, expected it as image")
            raise RequestError(file.field, reason)
    if "image" in form.fields:
        raise RequestError(
            "image", "a text given, expected a file; an address goes into url"
        )
    return [file.path for file in form.files]


def _fetch(addresses: Sequence[str], targets: Sequence[Path]) -> None:
    """Download each address; all together are bounded as an upload is."""
    deadline = time.monotonic() + limits.MAX_BODY_SECONDS
    left = limits.MAX_UPLOAD_BODY_BYTES
    for address, target in zip(addresses, targets, strict=True):
        seconds = min(limits.FETCH_SECONDS, deadline - time.monotonic())
        content = fetch.fetch(address, _ADDRESSES.name, left, seconds)
        left -= len(content)
        target.write_bytes(content)
