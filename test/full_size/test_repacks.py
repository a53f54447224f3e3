# SPDX-License-Identifier: Apache-2.0
"""Released checkpoints and re-packs at full size: what ``doctor`` says of each.

The words of a refusal are those that a user needs. Each answer takes less than 3 s.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from full_size.sparse import read_tensors, write, write_tensors
from sglang_ext_gen.cli.doctor import examine_model

IDEOGRAM, LANCE, MING = "ideo_fp8", "lance_bf16", "ming_full"
QWEN, QWEN_EDIT = "qwen_image", "qwen_edit_2511"
FAMILIES = {
    IDEOGRAM: "ideogram4",
    LANCE: "lance",
    MING: "ming_omni",
    QWEN: "qwen_image",
    QWEN_EDIT: "qwen_image_edit",
}
SECONDS = 3
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"

Change = Callable[[Path], object]


def keys(file: str, section: str = "", **values: Any) -> Change:
    """Set keys of a JSON file, or of a section of it."""

    def change(root: Path) -> None:
        content = json.loads((root / file).read_text("utf-8"))
        (content[section] if section else content).update(values)
        (root / file).write_text(json.dumps(content), "utf-8")

    return change


def without(*names: str) -> Change:
    """Remove files or folders."""

    def change(root: Path) -> None:
        for name in names:
            path = root / name
            path.rename(root.with_name(f"{root.name}-without-{path.name}"))

    return change


def plain(*files: str) -> Change:
    """Store FP8 files in bfloat16 instead."""

    def change(root: Path) -> None:
        for name in files:
            tensors = read_tensors(root / name)
            kept = [entry for entry in tensors if not entry[0].endswith("_scale")]
            write_tensors(root / name, [(name, "BF16", s) for name, _, s in kept])

    return change


def raw_float8(folder: str) -> Change:
    """Store every shard of a folder in FP8 without scales."""

    def change(root: Path) -> None:
        for file in (root / folder).glob("*.safetensors"):
            tensors = [(n, "F8_E4M3", shape) for n, _, shape in read_tensors(file)]
            write_tensors(file, tensors)

    return change


def with_head(root: Path) -> None:
    file = root / "text_encoder/model.safetensors"
    tensors = read_tensors(file)
    shapes = {name: shape for name, _, shape in tensors}
    head = ("lm_head.weight", "BF16", shapes["language_model.embed_tokens.weight"])
    write_tensors(file, [*tensors, head])


def renamed_variants(root: Path) -> None:
    (root / "Lance_3B_Video").rename(root / "video")
    (root / "Lance_3B").rename(root.with_name(f"{root.name}-image"))
    (root / "image").symlink_to(root.with_name(f"{root.name}-image"))


def pointer(file: str) -> Change:
    return lambda root: (root / file).write_text(_POINTER)


def as_links(root: Path) -> None:
    """As the hub's cache has it: each file a link to a blob."""
    blobs = root.with_name(f"{root.name}-blobs")
    blobs.mkdir()
    files = [path for path in root.rglob("*") if path.is_file()]
    for number, path in enumerate(files):
        path.symlink_to(path.rename(blobs / str(number)))


def rope_parameters(file: str, section: str = "") -> Change:
    """Write the rotation as Transformers 5 does."""

    def change(root: Path) -> None:
        content = json.loads((root / file).read_text("utf-8"))
        values = content[section] if section else content
        rope = {**(values.pop("rope_scaling") or {}), "rope_type": "default"}
        kind = rope.pop("type", None)
        rope |= {} if kind is None else {"rope_type": kind}
        values["rope_parameters"] = {**rope, "rope_theta": values.pop("rope_theta")}
        (root / file).write_text(json.dumps(content), "utf-8")

    return change


def composite(root: Path) -> None:
    config = json.loads((root / "config.json").read_text("utf-8"))
    whole = {"architectures": ["MingFlashOmni"], "thinker_config": config}
    (root / "config.json").write_text(json.dumps(whole), "utf-8")


ENCODER = "text_encoder/config.json"
TRANSFORMERS = (f"transformer/{_WEIGHTS}", f"unconditional_transformer/{_WEIGHTS}")
ACCEPTED: dict[str, tuple[str, list[Change]]] = {
    **{f"{name}: as released": (name, []) for name in FAMILIES},
    **{f"{name}: hub cache": (name, [as_links]) for name in FAMILIES},
    "ideogram: bf16": (
        IDEOGRAM,
        [plain(*TRANSFORMERS, "text_encoder/model.safetensors")],
    ),
    "ideogram: lm_head": (IDEOGRAM, [with_head]),
    "ideogram: use_cache": (IDEOGRAM, [keys(ENCODER, use_cache=True)]),
    "ideogram: attn": (IDEOGRAM, [keys(ENCODER, attn_implementation="sdpa")]),
    "ideogram: component": (IDEOGRAM, [keys("model_index.json", refiner=["a", "b"])]),
    "lance: other names": (LANCE, [renamed_variants]),
    "lance: rope": (LANCE, [rope_parameters("Lance_3B/llm_config.json")]),
    "lance: attn": (LANCE, [keys("Lance_3B/llm_config.json", attn_implementation=1)]),
    "ming: no index": (MING, [without("model.safetensors.index.json")]),
    "ming: rope": (MING, [rope_parameters("config.json", "llm_config")]),
    "ming: decoder": (
        MING,
        [
            keys(
                "config.json",
                "llm_config",
                multi_gate=True,
                moe_router_enable_expert_bias=True,
                audio_patch_token=1,
                image_token_id=2,
            )
        ],
    ),
    "ming: towers": (
        MING,
        [
            keys("config.json", "vision_config", spatial_patch_size=16, use_cache=True),
            keys(
                "config.json",
                "audio_config",
                ds_conv_type="conv1d",
                audio_encoder_output_size=1280,
            ),
        ],
    ),
    "ming: parts": (
        MING,
        [
            keys("config.json", talker_config={}, image_gen_config={}),
            keys("transformer/config.json", _use_default_values=["t_scale"]),
            keys("mlp/config.json", connector_norm=False),
        ],
    ),
    "qwen: no index": (QWEN, [without(f"transformer/{_WEIGHTS}.index.json")]),
}
REFUSED: dict[str, tuple[str, list[Change], str]] = {
    "ideogram: unknown key": (
        IDEOGRAM,
        [keys("transformer/config.json", num_experts=8)],
        "transformer/config.json: unknown key 'num_experts'",
    ),
    "ideogram: no unconditional": (
        IDEOGRAM,
        [without("unconditional_transformer")],
        "unconditional_transformer/ is missing; with --no-unconditional",
    ),
    "ideogram: pointer": (
        IDEOGRAM,
        [pointer(f"vae/{_WEIGHTS}")],
        "a Git LFS pointer, not the file: run git lfs pull",
    ),
    "lance: no VAE": (LANCE, [without("Wan2.2_VAE.pth")], "Wan2.2_VAE.pth is missing"),
    "ming: connector_norm": (
        MING,
        [keys("mlp/config.json", connector_norm=True)],
        "mlp/config.json: connector_norm is True: a further norm",
    ),
    "ming: shard": (
        MING,
        [without("model.safetensors.index.json", "model-00007-of-00042.safetensors")],
        "1 of its 42 shards are missing, number 7 first",
    ),
    "ming: other convolution": (
        MING,
        [keys("config.json", "audio_config", ds_conv_type="dwconv")],
        "ds_conv_type is 'dwconv', expected 'conv1d'",
    ),
    "qwen: layered": (
        QWEN,
        [keys("model_index.json", _class_name="QwenImageLayeredPipeline")],
        "is left to stock SGLang",
    ),
    "qwen: raw FP8": (QWEN, [raw_float8("transformer")], "raw FP8, without scales"),
    "qwen: no vocabulary": (
        QWEN,
        [without("tokenizer/vocab.json")],
        "tokenizer/: it has no vocabulary",
    ),
    "qwen edit: processor": (
        QWEN_EDIT,
        [keys("processor/preprocessor_config.json", patch_size=16)],
        "processor/preprocessor_config.json: patch_size is 16, expected 14",
    ),
}


def examined(name: str, changes: list[Change], folder: Path) -> dict[str, Any]:
    """What ``doctor`` finds, within the time that it may take."""
    root = write(name, folder / "model")
    for change in changes:
        change(root)
    start = time.process_time()
    found = examine_model(root)
    assert time.process_time() - start < SECONDS
    return found


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_sound_checkpoint_is_complete(case: str, tmp_path: Path) -> None:
    name, changes = ACCEPTED[case]
    found = examined(name, changes, tmp_path)
    assert (found["family"], found["problems"]) == (FAMILIES[name], [])


@pytest.mark.parametrize("case", REFUSED)
def test_another_checkpoint_is_refused_by_name(case: str, tmp_path: Path) -> None:
    name, changes, words = REFUSED[case]
    problems = examined(name, changes, tmp_path)["problems"]
    assert any(words in problem for problem in problems), problems
    assert len(problems) <= 2, problems


def test_a_composite_config_is_named(tmp_path: Path) -> None:
    found = examined(MING, [composite], tmp_path)
    assert found["problems"] == []
    (note,) = found["notes"]
    assert "no thinker was found because config.json is a composite one" in note


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    roots = [str(write(name, tmp_path / name)) for name in FAMILIES]
    code = (
        "import sys; from pathlib import Path\n"
        "from sglang_ext_gen.cli.doctor import examine_model\n"
        "problems = [examine_model(Path(p))['problems'] for p in sys.argv[1:]]\n"
        "print(problems, sorted({'torch', 'sglang', 'transformers'} & {*sys.modules}))"
    )
    command = [sys.executable, "-c", code, *roots]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == f"{[[]] * len(roots)} []"
