# SPDX-License-Identifier: Apache-2.0
"""Server arguments that say where weights come from, in which form, and where they run.

None of them is ignored: each changes what is computed, or is refused by its name.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_image_runtime import copy_checkpoint, decibels, load_pipeline
from sglang_ext_gen.errors import CheckpointError, ConfigError
from sglang_ext_gen.models.qwen_image.checkpoint import components_from_elsewhere

pytestmark = pytest.mark.slow

REQUEST: dict[str, Any] = {
    **{"prompt": "a cat on a hill", "negative_prompt": "dull"},
    **{"width": 160, "height": 128, "num_inference_steps": 3, "seed": 7},
}


def scaled_copy(source: Path, target: Path, mark: str) -> Path:
    """A component with some of its weights larger."""
    shutil.copytree(source, target)
    file = target / "diffusion_pytorch_model.safetensors"
    weights = {
        name: tensor * 1.5 if mark in name else tensor
        for name, tensor in load_file(file).items()
    }
    save_file(weights, file, metadata={"format": "pt"})
    return target


@pytest.fixture(scope="module")
def plain(runtime, t2i_checkpoint) -> torch.Tensor:
    return load_pipeline(t2i_checkpoint).pictures(**REQUEST)


@pytest.fixture(scope="module")
def other(t2i_checkpoint, tmp_path_factory) -> Path:
    """Another transformer."""
    folder = tmp_path_factory.mktemp("other") / "transformer"
    return scaled_copy(t2i_checkpoint / "transformer", folder, "proj_out")


def test_a_transformer_from_elsewhere(t2i_checkpoint, plain, other) -> None:
    file = other / "diffusion_pytorch_model.safetensors"
    pictures = [
        load_pipeline(t2i_checkpoint, **options).pictures(**REQUEST)
        for options in (
            {"component_paths": {"transformer": str(other)}},
            {"transformer_weights_path": str(file)},
            {"component_weights_paths": {"transformer": str(file)}},
            {"component_paths": {"transformer": str(other)}, "weight_format": "fp8"},
        )
    ]
    assert decibels(pictures[0], plain) < 40
    assert torch.equal(pictures[1], pictures[0])
    assert torch.equal(pictures[2], pictures[0])
    # Rounded to FP8, and still the other one.
    assert decibels(pictures[3], pictures[0]) > decibels(pictures[3], plain) + 6


def test_a_vae_from_elsewhere(t2i_checkpoint, plain, tmp_path) -> None:
    vae = scaled_copy(t2i_checkpoint / "vae", tmp_path / "vae", "decoder.conv_out")
    loaded = load_pipeline(t2i_checkpoint, component_paths={"vae": str(vae)})
    assert decibels(loaded.pictures(**REQUEST), plain) < 40


def test_what_comes_from_elsewhere_may_be_damaged_here(
    t2i_checkpoint, plain, other, tmp_path
) -> None:
    damaged = copy_checkpoint(t2i_checkpoint, tmp_path / "damaged")
    file = damaged / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({"proj_out.bias": torch.zeros(3)}, file)
    with pytest.raises(CheckpointError, match="transformer"):
        load_pipeline(damaged)
    loaded = load_pipeline(damaged, component_paths={"transformer": str(other)})
    assert decibels(loaded.pictures(**REQUEST), plain) < 40


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"quantization": "fp8"}, "quantization"),
        ({"transformer_weights_path": "a.safetensors"}, "transformer_weights_path"),
        (
            {"component_weights_paths": {"transformer": "a.safetensors"}},
            "component_weights_paths.transformer",
        ),
        (
            {"component_quantizations": {"transformer": "fp8"}},
            "component_quantizations.transformer",
        ),
        ({"use_fsdp_inference": True}, "use_fsdp_inference"),
    ],
)
def test_not_with_our_fp8_weights(runtime, t2i_checkpoint, options, named) -> None:
    with pytest.raises(ConfigError, match=f"{named}: not with weight_format fp8"):
        load_pipeline(t2i_checkpoint, weight_format="fp8", **options)


@pytest.mark.parametrize(
    "options",
    [{"cache_dit_config": "a.yaml"}, {"regional_compile": True}],
    ids=lambda options: next(iter(options)),
)
def test_what_has_no_use_is_refused(runtime, t2i_checkpoint, options) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match="--" + name.replace("_", "-")):
        load_pipeline(t2i_checkpoint, enable_torch_compile=True, **options)


def test_stocks_quantization_reaches_stocks_loader(runtime, t2i_checkpoint) -> None:
    """On a CPU it cannot be done, and that is said."""
    with pytest.raises(ValueError, match="awq"):
        load_pipeline(t2i_checkpoint, quantization="awq")


@pytest.mark.parametrize(
    "options",
    [
        {"dit_cpu_offload": True},
        {"text_encoder_cpu_offload": True, "vae_cpu_offload": True},
        {"use_fsdp_inference": True},
        {"disable_conditioning_cache": True},
        {"enable_layerwise_nvtx_marker": True},
        {"allow_cudnn_tf32": False},
    ],
    ids=lambda options: "+".join(options),
)
def test_where_it_runs_does_not_change_the_picture(
    t2i_checkpoint, plain, options
) -> None:
    """Stock keeps all in place on a CPU, whatever is asked; it does so here."""
    loaded = load_pipeline(t2i_checkpoint, **options)
    assert torch.equal(loaded.pictures(**REQUEST), plain)


def test_layers_are_not_offloaded_from_a_cpu(runtime, t2i_checkpoint) -> None:
    with pytest.raises(ConfigError, match="dit_layerwise_offload: there is no accel"):
        load_pipeline(t2i_checkpoint, dit_layerwise_offload=True)


def test_stocks_offload_finds_our_transformer(t2i) -> None:
    from sglang.multimodal_gen.runtime.managers.memory_managers.layerwise_offload import (  # noqa: E501
        LayerwiseOffloadableModuleMixin,
    )

    transformer = t2i.pipeline.get_module("transformer")
    assert isinstance(transformer, LayerwiseOffloadableModuleMixin)
    assert transformer.layer_names == ["transformer_blocks"]


def test_a_large_picture_is_decoded_in_tiles(t2i_checkpoint, plain) -> None:
    loaded = load_pipeline(t2i_checkpoint, vae_tiling=True)
    vae = loaded.pipeline.get_module("vae")
    large = {**REQUEST, "width": 512, "height": 512, "num_inference_steps": 2}
    tiled = loaded.pictures(**large)
    assert vae.use_tiling
    whole = load_pipeline(t2i_checkpoint).pictures(**large)
    assert not torch.equal(tiled, whole)
    assert decibels(tiled, whole) > 20


def test_texts_are_encoded_once(t2i_checkpoint, runtime) -> None:
    """The conditioning cache keeps texts over requests; a switch turns it off."""
    for options, calls in (({}, 2), ({"disable_conditioning_cache": True}, 4)):
        loaded = load_pipeline(t2i_checkpoint, **options)
        seen: list[int] = []
        encoder = loaded.pipeline.get_module("text_encoder")
        handle = encoder.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        for seed in (1, 2):
            loaded.pictures(**{**REQUEST, "seed": seed})
        handle.remove()
        assert len(seen) == calls


def test_the_encoder_role_of_edits_encodes_references(runtime, edit_checkpoint) -> None:
    pipeline = load_pipeline(edit_checkpoint, disagg_role="encoder").pipeline
    (stage,) = [s for s in pipeline.stages if "Reference" in type(s).__name__]
    assert stage.vae is pipeline.get_module("vae") is not None
    assert pipeline.get_module("transformer") is None


def test_graphs_find_our_transformer(t2i) -> None:
    """Prompts are padded to buckets where stock's own transformer's are."""
    from sglang.multimodal_gen.runtime.breakable_cuda_graph.model_padders import (
        qwen_image,
    )

    transformer = t2i.pipeline.get_module("transformer")
    inputs = {"txt_seq_lens": [3], "freqs_cis": None}
    assert qwen_image.is_qwen_transformer(transformer, inputs)


@pytest.mark.parametrize(
    ("flag", "field"),
    [
        ("--component-paths.vae", "component_paths"),
        ("--vae-path", "component_paths"),
        ("--transformer-weights-path", "transformer_weights_path"),
        ("--component-weights-paths.transformer", "component_weights_paths"),
    ],
)
def test_flags_for_parts_from_elsewhere(t2i_checkpoint, flag: str, field: str) -> None:
    from sglang.multimodal_gen.runtime.server_args.server_args import (
        prepare_server_args,
    )

    place = str(t2i_checkpoint / "vae")
    argv = ["--model-path", str(t2i_checkpoint), flag, place]
    server_args = prepare_server_args(argv)
    assert place in str(getattr(server_args, field))
    part = "vae" if field == "component_paths" else "transformer"
    assert components_from_elsewhere(server_args) == {part}
