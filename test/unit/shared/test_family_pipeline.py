# SPDX-License-Identifier: Apache-2.0
"""A component table as SGLang's pipeline: two small components, really loaded."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from lazy import LazyModule
from sglang_ext_gen.errors import CheckpointError

if TYPE_CHECKING:
    from sglang.multimodal_gen.runtime.server_args import ServerArgs


small = LazyModule("small_family")


def write(folder: Path, width: int) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"width": width}), "utf-8")
    weight = torch.arange(width**2, dtype=torch.float32).view(width, width)
    save_file({"weight": weight}, folder / small.TRANSFORMER.file)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "model" / "transformer", 2)
    write(tmp_path / "model" / "in/a/folder", 3)
    return tmp_path / "model"


@pytest.fixture
def server_args(root: Path, ideogram4_golden: Any) -> "ServerArgs":
    from sglang.multimodal_gen.runtime.server_args import (
        ServerArgs,
        set_global_server_args,
    )

    # Any path that stock knows will do: the pipeline gets its own.
    server_args = ServerArgs.from_kwargs(
        model_path=str(ideogram4_golden.checkpoint), backend="sglang"
    )
    server_args.pipeline_config = small.SmallConfig()
    set_global_server_args(server_args)
    return server_args


def test_every_row_is_loaded_from_its_folder_in_its_precision(
    root: Path, server_args: "ServerArgs"
) -> None:
    pipeline = small.SmallPipeline(str(root), server_args)
    assert pipeline.modules.keys() == {"transformer", "small_encoder"}
    transformer, encoder = map(pipeline.get_module, ("transformer", "small_encoder"))
    assert transformer.weight.tolist() == [[0, 1], [2, 3]]
    assert transformer.weight.dtype == torch.bfloat16
    assert encoder.weight.shape == (3, 3)
    assert encoder.weight.dtype == torch.float32
    assert transformer.options is server_args.pipeline_config


def test_a_process_loads_what_it_needs_and_knows_of_the_rest(
    root: Path, server_args: "ServerArgs"
) -> None:
    class Half(small.SmallPipeline):
        unneeded = frozenset({"vae", "small_encoder"})

    pipeline = Half(str(root), server_args)
    assert pipeline.modules.keys() == {"transformer"}
    index = pipeline._load_config()
    assert index["vae"] == ["diffusers", "AutoencoderKL"]
    assert index["small_encoder"] == ["sglang_ext_gen", "small_encoder"]
    # The other pipeline's own list is not changed by it.
    assert small.SmallPipeline(str(root), server_args).modules.keys() == {
        "transformer",
        "small_encoder",
    }


def test_the_user_may_put_a_component_elsewhere(
    root: Path, server_args: "ServerArgs", tmp_path: Path
) -> None:
    write(tmp_path / "other", 5)
    server_args.component_paths = {"transformer": str(tmp_path / "other")}
    server_args.component_precisions = {"transformer": "fp32"}
    transformer = small.SmallPipeline(str(root), server_args).get_module("transformer")
    assert transformer.weight.shape == (5, 5)
    assert transformer.weight.dtype == torch.float32


def test_damage_is_refused_before_anything_is_loaded(
    root: Path, server_args: "ServerArgs"
) -> None:
    (root / "in/a/folder" / small.ENCODER.file).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"1 problem\(s\).*is truncated"):
        small.SmallPipeline(str(root), server_args)
