# SPDX-License-Identifier: Apache-2.0
"""Config files, layout, pickles and strict loading of Ming's image generator."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import Golden
from lazy import LazyModule
from sglang_ext_gen.checkpoint.component import StoredComponent, refuse
from sglang_ext_gen.checkpoint.pickles import (
    checked_pickle,
    convert_pickle,
    read_pickle,
)
from sglang_ext_gen.cli.doctor import examine_model
from sglang_ext_gen.errors import CheckpointError, ConfigError
from sglang_ext_gen.models.ming_omni.checkpoint import (
    GLYPH_ENCODER,
    check_checkpoint,
    glyph_config,
    recognises,
)
from sglang_ext_gen.models.ming_omni.config import BridgeConfig, TransformerConfig
from sglang_ext_gen.registry import family_of, find_family

byt5 = LazyModule("sglang_ext_gen.models.ming_omni.byt5")
tiny = LazyModule("sglang_ext_gen.models.ming_omni.tiny")

PARTS = {
    "connector": "model.safetensors",
    "mlp": "model.safetensors",
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
ENCODER = Path("byt5/byt5_model/byt5_model.pt")
MAPPER = Path("byt5/byt5_mapper/byt5_mapper.pt")


@pytest.fixture
def copy(omni_golden: Golden, tmp_path: Path) -> Path:
    """A writable copy of the integrated checkpoint."""
    return Path(shutil.copytree(omni_golden.checkpoint, tmp_path / "anything"))


def change_json(file: Path, **values: object) -> None:
    content = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({**content, **values}), "utf-8")


def test_golden_checkpoints_are_complete(omni_golden, drawing_golden, ming_golden):
    for golden in (omni_golden, drawing_golden):
        assert recognises(golden.checkpoint)
        assert check_checkpoint(golden.checkpoint) == []
    # A thinker alone chats; it is not this family's.
    assert not recognises(ming_golden.path)


def test_directory_is_known_by_content(copy, monkeypatch):
    monkeypatch.delenv("SGLANG_EXT_GEN_DISABLE", raising=False)
    assert family_of(copy) is find_family("ming_omni")
    assert family_of("inclusionAI/Ming-flash-omni-2.0") is find_family("ming_omni")
    # Stock's Z-Image has no mlp/.
    shutil.rmtree(copy / "mlp")
    assert family_of(copy) is None


def test_doctor_looks_at_thinker_and_generator(copy):
    assert examine_model(copy)["problems"] == []
    (copy / "model-00002-of-00002.safetensors").unlink()
    (copy / "vae" / PARTS["vae"]).unlink()
    problems = " ".join(examine_model(copy)["problems"])
    assert "model-00002-of-00002.safetensors" in problems
    assert f"vae/{PARTS['vae']}" in problems


@pytest.mark.parametrize("part", PARTS)
def test_sharded_weights_are_accepted(part, copy):
    file = copy / part / PARTS[part]
    tensors = load_file(file)
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, held in halves.items():
        save_file({name: tensors[name] for name in held}, file.with_name(shard))
    index = {name: shard for shard, held in halves.items() for name in held}
    file.unlink()
    file.with_name(f"{file.name}.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    assert check_checkpoint(copy) == []


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", ["missing", "left over", "wrong shape"])
def test_damaged_weights_are_named(part, damage, copy):
    file = copy / part / PARTS[part]
    tensors = load_file(file)
    name = max(name for name in tensors if name.endswith(".weight"))
    if damage == "missing":
        del tensors[name]
    elif damage == "left over":
        name = "surprise.weight"
        tensors[name] = torch.zeros(2)
    else:
        tensors[name] = torch.zeros(3, 5, dtype=torch.bfloat16)
    save_file(tensors, file)
    problems = check_checkpoint(copy)
    assert any(part in problem and name in problem for problem in problems)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("transformer/config.json", {"surprise": 1}, "unknown key 'surprise'"),
        ("transformer/config.json", {"n_kv_heads": 1}, "n_kv_heads is 1"),
        ("transformer/config.json", {"qk_norm": False}, "qk_norm is False"),
        ("transformer/config.json", {"dim": 0}, "dim is 0"),
        ("transformer/config.json", {"axes_dims": [8, 8, 8]}, "axes_dims"),
        ("transformer/config.json", {"cap_feat_dim": 63}, "cap_feat_dim"),
        ("connector/config.json", {"surprise": 1}, "unknown key 'surprise'"),
        ("connector/config.json", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("connector/config.json", {"rope_scaling": {"x": 1}}, "rope_scaling"),
        ("mlp/config.json", {"use_identity_mlp": False}, "use_identity_mlp"),
        ("mlp/config.json", {"dit_type": "sd3"}, "dit_type is 'sd3'"),
        ("mlp/config.json", {"surprise": 1}, "unknown key 'surprise'"),
        ("mlp/config.json", {"connector_norm": True}, "connector_norm is True: a"),
        ("mlp/config.json", {"img_gen_scales": []}, "img_gen_scales"),
        ("connector/config.json", {"hidden_size": 16}, "height of proj_in.weight"),
        ("vae/config.json", {"block_out_channels": [8, 8]}, "has 2 stages"),
        ("vae/config.json", {"use_quant_conv": True}, "use_quant_conv is True"),
        ("vae/config.json", {"surprise": 1}, "unknown key 'surprise'"),
        ("scheduler/scheduler_config.json", {"surprise": 1}, "'surprise'"),
        (
            "scheduler/scheduler_config.json",
            {"use_karras_sigmas": True},
            "use_karras_sigmas is True",
        ),
        ("byt5/byt5.json", {"surprise": 1}, "unknown key 'surprise'"),
        ("byt5/byt5.json", {"byt5_mapper_type": "other"}, "byt5_mapper_type"),
        ("byt5/google__byt5-smal/config.json", {"model_type": "bert"}, "model_type"),
        ("config.json", {"llm_config": {"hidden_size": 7}}, "hidden_size"),
    ],
)
def test_damaged_configs_are_named(file, values, message, copy):
    change_json(copy / file, **values)
    problems = check_checkpoint(copy)
    assert any(message in problem for problem in problems), problems
    with pytest.raises(CheckpointError, match="problem"):
        refuse(copy, check_checkpoint(copy))


@pytest.mark.parametrize(
    "file", ["connector", "mlp", "vae", "scheduler", "transformer"]
)
def test_missing_folder_is_named(file, copy):
    shutil.rmtree(copy / file)
    assert any(file in problem for problem in check_checkpoint(copy))


def test_lettering_is_optional(copy):
    config = glyph_config(copy)
    assert config is not None
    assert config.max_length == 64
    shutil.rmtree(copy / "byt5")
    assert check_checkpoint(copy) == []
    assert glyph_config(copy) is None


def test_older_t5_config_is_read(copy):
    """The file of google/byt5-small does not state what later versions added."""
    file = copy / "byt5" / "google__byt5-smal" / "config.json"
    content = json.loads(file.read_text("utf-8"))
    for key in ("relative_attention_max_distance", "dense_act_fn", "is_gated_act"):
        del content[key]
    file.write_text(json.dumps(content), "utf-8")
    assert check_checkpoint(copy) == []
    config = glyph_config(copy)
    assert config is not None
    assert config.t5.relative_attention_max_distance == 128


def test_missing_pickle_is_named(copy):
    (copy / MAPPER).unlink()
    assert any("byt5_mapper.pt is missing" in line for line in check_checkpoint(copy))


def test_vocabulary_has_colors_then_fonts(omni_golden):
    config = glyph_config(omni_golden.checkpoint)
    assert config is not None
    assert list(config.tokens) == [
        *(f"<color-{index}>" for index in range(4)),
        *("<cn-font-0>", "<cn-font-1>", "<en-font-0>", "<jp-font-0>", "<kr-font-0>"),
        *("<font-0>", "<font-1>"),
    ]


PICKLES = {ENCODER: "encoder", MAPPER: "mapper"}


def pickled(root: Path, name: Path) -> StoredComponent:
    return GLYPH_ENCODER.at(root).parts[PICKLES[name]]


@pytest.mark.parametrize("name", PICKLES, ids=PICKLES.get)
def test_pickle_holds_what_golden_says(name, omni_golden, drawing_golden):
    golden = drawing_golden
    tensors, _ = checked_pickle(pickled(golden.checkpoint, name))
    stored = load_file(golden.path / "byt5_pt_tensors.safetensors")
    for key, tensor in tensors.items():
        assert torch.equal(tensor, stored[f"{name.stem}::{key}"])


@pytest.mark.parametrize("name", PICKLES, ids=PICKLES.get)
def test_converted_pickle_is_equal_and_wins(name, copy):
    target = convert_pickle(pickled(copy, name))
    assert target == (copy / name).with_suffix(".safetensors")
    tensors = read_pickle(copy / name)
    for key, tensor in load_file(target).items():
        assert torch.equal(tensor, tensors[key])
    (copy / name).unlink()
    assert check_checkpoint(copy) == []


def copied(file: Path) -> dict[str, torch.Tensor]:
    """Its tensors, not mapped to the file, which is about to be overwritten."""
    return {name: tensor.clone() for name, tensor in read_pickle(file).items()}


class Malicious:
    """Unpickled carelessly, it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("name", PICKLES, ids=PICKLES.get)
@pytest.mark.parametrize("form", ["torch", "plain"])
def test_malicious_pickle_is_refused_and_runs_nothing(name, form, copy, tmp_path):
    trace = tmp_path / "executed"
    tensors = copied(copy / name)
    if form == "torch":
        torch.save({**tensors, "x": Malicious(trace)}, copy / name)
    else:
        (copy / name).write_bytes(pickle.dumps(Malicious(trace)))
    # Proof that the file bites: the careless way would have run it.
    assert trace.name.encode() in (copy / name).read_bytes()
    part = pickled(copy, name)
    for attempt in (
        lambda: read_pickle(copy / name),
        lambda: checked_pickle(part),
        lambda: convert_pickle(part),
    ):
        with pytest.raises(CheckpointError, match=r"is refused: it is not a plain"):
            attempt()
    assert not trace.exists()
    assert not (copy / name).with_suffix(".safetensors").exists()


@pytest.mark.parametrize("damage", ["missing", "left over", "wrong shape", "no tensor"])
def test_pickle_of_other_tensors_is_refused(damage, copy):
    tensors = copied(copy / MAPPER)
    key = "channel_mapper.weight"
    if damage == "missing":
        del tensors[key]
    elif damage == "left over":
        tensors["surprise"] = torch.zeros(1)
        key = "surprise"
    elif damage == "wrong shape":
        tensors[key] = torch.zeros(2, 2)
    else:
        tensors["state_dict"] = {"a": torch.zeros(1)}  # type: ignore[assignment]
        key = "not a flat dict"
    torch.save(tensors, copy / MAPPER)
    with pytest.raises(CheckpointError, match=key.replace(".", r"\.")):
        checked_pickle(pickled(copy, MAPPER))


def test_tiny_checkpoint_is_complete_and_repeatable(tmp_path):
    for name in ("one", "two"):
        tiny.write_tiny(tmp_path / name, seed=3)
    assert examine_model(tmp_path / "one")["problems"] == []
    for part, file in PARTS.items():
        one, two = (load_file(tmp_path / n / part / file) for n in ("one", "two"))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)
    base = tmp_path / "one" / "byt5" / "byt5_model" / "base.pt"
    with pytest.raises(CheckpointError, match="is refused"):
        read_pickle(base)


def test_released_dimensions(tmp_path):
    """Sizes of the release as its ports state them."""
    config = {
        **json.loads(json.dumps(tiny.transformer_config(tiny.TINY))),
        **{"dim": 3840, "n_layers": 30, "n_heads": 30, "n_kv_heads": 30},
        **{"cap_feat_dim": 2560, "axes_dims": [32, 48, 48]},
    }
    read = TransformerConfig.from_dict(config, "released")
    assert (read.head_dim, read.ffn_dim, read.modulation_width) == (128, 10240, 256)


def test_defaults_of_the_bridge_are_not_the_release():
    with pytest.raises(ConfigError, match="dit_type is 'sd3'"):
        BridgeConfig.from_dict({}, "mlp/config.json")
