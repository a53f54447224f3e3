# SPDX-License-Identifier: Apache-2.0
"""What is on disk, where it goes, and that anything else is refused."""

import gc
import json
import pickle
import re
import shutil
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sglang_ext_gen.checkpoint.layout import TensorSpec, read_json
from sglang_ext_gen.errors import CheckpointError, ConfigError
from sglang_ext_gen.models.ming_omni.config import DEFAULT_SCALES
from sglang_ext_gen.models.ming_omni.thinker.checkpoint import (
    check_checkpoint,
    query_scales,
    recognises,
)
from sglang_ext_gen.models.ming_omni.thinker.released_config import (
    ReleasedThinkerConfig,
)
from sglang_ext_gen.models.ming_omni.thinker.tensors import thinker_specs
from sglang_ext_gen.models.ming_omni.thinker.tiny import write_tiny
from sglang_ext_gen.models.ming_omni.thinker.weights import (
    Target,
    load_query_tokens,
    load_thinker,
    target_of,
)
from sglang_ext_gen.registry import near_misses

LAYER = "model.model.layers.3"


@pytest.fixture
def copied(ming_golden, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(ming_golden.path, folder)
    return folder


def test_the_golden_checkpoint_is_complete(ming_golden):
    assert recognises(ming_golden.path)
    assert check_checkpoint(ming_golden.path) == []
    assert query_scales(ming_golden.path) == (4,)


def test_the_released_sizes_give_the_released_shapes(ming_golden):
    config = read_json(ming_golden.path / "config.json")
    config["llm_config"] |= {
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "num_experts": 256,
        "moe_intermediate_size": 1024,
        "vocab_size": 157184,
        "num_hidden_layers": 32,
        "intermediate_size": 9216,
    }
    del config["llm_config"]["head_dim"]
    released = ReleasedThinkerConfig.from_dict(config, "config.json")
    shapes = {spec.name: spec.shape for spec in thinker_specs(released, {})}
    assert shapes[f"{LAYER}.attention.query_key_value.weight"] == (5120, 4096)
    assert shapes[f"{LAYER}.attention.q_norm.weight"] == (128,)
    assert shapes[f"{LAYER}.mlp.experts.255.down_proj.weight"] == (4096, 1024)
    assert shapes[f"{LAYER}.mlp.audio_gate.expert_bias"] == (256,)
    assert shapes["model.lm_head.weight"] == (157184, 4096)
    total = sum(torch.Size(shape).numel() for shape in shapes.values()) * 2
    assert 195e9 < total < 210e9  # "about 200 GB" in bfloat16


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json is missing.*path"),
        (lambda f: shutil.rmtree(f / "mlp"), "mlp.*missing.*to draw, not to chat"),
        (lambda f: _drop(f, "audio.ln_post.bias"), "audio.ln_post.bias is missing"),
    ],
)
def test_damage_is_named(copied, damage, problem):
    damage(copied)
    problems = check_checkpoint(copied)
    assert len(problems) == 1
    assert re.search(problem, problems[0])


def _drop(folder, name):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    file = folder / index["weight_map"].pop(name)
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_scales_have_the_official_default(copied):
    (copied / "mlp" / "config.json").write_text("{}")
    assert query_scales(copied) == DEFAULT_SCALES


def test_a_tiny_checkpoint_is_complete_and_repeatable(tmp_path):
    for name in "ab":
        write_tiny(tmp_path / name)
    assert recognises(tmp_path / "a")
    assert check_checkpoint(tmp_path / "a") == []
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*")]
    assert len(files) == 6
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (
            tmp_path / "b" / file
        ).read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        write_tiny(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "target"),
    [
        (
            f"{LAYER}.mlp.experts.17.gate_proj.weight",
            Target(f"{LAYER}.mlp.experts.w13_weight", "w1", 17),
        ),
        (
            f"{LAYER}.mlp.experts.2.down_proj.weight",
            Target(f"{LAYER}.mlp.experts.w2_weight", "w2", 2),
        ),
        (
            f"{LAYER}.mlp.shared_experts.up_proj.weight",
            Target(f"{LAYER}.mlp.shared_experts.gate_up_proj.weight", 1),
        ),
        (
            "model.model.layers.0.mlp.gate_proj.weight",
            Target("model.model.layers.0.mlp.gate_up_proj.weight", 0),
        ),
        (f"{LAYER}.mlp.gate.weight", Target(f"{LAYER}.mlp.gate.weight")),
        (
            f"{LAYER}.attention.k_norm.weight",
            Target(f"{LAYER}.attention.key_layernorm.weight"),
        ),
        (
            "vision.blocks.1.attn.qkv.bias",
            Target("vision.blocks.1.attn.qkv_proj.bias"),
        ),
        ("vision.deepstack_merger_list.0.norm.bias", None),
        ("audio.positional_embedding", Target("audio.positional_embedding")),
    ],
)
def test_each_name_has_its_place(name, target):
    assert target_of(name) == target


SPECS = [TensorSpec("weight", (2, 3)), TensorSpec("bias", (2,))]


def _stream(**tensors):
    return list(tensors.items())


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        (_stream(weight=torch.ones(2, 3)), "bias is missing"),
        (_stream(weight=torch.ones(3, 2), bias=torch.ones(2)), r"shape \(3, 2\)"),
        (_stream(other=torch.ones(1)), "other is not part"),
        ([*_stream(bias=torch.ones(2)), *_stream(bias=torch.ones(2))], "comes twice"),
    ],
)
def test_loading_is_strict(weights, problem):
    with pytest.raises(CheckpointError, match=problem):
        load_thinker(nn.Linear(3, 2), weights, SPECS)


def test_a_parameter_that_nothing_fills_is_an_error():
    with pytest.raises(CheckpointError, match="parameter bias was not filled"):
        load_thinker(nn.Linear(3, 2), _stream(weight=torch.ones(2, 3)), SPECS[:1])


def test_tensors_are_let_go_one_by_one():
    """Streaming: when the next tensor is asked for, only the last one is alive."""
    linears = [nn.Linear(3, 2, bias=False) for _ in range(5)]
    layers = nn.Sequential(*linears)
    alive: list[weakref.ref] = []

    def stream():
        for index in range(5):
            gc.collect()
            assert not [ref for ref in alive[:-1] if ref() is not None]
            tensor = torch.full((2, 3), float(index))
            alive.append(weakref.ref(tensor))
            yield f"{index}.weight", tensor
            del tensor

    load_thinker(
        layers, stream(), [TensorSpec(f"{i}.weight", (2, 3)) for i in range(5)]
    )
    assert [float(linear.weight[0, 0]) for linear in linears] == [0, 1, 2, 3, 4]


def test_query_tokens_are_loaded_strictly(copied):
    tokens = {"4x4": nn.Parameter(torch.zeros(16, 64))}
    assert list(load_query_tokens(tokens, copied)) == ["4x4"]
    assert tokens["4x4"].std() > 0
    for name, shape, problem in (
        ("8x8", (64, 64), "lacks"),
        ("4x4", (16, 32), "shape"),
    ):
        wrong = {name: nn.Parameter(torch.zeros(shape))}
        with pytest.raises(CheckpointError, match=problem):
            list(load_query_tokens(wrong, copied))
    shutil.rmtree(copied / "mlp")
    with pytest.raises(CheckpointError, match="is missing"):
        list(load_query_tokens(tokens, copied))
    assert list(load_query_tokens({}, copied)) == []


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"thinker_config": {}, "architectures": ["X"]}, "config.json is a composite"),
        ({"llm_config": {}, "architectures": ["X"]}, "of config.json is ['X'], exp"),
    ],
)
def test_a_thinker_that_is_not_recognised_is_explained(copied, config, reason):
    (copied / "config.json").write_text(json.dumps(config))
    (note,) = near_misses(copied)
    assert f"{copied}: no thinker was found because" in note
    assert reason in note


def test_the_config_is_repaired(ming_golden, caplog):
    from sglang_ext_gen.models.ming_omni.thinker.config import MingOmniThinkerConfig

    config = MingOmniThinkerConfig.from_pretrained(ming_golden.path)
    llm = config.llm_config
    assert llm.video_start_token == 274
    assert "video_start_token is 273, which is </image>" in caplog.text
    assert "factor" not in llm.rope_parameters
    assert llm.rope_parameters["mrope_section"] == [8, 12, 12]
    assert llm.moe_router_enable_expert_bias is True
    assert llm.routed_scaling_factor == 2.5
    assert config.vision_config.deepstack_visual_indexes == []
    again = pickle.loads(pickle.dumps(config))
    assert again.llm_config.rope_parameters == llm.rope_parameters


@pytest.mark.parametrize(
    ("section", "changes", "problem"),
    [
        ("", {"smell_config": {}}, "unknown key 'smell_config'"),
        ("", {"mlp_depth": None}, "key 'mlp_depth' is missing"),
        ("", {"audio_config": None}, "key 'audio_config' is missing"),
        ("", {"vision_config": 3}, "vision_config is 3, expected an object"),
        ("llm_config", {"norm_head": True}, "llm_config: norm_head is True, expected"),
        ("llm_config", {"router_type": "topN"}, "router_type is 'topN'"),
        ("llm_config", {"sliding_windows": 4}, "unknown key 'sliding_windows'"),
        (
            "llm_config",
            {"num_experts": None},
            "llm_config: key 'num_experts' is missing",
        ),
        ("llm_config", {"rope_scaling": {"type": "yarn"}}, "rope_scaling is"),
        (
            "llm_config",
            {"rope_scaling": {"type": "video_rope", "factor": 2.0}},
            "rope_scaling is",
        ),
        ("llm_config", {"head_dim": 64}, "have 16 rotary frequencies, expected 32"),
        ("vision_config", {"patch_size": 14}, "patch_size is 14, expected 16"),
        ("vision_config", {"spatial_patch_size": 14}, "spatial_patch_size is 14"),
        ("audio_config", {"norm_query_embeds": False}, "norm_query_embeds is False"),
        ("audio_config", {"ds_conv_type": "dwconv"}, "ds_conv_type is 'dwconv'"),
        ("audio_config", {"audio_encoder_output_size": 7}, "output_size is 7, expec"),
        (
            "audio_config",
            {"whisper_encoder_config": {"n_ctx": 600}},
            "whisper_encoder_config: key 'n_head' is missing",
        ),
    ],
)
def test_other_configs_are_refused(copied, section, changes, problem):
    """``None`` stands for a missing key."""
    from sglang_ext_gen.models.ming_omni.thinker.config import MingOmniThinkerConfig

    config = read_json(copied / "config.json")
    changed = config[section] if section else config
    changed |= {key: value for key, value in changes.items() if value is not None}
    for key in [key for key, value in changes.items() if value is None]:
        del changed[key]
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=problem):
        MingOmniThinkerConfig.from_pretrained(copied)
    assert re.search(problem, check_checkpoint(copied)[0])


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("", {"talker_config": {}, "image_gen_config": {}, "use_cache": True}),
        ("llm_config", {"multi_gate": True, "moe_router_enable_expert_bias": True}),
        ("llm_config", {"attn_implementation": "eager", "audio_end_token": 7}),
        (
            "vision_config",
            {"spatial_patch_size": 16, "architectures": None, "model_type": "any"},
        ),
        ("audio_config", {"ds_conv_type": "conv1d", "_use_default_values": []}),
    ],
)
def test_keys_of_other_saves_are_taken(copied, section, changes):
    from sglang_ext_gen.models.ming_omni.thinker.config import MingOmniThinkerConfig

    config = read_json(copied / "config.json")
    (config[section] if section else config).update(changes)
    (copied / "config.json").write_text(json.dumps(config))
    assert check_checkpoint(copied) == []
    read = MingOmniThinkerConfig.from_pretrained(copied)
    # By it stock chooses the class of the tower.
    assert read.vision_config.architectures == ["Qwen3MoeVisionTransformer"]


def test_the_rotation_of_transformers_5_is_read(copied):
    from sglang_ext_gen.models.ming_omni.thinker.config import MingOmniThinkerConfig

    before = MingOmniThinkerConfig.from_pretrained(copied).llm_config
    config = read_json(copied / "config.json")
    llm = config["llm_config"]
    llm["rope_parameters"] = {
        "rope_type": "video_rope",
        "rope_theta": llm.pop("rope_theta"),
        "partial_rotary_factor": llm.pop("partial_rotary_factor", 0.5),
    }
    del llm["rope_scaling"]
    (copied / "config.json").write_text(json.dumps(config))
    assert check_checkpoint(copied) == []
    after = MingOmniThinkerConfig.from_pretrained(copied).llm_config
    assert after.rope_parameters == before.rope_parameters


def test_missing_tokenizer_files_are_named(copied):
    from sglang_ext_gen.models.ming_omni.thinker.tokenizer import (
        MingOmniTokenizerHolder,
    )

    (copied / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer.json.*--tokenizer-path"):
        MingOmniTokenizerHolder.from_pretrained(str(copied))
