# SPDX-License-Identifier: Apache-2.0
"""Every part of Ming's image generator against the official values, float32.

Two golden sets of different dimensions: one with random query states, one with those of
a thinker. Tolerances are the golden files' suggestions.
"""

import os
import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from conftest import Golden
from lazy import LazyModule
from sglang_ext_gen.cli import convert
from sglang_ext_gen.errors import CheckpointError
from sglang_ext_gen.models.ming_omni import connector, schedule
from sglang_ext_gen.models.ming_omni.checkpoint import (
    BRIDGE,
    CONDITION_ENCODER,
    GLYPH_ENCODER,
    SCHEDULER,
    TRANSFORMER,
    VAE,
    glyph_config,
)

if TYPE_CHECKING:
    from sglang_ext_gen.models.ming_omni.dit import ZImageTransformer

byt5 = LazyModule("sglang_ext_gen.models.ming_omni.byt5")
build = LazyModule("sglang_ext_gen.checkpoint.build")

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
FLOAT32: dict[str, Any] = {"dtype": torch.float32, "device": CPU}
TOLERANCE: dict[str, Any] = {"atol": 2e-5, "rtol": 1e-5}
CASES = ("t2i", "t2i_text", "edit", "t2i_neg")
OMNI_CASES = ("t2i", "t2i_text", "edit", "t2i_cfg1")


@pytest.fixture(scope="module")
def root(drawing_golden: Golden, diffusion_runtime: None) -> Path:
    return drawing_golden.checkpoint


@pytest.fixture(scope="module")
def omni_root(omni_golden: Golden, diffusion_runtime: None) -> Path:
    return omni_golden.checkpoint


@pytest.fixture(scope="module")
def transformer(root: Path) -> "ZImageTransformer":
    return build.load_component(TRANSFORMER.at(root), **FLOAT32)


def run_transformer(
    transformer: "ZImageTransformer",
    latents: torch.Tensor,
    time: torch.Tensor,
    captions: list[torch.Tensor],
    reference: torch.Tensor | None = None,
) -> torch.Tensor:
    from sglang.multimodal_gen.runtime.managers.forward_context import (
        set_forward_context,
    )

    with (
        torch.no_grad(),
        set_forward_context(0, attn_metadata=None, forward_batch=None),
    ):
        caption = transformer.refine_caption(torch.stack(captions))
        height, width = latents.shape[2:]
        canvas = transformer.prepare_canvas(
            height, width, caption.rows.shape[1], reference
        )
        return transformer(latents, time, caption, canvas)


@pytest.mark.parametrize(
    ("case", "side"),
    [*((case, "pos") for case in CASES), ("t2i_neg", "neg")],
)
def test_condition_rows(case, side, root, drawing_golden):
    encoder = build.load_component(CONDITION_ENCODER.at(root), **FLOAT32)
    name = "negative_" if side == "neg" else ""
    states = drawing_golden.tensor(f"{case}.{name}thinker_hidden_states")[None]
    with torch.no_grad():
        projected = encoder.bridge.proj_in(states)
        hidden = encoder.connector(projected)
        rows = encoder(states)
    expected = {
        "connector_last_hidden": hidden,
        "cond_unit": rows,
    }
    for tensor, got in expected.items():
        want = drawing_golden.tensor(f"{case}.{side}.{tensor}")[None]
        torch.testing.assert_close(got, want, **TOLERANCE)


@pytest.mark.parametrize("case", ["t2i", "t2i_text", "edit"])
def test_condition_rows_of_a_thinker(case, omni_root, omni_golden):
    encoder = build.load_component(CONDITION_ENCODER.at(omni_root), **FLOAT32)
    with torch.no_grad():
        rows = encoder(omni_golden.tensor(f"{case}.query_hidden")[None])
    want = omni_golden.tensor(f"{case}.condition_embeds")[None]
    torch.testing.assert_close(rows, want, **TOLERANCE)


@pytest.mark.parametrize(
    ("golden_name", "prefix"),
    [("drawing_golden", "t2i_text.byt5."), ("omni_golden", "t2i_text.byt5_")],
)
def test_glyph_rows(golden_name, prefix, request, diffusion_runtime):
    golden: Golden = request.getfixturevalue(golden_name)
    config = glyph_config(golden.checkpoint)
    assert config is not None
    case = golden.json["cases"]["t2i_text"]
    text = case.get("byt5_text", case.get("byt5_text_extracted"))
    tokenizer = byt5.load_glyph_tokenizer(golden.checkpoint / "byt5", config)
    ids, mask = byt5.tokenize(tokenizer, text, config.max_length)
    assert torch.equal(ids[0], golden.tensor(f"{prefix}input_ids").long().view(-1))
    assert torch.equal(
        mask[0], golden.tensor(f"{prefix}attention_mask").long().view(-1)
    )
    encoder = build.load_component(GLYPH_ENCODER.at(golden.checkpoint), **FLOAT32)
    assert len(tokenizer) == config.vocab_size
    with torch.no_grad():
        rows = encoder(ids, mask)
    want = golden.tensor(f"{prefix}features")
    torch.testing.assert_close(rows.view(want.shape), want, **TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_caption_scaling(case, root, drawing_golden):
    for side in ("pos", "neg"):
        rows = drawing_golden.tensor(f"{case}.cond_concat_{side}")
        want = drawing_golden.tensor(f"{case}.cap_feats_{side}")
        got = connector.scale_caption(rows, BRIDGE.at(root).config)
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-6)


def stored_steps(golden: Golden) -> list[tuple[str, int]]:
    return [
        (name, step)
        for name, case in golden.json["cases"].items()
        for step in case["dit_steps"]
    ]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("branches", [("pos",), ("pos", "neg")], ids="-".join)
def test_transformer(case, branches, transformer, drawing_golden):
    for step in drawing_golden.json["cases"][case]["dit_steps"]:
        latents = drawing_golden.tensor(f"{case}.dit.step{step}.latent_in")[None]
        time = drawing_golden.tensor(f"{case}.model_t")[step]
        reference = None
        if case == "edit":
            reference = drawing_golden.tensor("edit.ref_latent")
        captions = [drawing_golden.tensor(f"{case}.cap_feats_{b}") for b in branches]
        got = run_transformer(transformer, latents, time, captions, reference)
        for branch, output in zip(branches, got, strict=True):
            want = drawing_golden.tensor(f"{case}.dit.step{step}.{branch}")
            torch.testing.assert_close(output, want, **TOLERANCE)


def test_transformer_without_its_reference(transformer, drawing_golden):
    latents = drawing_golden.tensor("edit.dit.step0.latent_in")[None]
    captions = [drawing_golden.tensor(f"edit.cap_feats_{b}") for b in ("pos", "neg")]
    time = drawing_golden.tensor("edit.model_t")[0]
    got = run_transformer(transformer, latents, time, captions)
    for branch, output in zip(("pos", "neg"), got, strict=True):
        want = drawing_golden.tensor(f"edit.dit.step0.{branch}_noref")
        torch.testing.assert_close(output, want, **TOLERANCE)


def test_transformer_in_bfloat16(root, drawing_golden):
    transformer = build.load_component(
        TRANSFORMER.at(root), dtype=torch.bfloat16, device=CPU
    )
    captions = [drawing_golden.tensor("t2i.cap_feats_pos")]
    got = run_transformer(
        transformer,
        drawing_golden.tensor("t2i.dit.step0.latent_in")[None],
        drawing_golden.tensor("t2i.model_t")[0],
        captions,
    )
    want = drawing_golden.tensor("t2i.dit.step0.pos")[None]
    assert float((got - want).norm() / want.norm()) < 0.03


@pytest.mark.parametrize("case", OMNI_CASES)
def test_transformer_of_the_integrated_checkpoint(case, omni_root, omni_golden):
    transformer = build.load_component(TRANSFORMER.at(omni_root), **FLOAT32)
    source = "t2i" if case == "t2i_cfg1" else case
    rows = [omni_golden.tensor(f"{source}.condition_embeds")]
    if case == "t2i_text":
        rows.append(omni_golden.tensor("t2i_text.byt5_features"))
    caption = connector.scale_caption(torch.cat(rows), BRIDGE.at(omni_root).config)
    branches = {"pos": caption, "neg": torch.zeros_like(caption)}
    if case == "t2i_cfg1":
        del branches["neg"]
    noise = omni_golden.tensor(f"{case}.noise")[None]
    sigmas = omni_golden.tensor(f"{case}.sigmas")
    reference = omni_golden.tensor("edit.ref_latent")[None] if case == "edit" else None
    got = run_transformer(
        transformer,
        noise,
        schedule.model_time(sigmas[0], SCHEDULER.at(omni_root).config),
        list(branches.values()),
        reference,
    )
    for branch, output in zip(branches, got, strict=True):
        want = omni_golden.tensor(f"{case}.dit_step0_{branch}")
        torch.testing.assert_close(output, want, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_schedule_and_noise(case, root, drawing_golden):
    values: dict[str, Any] = drawing_golden.json["cases"][case]
    height, width = values["height"] // 8, values["width"] // 8
    tokens = height * width // 4
    sigmas = schedule.make_sigmas(SCHEDULER.at(root).config, values["steps"], tokens)
    torch.testing.assert_close(
        sigmas, drawing_golden.tensor(f"{case}.sigmas"), atol=1e-7, rtol=0
    )
    times = schedule.model_time(sigmas[:-1], SCHEDULER.at(root).config)
    torch.testing.assert_close(
        times, drawing_golden.tensor(f"{case}.model_t"), atol=1e-7, rtol=0
    )
    noise = schedule.draw_noise(values["seed"], 16, height, width)
    assert torch.equal(noise, drawing_golden.tensor(f"{case}.noise"))


def test_schedule_with_30_steps(root):
    sigmas = schedule.make_sigmas(SCHEDULER.at(root).config, 30, 4096)
    assert [round(float(s), 6) for s in sigmas[:5]] == [
        1.0,
        0.988235,
        0.975904,
        0.962963,
        0.949367,
    ]
    assert sigmas[-2:].tolist() == [0.0, 0.0]
    assert len(sigmas) == 31


def test_vae_in_both_directions(root, drawing_golden):
    vae: Any = build.load_component(VAE.at(root), **FLOAT32)
    config = VAE.at(root).config
    pixels = drawing_golden.tensor("edit.ref_pixels")
    with torch.no_grad():
        mean = vae.encode(pixels).latent_dist.mode()
    latents = (mean - config.shift_factor) * config.scaling_factor
    want = drawing_golden.tensor("edit.ref_latent")
    torch.testing.assert_close(latents, want, **TOLERANCE)
    for case in CASES:
        last = drawing_golden.json["cases"][case]["steps"] - 1
        final = drawing_golden.tensor(f"{case}.latents_after_step{last}")
        raw = final / config.scaling_factor + config.shift_factor
        with torch.no_grad():
            decoded = vae.decode(raw)
        want = drawing_golden.tensor(f"{case}.image_raw")
        torch.testing.assert_close(decoded, want, atol=1e-4, rtol=1e-4)


def test_convert_command_writes_what_the_loader_prefers(omni_root, tmp_path, capsys):
    copy = Path(shutil.copytree(omni_root, tmp_path / "copy"))
    assert convert.main([str(copy)]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert {path.name for path in written} == {
        "byt5_model.safetensors",
        "byt5_mapper.safetensors",
    }
    expected = build.load_component(GLYPH_ENCODER.at(omni_root), **FLOAT32)
    for pickled in (copy / "byt5").rglob("*.pt"):
        pickled.unlink()
    found = build.load_component(GLYPH_ENCODER.at(copy), **FLOAT32)
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name]), name


def test_malicious_pickle_stops_the_load(omni_root, tmp_path):
    copy = Path(shutil.copytree(omni_root, tmp_path / "copy"))
    trace = tmp_path / "executed"
    file = copy / "byt5" / "byt5_model" / "byt5_model.pt"
    file.write_bytes(pickle.dumps(Malicious(trace)))
    with pytest.raises(CheckpointError, match="is refused"):
        build.load_component(GLYPH_ENCODER.at(copy), **FLOAT32)
    assert not trace.exists()


class Malicious:
    """Unpickled carelessly, it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_checkpoint_without_lettering_leaves_the_encoder_out(omni_root, tmp_path):
    from sglang_ext_gen.models.ming_omni.pipeline import MingOmniImagePipeline

    copy = Path(shutil.copytree(omni_root, tmp_path / "copy"))
    pipeline: Any = MingOmniImagePipeline.__new__(MingOmniImagePipeline)
    assert pipeline.unneeded_components(copy, None) == set()
    shutil.rmtree(copy / "byt5")
    assert pipeline.unneeded_components(copy, None) == {"glyph_encoder"}
