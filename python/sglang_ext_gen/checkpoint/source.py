# SPDX-License-Identifier: Apache-2.0
"""Where a checkpoint is on this machine."""

from pathlib import Path


def checkpoint_folder(
    path_or_id: str, revision: str | None, *, has_index: bool = True
) -> Path:
    """The local folder of a checkpoint, downloaded where it is not local.

    A local folder is taken as it is. SGLang itself asks the hub for what one lacks,
    under a name that is no id.

    Args:
        path_or_id: Local folder or Hugging Face id.
        revision: Of the id.
        has_index: Whether the release has a ``model_index.json``, by which SGLang
            tells that a download is complete.
    """
    folder = Path(path_or_id)
    if folder.is_dir():
        return folder
    # Imported here: it takes long, and a local folder does not need it.
    from sglang.multimodal_gen.runtime.utils.hf_diffusers_utils import (
        maybe_download_model,
    )

    return Path(
        maybe_download_model(
            path_or_id, force_diffusers_model=has_index, revision=revision
        )
    )
