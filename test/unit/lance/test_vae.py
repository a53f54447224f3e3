# SPDX-License-Identifier: Apache-2.0
"""The Wan 2.2 VAE: equal to the vendor's, and safe to load."""

import pickle
import shutil

import pytest
import torch
from PIL import Image
from torch import Tensor

from checkpoint_damage import RunsACommand
from lance_loop import generation
from lazy import LazyModule
from sglang_ext_gen.__main__ import main
from sglang_ext_gen.checkpoint.pickles import read_pickle
from sglang_ext_gen.errors import CheckpointError
from sglang_ext_gen.models.lance import visual_input
from sglang_ext_gen.models.lance.checkpoint import VAE, check_checkpoint

build = LazyModule("sglang_ext_gen.models.lance.build")
vae = LazyModule("sglang_ext_gen.models.lance.vae")

ATOL = 2e-5  # in-tree class against the vendor's: 7e-6 measured


@pytest.fixture(scope="module")
def wan(lance):
    return lance.load(VAE.at(lance.path))


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=ATOL)


def psnr(got: Tensor, want: Tensor) -> float:
    """Of 8-bit pictures, in dB."""
    error = (got.double() - want.double()).square().mean()
    return float(10 * torch.log10(255**2 / error.clamp(min=1e-12)))


def to_bytes(decoded: Tensor) -> Tensor:
    """[1, 3, T, H, W] in [-1, 1] -> [T, H, W, 3] as the official code rounds."""
    return ((decoded[0] * 0.5 + 0.5) * 255).round().permute(1, 2, 3, 0)


def read_picture(path) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.array(Image.open(path)))


def test_encode_and_decode(wan, lance):
    with torch.no_grad():
        latents = vae.encode(wan, lance.golden.tensor("component.vae_video_in")).mean
        mean = lance.golden.tensor("component.vae_encode_mean_normalized")
        close(latents, mean[0].permute(1, 2, 3, 0))
        decoded = vae.decode(wan, mean[0].permute(1, 2, 3, 0))
    close(decoded, lance.golden.tensor("component.vae_decode_of_mean"))


@pytest.mark.parametrize("name", ["image_edit", "i2v", "video_edit"])
def test_sampled_source_latents(name, wan, lance):
    case = lance.case(name)
    frames = [visual_input.flatten_to_rgb(frame) for frame in case.frames()]
    pixels = visual_input.vae_pixels(frames, case.json["resolution"])
    _, _, *grid = case.json["vae_posterior_eps"]["randn_shape"]
    noise = generation.draw_posterior_noise(case.json["sampling"]["seed"], tuple(grid))
    first = case.tensor("vae_cond_eps_first8")
    assert torch.equal(noise.flatten()[: len(first)], first)
    with torch.no_grad():
        latents = vae.encode(wan, pixels).latents(noise)
    want = case.tensor("vae_cond_latent")
    close(latents, want.view_as(latents))


@pytest.mark.parametrize(
    "name", ["t2i", "t2i_channel_renorm", "image_edit", "t2v", "i2v", "video_edit"]
)
def test_final_latents_decode_to_the_official_pictures(name, wan, lance):
    case = lance.case(name)
    last = max(case.json["latents_stored"])
    latents = case.tensor(f"step{last}.latents").view(*case.json["latent_grid_thw"], -1)
    with torch.no_grad():
        frames = to_bytes(vae.decode(wan, latents))
    assert len(frames) == case.json["output_frames"]
    files = case.json["output_files"]
    shown = frames if len(files) == len(frames) else frames[-1:]
    for frame, file in zip(shown, files, strict=True):
        want = read_picture(lance.golden.path / file)
        got = frame[: want.shape[0], : want.shape[1]]
        assert psnr(got, want) >= 45
        assert (got - want).abs().max() <= 1


def test_convert_command_writes_the_file_that_is_then_used(lance, tmp_path, capsys):
    checkpoint = tmp_path / "lance"
    shutil.copytree(lance.path, checkpoint)
    assert main(["convert", str(checkpoint / "Lance_3B")]) == 0
    written = checkpoint / "Wan2.2_VAE.safetensors"
    assert capsys.readouterr().out == f"{written}\n"
    (checkpoint / "Wan2.2_VAE.pth").unlink()
    assert check_checkpoint(checkpoint) == []


def test_converted_file_gives_the_same_vae(wan, lance, tmp_path):
    shutil.copy(lance.path / "Wan2.2_VAE.pth", tmp_path)
    assert build.convert(tmp_path) == [tmp_path / "Wan2.2_VAE.safetensors"]
    (tmp_path / "Wan2.2_VAE.pth").unlink()
    converted = lance.load(VAE.at(tmp_path))
    for (name, want), (other, got) in zip(
        wan.state_dict().items(), converted.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(got, want)


def test_malicious_pickle_is_refused_and_not_run(lance, tmp_path):
    marker = tmp_path / "owned"
    torch.save({"conv1.weight": RunsACommand(marker)}, tmp_path / "Wan2.2_VAE.pth")
    with pytest.raises(CheckpointError, match=r"Wan2\.2_VAE\.pth is refused"):
        lance.load(VAE.at(tmp_path))
    (tmp_path / "Wan2.2_VAE.pth").write_bytes(pickle.dumps(RunsACommand(marker)))
    with pytest.raises(CheckpointError, match="is refused"):
        lance.load(VAE.at(tmp_path))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("decoder.head.2.bias"), "decoder.head.2.bias is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "extra is not part"),
        (lambda t: t.update({"conv2.bias": torch.zeros(3)}), "conv2.bias has shape"),
        (lambda t: t.update(nested={"a": torch.zeros(1)}), "not a flat dict"),
        (lambda t: t.clear(), "encoder.conv1.weight is missing"),
    ],
)
def test_another_state_dict_is_refused(change, message, lance, tmp_path):
    tensors = read_pickle(lance.path / "Wan2.2_VAE.pth")
    change(tensors)
    torch.save(tensors, tmp_path / "Wan2.2_VAE.pth")
    with pytest.raises(CheckpointError, match=message):
        lance.load(VAE.at(tmp_path))


def test_damaged_or_missing_file_is_refused(lance, tmp_path):
    with pytest.raises(CheckpointError, match="is missing"):
        lance.load(VAE.at(tmp_path))
    (tmp_path / "Wan2.2_VAE.pth").write_bytes(b"not a pickle")
    with pytest.raises(CheckpointError, match="is refused"):
        lance.load(VAE.at(tmp_path))
