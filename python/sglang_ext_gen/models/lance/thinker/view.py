# SPDX-License-Identifier: Apache-2.0
"""The released folder as one that SGLang's language model runtime can open.

The release has no ``config.json`` that SGLang could read, and keeps the vision tower
in a folder of its own. So a temporary folder is made, with a config of ours and links
to the released files, and takes the place of the model path. Nothing is copied, and
the folder goes with the process that made it.
"""

import atexit
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from sglang_ext_gen.checkpoint.component import refuse
from sglang_ext_gen.checkpoint.layout import read_json
from sglang_ext_gen.checkpoint.released_config import with_rope_scaling
from sglang_ext_gen.models.lance.checkpoint import (
    VISION,
    LanceFiles,
    check_understanding,
    find_files,
    has_bundled_vision,
    recognises,
)
from sglang_ext_gen.models.lance.tasks import Variant

logger = logging.getLogger(__name__)

HUB_ID = "bytedance-research/Lance"

_TOKENIZER_PATTERNS = ("tokenizer*", "vocab.json", "merges.txt")
_WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json")
# Keys of llm_config.json that describe the decoder; all others are stock's names
# of another model.
_DECODER_KEYS = (
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_theta",
)


def prepare_arguments(server_args: Any) -> None:
    """Point SGLang's arguments at a view, if they name a Lance checkpoint.

    The name under which the model is served stays what the user gave. Chunked prefill
    is switched off: a visual block is one bidirectional whole.

    Raises:
        CheckpointError: The checkpoint is incomplete; names what is missing.
    """
    path = Path(server_args.model_path)
    if server_args.model_path.lower() == HUB_ID.lower():
        # SGLang would look for a config.json of the whole repository.
        path = Path(
            snapshot_download(
                server_args.model_path,
                revision=server_args.revision,
                cache_dir=server_args.download_dir,
            )
        )
    if not path.is_dir() or not recognises(path):
        return
    view = make_view(path)
    if server_args.served_model_name is None:
        server_args.served_model_name = server_args.model_path
    server_args.model_path = str(view)
    server_args.chunked_prefill_size = -1


def make_view(path: Path) -> Path:
    """Write the view of a checkpoint into a new temporary folder.

    Args:
        path: The root, which means ``Lance_3B_Video`` as in the official script
            (``Lance_3B`` when it is alone), or one checkpoint directory.

    Raises:
        CheckpointError: The checkpoint is incomplete.
    """
    refuse(path, check_understanding(path))
    files = find_files(path)
    variant = _variant(files)
    source = files.folder(variant).resolve()
    view = Path(tempfile.mkdtemp(prefix="sglang-ext-gen-lance-"))
    atexit.register(shutil.rmtree, view, ignore_errors=True)
    weights = files.transformer(variant).file.name.removesuffix(".safetensors")
    for pattern in (*_TOKENIZER_PATTERNS, *_WEIGHT_PATTERNS):
        for file in source.glob(pattern):
            is_weight = ".safetensors" in file.name
            if not is_weight or file.name.startswith(weights):
                (view / file.name).symlink_to(file)
    config = view_config(files, variant)
    (view / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
    # The official code answers greedily and never reads the released file.
    defaults = {"temperature": 0.0, "eos_token_id": config["eos_token_id"]}
    (view / "generation_config.json").write_text(json.dumps(defaults), "utf-8")
    logger.info("%s: %s is served from %s", path, variant, view)
    return view


def view_config(files: LanceFiles, variant: Variant) -> dict[str, Any]:
    """``config.json`` of a view."""
    decoder, vision = files.transformer(variant), VISION.at(files.root)
    name = decoder.component.config_file
    released = with_rope_scaling(read_json(decoder.folder / name), name)
    tower = None if has_bundled_vision(decoder) else str(vision.file.resolve())
    return {
        **{key: released[key] for key in _DECODER_KEYS if key in released},
        "architectures": ["LanceForConditionalGeneration"],
        "model_type": "lance_thinker",
        "rope_scaling": {
            "rope_type": "default",
            "mrope_section": released["rope_scaling"]["mrope_section"],
        },
        "tie_word_embeddings": False,
        "stored_vocab_size": decoder.config.vocab_size,
        "torch_dtype": "bfloat16",
        "vision_config": read_json(vision.folder / vision.component.config_file),
        "vision_weights": tower,
        # Rows that no token uses are not loaded, so that nothing can choose one.
        "vocab_size": _num_tokens(decoder.folder),
    }


def _variant(files: LanceFiles) -> Variant:
    if files.named is not None:
        return files.named
    return files.variants()[-1]


def _num_tokens(folder: Path) -> int:
    """Length of the tokenizer: one more than the highest id of a token."""
    added = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
    ids = [int(token) for token in added]
    vocabulary = folder / "vocab.json"
    if vocabulary.is_file():
        ids += read_json(vocabulary).values()
    else:
        model = read_json(folder / "tokenizer.json")
        ids += model["model"]["vocab"].values()
        ids += [token["id"] for token in model["added_tokens"]]
    return max(ids) + 1
