# SPDX-License-Identifier: Apache-2.0
"""Released checkpoints and re-packs at full size: what ``doctor`` says of each.

The words of a refusal are those that a user needs. Each answer takes less than 3 s.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from full_size.sparse import read_tensors, write, write_tensors

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
MEGABYTES = 150
# Of the files that are loaded from; the pickles have no content here.
PARAMETERS = {
    IDEOGRAM: 26.79e9,
    LANCE: 13.96e9,
    MING: 112.05e9,
    QWEN: 28.85e9,
    QWEN_EDIT: 28.85e9,
}
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


COMPOSITE = "ming: composite"
# Looks at every folder in turn, as doctor does, and says what that took.
EXAMINE = """
import json, re, sys, time
from pathlib import Path
from sglang_ext_gen.cli.doctor import examine_model

found = {}
for case, root in json.loads(sys.stdin.read()).items():
    start = time.process_time()
    found[case] = {"model": examine_model(Path(root))}
    found[case]["seconds"] = time.process_time() - start
status = Path("/proc/self/status")
print(json.dumps({
    "found": found,
    # Unlike ru_maxrss it does not count the process that this one was forked from.
    "kilobytes": status.exists()
    and int(re.search("VmHWM:[ \\t]+([0-9]+) kB", status.read_text())[1]),
    "heavy": sorted({"torch", "sglang", "transformers"} & {*sys.modules}),
}))
"""


@pytest.fixture(scope="module")
def examined(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``doctor`` finds in every case, in one process, and what that took."""
    cases = {
        **{case: (name, changes) for case, (name, changes) in ACCEPTED.items()},
        **{case: (name, changes) for case, (name, changes, _) in REFUSED.items()},
        COMPOSITE: (MING, [composite]),
    }
    folder, roots = tmp_path_factory.mktemp("repacks"), {}
    for number, (case, (name, changes)) in enumerate(cases.items()):
        root = write(name, folder / str(number) / "model")
        for change in changes:
            change(root)
        roots[case] = str(root)
    result = subprocess.run(
        [sys.executable, "-c", EXAMINE],
        input=json.dumps(roots),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(result.stdout)


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_sound_checkpoint_is_complete(case: str, examined: dict[str, Any]) -> None:
    name, _ = ACCEPTED[case]
    found = examined["found"][case]["model"]
    assert (found["family"], found["problems"]) == (FAMILIES[name], [])
    assert found["advice"]["parameters"] == pytest.approx(PARAMETERS[name], rel=0.03)
    assert all(role["options"] for role in found["advice"]["roles"])


@pytest.mark.parametrize("case", REFUSED)
def test_another_checkpoint_is_refused_by_name(
    case: str, examined: dict[str, Any]
) -> None:
    problems = examined["found"][case]["model"]["problems"]
    words = REFUSED[case][2]
    assert any(words in problem for problem in problems), problems
    assert len(problems) <= 2, problems


def test_a_composite_config_is_named(examined: dict[str, Any]) -> None:
    found = examined["found"][COMPOSITE]["model"]
    assert found["problems"] == []
    assert any(
        "no thinker was found because config.json is a composite one" in note
        for note in found["notes"]
    )


@pytest.mark.parametrize(
    ("case", "note"),
    [
        ("ideogram: attn", "text_encoder/config.json: not used: attn_implementation"),
        ("ideogram: component", "model_index.json: not used: refiner"),
        ("lance: attn", "Lance_3B/llm_config.json: not used: attn_implementation"),
    ],
)
def test_keys_that_are_taken_with_a_warning_are_listed(
    case: str, note: str, examined: dict[str, Any]
) -> None:
    assert note in examined["found"][case]["model"]["notes"]


def test_an_answer_takes_little_time(examined: dict[str, Any]) -> None:
    slow = {
        case: found["seconds"]
        for case, found in examined["found"].items()
        if found["seconds"] > SECONDS
    }
    assert slow == {}


@pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM")
def test_an_answer_takes_little_memory(examined: dict[str, Any]) -> None:
    """All in one process, which never gives back what its largest case took."""
    assert examined["kilobytes"] / 1000 < MEGABYTES
    assert examined["heavy"] == []


NEEDS = {
    # Role, form, split -> GiB of weights on each GPU, from the sizes of the release.
    IDEOGRAM: {
        ("draw", "resident", "1 GPU"): 24.9,
        ("draw", "resident", "2 GPUs, guidance"): 16.4,
        ("draw", "expanded", "1 GPU"): 48.4,
        ("draw", "w8a8", "2 GPUs, tensor"): 13.6,
    },
    LANCE: {
        ("draw", "released", "1 GPU"): 24.34,
        ("draw, t2i,image_edit alone", "fp8", "1 GPU"): 7.01,
        ("understand", "released", "1 GPU"): 7.6,
    },
    MING: {
        ("draw, beside a thinker", "released", "2 GPUs, tensor"): 8.48,
        ("chat, and feed the generator", "released", "4 GPUs, tensor"): 49.6,
    },
    QWEN: {("draw", "released", "1 GPU"): 53.7, ("draw", "fp8", "1 GPU"): 34.8},
    QWEN_EDIT: {("edit", "fp8", "4 GPUs, tensor"): 25.3},
}
LICENCES = {
    IDEOGRAM: ("Ideogram Non-Commercial Model Agreement", False),
    LANCE: ("Apache-2.0", True),
    MING: ("MIT", True),
    QWEN: ("Apache-2.0", True),
    QWEN_EDIT: ("Apache-2.0", True),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_adviser_knows_the_release(name: str, examined: dict[str, Any]) -> None:
    advice = examined["found"][f"{name}: as released"]["model"]["advice"]
    options = {
        (role["name"], option["form"], option["split"]): option
        for role in advice["roles"]
        for option in role["options"]
    }
    for key, gib in NEEDS[name].items():
        option = options[key]
        assert option["weights"] / 2**30 == pytest.approx(gib, abs=0.05), key
        small, large = option["sizes"]["1024x1024"], option["sizes"]["2048x2048"]
        assert option["weights"] < small["total"] <= large["total"]
    licence = advice["licence"]
    assert (licence["name"], licence["commercial"]) == LICENCES[name]
    assert advice["missing"] == []
    assert all(role["command"] for role in advice["roles"])


def test_what_is_missing_is_told(examined: dict[str, Any]) -> None:
    found = examined["found"]["ideogram: no unconditional"]["model"]
    assert found["advice"]["missing"] == [
        "unconditional_transformer/: guidance above 1 cannot be drawn"
    ]
    [role] = found["advice"]["roles"]
    assert "--no-unconditional" in role["command"]
    found = examined["found"]["lance: no VAE"]["model"]
    assert found["advice"]["missing"] == [
        "Wan2.2_VAE.pth: nothing can be drawn or edited"
    ]
    assert [role["name"] for role in found["advice"]["roles"]] == ["understand"]
