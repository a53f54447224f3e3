# SPDX-License-Identifier: Apache-2.0
"""A family of stock SGLang gives the same bytes with and without this package.

Z-Image, because it is the stock family that runs on an x86 CPU without changes. The
tiny checkpoint is made with the classes of diffusers and transformers.
"""

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from conftest import Golden
from images import read_rgb
from server.servers import server_environment
from server.starts import count_start
from sglang_ext_gen.registry import FAMILIES

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("stock_picture.py")
# An empty string means "all plugins" to SGLang; this is a list without a name.
NO_PLUGINS = ","


def write_tiny_z_image(folder: Path, tokenizer: Path) -> None:
    """A random Z-Image checkpoint of 0.5 MB, bf16."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.transformers.transformer_z_image import (
        ZImageTransformer2DModel,
    )
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
        FlowMatchEulerDiscreteScheduler,
    )
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(0)
    encoder = Qwen3Config(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    transformer = {
        "dim": 64,
        "n_layers": 2,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": encoder.hidden_size,
        "axes_dims": [8, 12, 12],
    }
    vae = {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [8, 8, 16, 16],
        "layers_per_block": 1,
        "latent_channels": 16,
        "norm_num_groups": 4,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    components: dict[str, tuple[str, Any]] = {
        "scheduler": ("diffusers", FlowMatchEulerDiscreteScheduler(shift=3.0)),
        "text_encoder": ("transformers", Qwen3Model(encoder)),
        "transformer": ("diffusers", ZImageTransformer2DModel(**transformer)),
        "vae": ("diffusers", AutoencoderKL(**vae)),
    }
    # Without a version stock hands the checkpoint to diffusers.
    index: dict[str, Any] = {
        "_class_name": "ZImagePipeline",
        "_diffusers_version": version("diffusers"),
    }
    for name, (library, component) in components.items():
        if name != "scheduler":
            component.to(torch.bfloat16)
        if name == "transformer":
            # diffusers leaves these two as the memory was found.
            torch.nn.init.normal_(component.x_pad_token, std=0.02)
            torch.nn.init.normal_(component.cap_pad_token, std=0.02)
        component.save_pretrained(folder / name)
        index[name] = [library, type(component).__name__]
    # Stock reads these two by other names than diffusers writes.
    config = json.loads((folder / "transformer" / "config.json").read_text("utf-8"))
    config |= {
        "num_layers": config["n_layers"],
        "num_attention_heads": config["n_heads"],
    }
    (folder / "transformer" / "config.json").write_text(json.dumps(config), "utf-8")
    shutil.copytree(tokenizer, folder / "tokenizer")
    index["tokenizer"] = ["transformers", "Qwen2Tokenizer"]
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, ideogram4_golden: Golden
) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Picture and report of a run with and one without plugins, side by side."""
    folder = tmp_path_factory.mktemp("stock")
    checkpoint = folder / "tiny-z-image"
    write_tiny_z_image(checkpoint, ideogram4_golden.checkpoint / "tokenizer")
    environments = {"with": {}, "without": {"SGLANG_PLUGINS": NO_PLUGINS}}
    for name in environments:
        count_start(f"stock {name} our plugin")
    processes = {
        name: subprocess.Popen(
            [sys.executable, PROGRAM, checkpoint, folder / f"{name}.png"],
            env=server_environment(environment),
            stdout=subprocess.PIPE,
            stderr=(folder / f"{name}.log").open("wb"),
        )
        for name, environment in environments.items()
    }
    found = {}
    for name, process in processes.items():
        output, _ = process.communicate(timeout=1200)
        log = (folder / f"{name}.log").read_text("utf-8", "replace")
        assert process.returncode == 0, log[-4000:]
        found[name] = (folder / f"{name}.png", json.loads(output))
    return found


def test_only_one_of_the_runs_had_our_plugin(runs) -> None:
    names = sorted(family.pipeline_name for family in FAMILIES)
    assert runs["with"][1]["pipelines"] == names
    assert runs["with"][1]["hooks"] > 0
    assert runs["without"][1] == {"pipelines": [], "hooks": 0}


def test_the_pictures_are_the_same_bytes(runs) -> None:
    with_plugin, without = runs["with"][0], runs["without"][0]
    assert read_rgb(without).std() > 1, "a flat picture would prove nothing"
    assert with_plugin.read_bytes() == without.read_bytes()
