# SPDX-License-Identifier: Apache-2.0
"""Temporary folders for what clients upload: one a request, deleted with it."""

import shutil
import tempfile
from pathlib import Path

_PREFIX = "sglang-ext-gen-upload-"


def new_folder() -> Path:
    """A new temporary folder for the files of one request."""
    return Path(tempfile.mkdtemp(prefix=_PREFIX))


def release(path: str | Path) -> None:
    """Delete the upload folder that holds ``path``; any other path is left alone."""
    folder = Path(path).parent
    is_ours = folder.name.startswith(_PREFIX)
    if is_ours and folder.parent == Path(tempfile.gettempdir()):
        shutil.rmtree(folder, ignore_errors=True)
