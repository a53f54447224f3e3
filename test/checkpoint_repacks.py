# SPDX-License-Identifier: Apache-2.0
"""Other ways to write the same Ideogram 4 checkpoint, for tests.

Files are edited as bytes, so that nothing under test is used to make them.
"""

import json
from collections.abc import Callable
from pathlib import Path

from checkpoint_damage import RawTensor, read_raw, write_raw


def edit_json(file: Path, **changes: object) -> None:
    """Change keys of a JSON file; None removes one."""
    values = {**json.loads(file.read_text("utf-8")), **changes}
    kept = {key: value for key, value in values.items() if value is not None}
    file.write_text(json.dumps(kept), "utf-8")


def edit_tensors(
    file: Path, edit: Callable[[str, RawTensor], dict[str, RawTensor]]
) -> None:
    tensors: dict[str, RawTensor] = {}
    for name, tensor in read_raw(file).items():
        tensors |= edit(name, tensor)
    write_raw(file, tensors)


def split_attention(name: str, tensor: RawTensor) -> dict[str, RawTensor]:
    """Rename one tensor from the vendor's layout to diffusers'."""
    if ".attention.o." in name:
        return {name.replace(".o.", ".to_out.0."): tensor}
    if ".attention.qkv." not in name:
        return {name: tensor}
    rows, size = tensor.shape[0] // 3, len(tensor.data) // 3
    return {
        name.replace("qkv", part): RawTensor(
            tensor.dtype,
            (rows, *tensor.shape[1:]),
            tensor.data[n * size : (n + 1) * size],
        )
        for n, part in enumerate(("to_q", "to_k", "to_v"))
    }


def shard(file: Path) -> None:
    """Deal the tensors of a file out to two shards with an index."""
    tensors = read_raw(file)
    names = {name: f"part-{n % 2}.safetensors" for n, name in enumerate(tensors)}
    for part in set(names.values()):
        write_raw(
            file.with_name(part),
            {name: tensors[name] for name in tensors if names[name] == part},
        )
    file.unlink()
    index = file.with_name(f"{file.name}.index.json")
    index.write_text(json.dumps({"weight_map": names}), "utf-8")
