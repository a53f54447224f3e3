# SPDX-License-Identifier: Apache-2.0
"""Registration works in fresh processes, by entry points and otherwise."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from server.starts import count_start
from sglang_ext_gen.__main__ import main
from sglang_ext_gen.plugin.hooks import HOOKS
from sglang_ext_gen.registry import FAMILIES

pytestmark = pytest.mark.slow

# Resolves each path as SGLang's processes do and prints {path: [pipeline, config]}.
RESOLVE = """
import json, sys
found = {}
from sglang.multimodal_gen.runtime.platforms.plugins import apply_plugin_hooks
apply_plugin_hooks()
apply_plugin_hooks()
import sglang.multimodal_gen.registry as registry
for path in sys.argv[1:]:
    info = registry.get_model_info(path, backend="sglang")
    name = registry.get_non_diffusers_pipeline_name(path)
    found[path] = [
        info.pipeline_cls.__module__.partition(".")[0],
        info.pipeline_config_cls.__module__.partition(".")[0],
        info.sampling_param_cls.__module__.partition(".")[0],
        name,
    ]
registry.get_model_info.cache_clear()
print("FOUND " + json.dumps(found))
"""
# As plain `sglang generate`, and programs that build the arguments first: no plugin is
# loaded when the registry is asked.
ASK_FIRST = """
import json, sys
import sglang
from sglang.cli.utils import get_is_diffusion_model
from sglang.multimodal_gen.configs.pipeline_configs.base import ImagePipelineConfig
import sglang.multimodal_gen.registry as registry
from sglang.multimodal_gen.runtime.server_args import ServerArgs

ours, nf4, golden = sys.argv[1:]
family = "sglang_ext_gen.models.ideogram4"
info = registry.get_model_info(nf4, backend="sglang")
found = {"stock": [info.pipeline_cls.__name__, f"{family}.pipeline" in sys.modules]}
found["is diffusion"] = get_is_diffusion_model(ours)
found["name"] = registry.get_non_diffusers_pipeline_name(ours)

def config(**arguments):
    server_args = ServerArgs.from_kwargs(model_path=golden, **arguments)
    return type(server_args.pipeline_config).__name__, server_args

found["config"], _ = config()
stock_config = ImagePipelineConfig(vae_precision="fp16")
found["given"], server_args = config(pipeline_config=stock_config)
found["kept"] = server_args.pipeline_config.vae_precision
found["named"], _ = config(pipeline_class_name="Ideogram4Pipeline")
print("FOUND " + json.dumps(found))
"""


@pytest.fixture(scope="module")
def checkpoints(ideogram4_golden, tmp_path_factory):
    """Ours under a name that stock sends to diffusers, and a stock conversion."""
    folder = tmp_path_factory.mktemp("checkpoints")
    ignore = shutil.ignore_patterns("*.safetensors")
    ours = folder / "renamed-4bit-awq"
    shutil.copytree(ideogram4_golden.checkpoint, ours, ignore=ignore)
    nf4 = folder / "ideogram-4-nf4"
    shutil.copytree(ideogram4_golden.checkpoint, nf4, ignore=ignore)
    config = nf4 / "transformer" / "config.json"
    values = json.loads(config.read_text("utf-8"))
    values["quantization_config"] = {"quant_method": "bitsandbytes"}
    config.write_text(json.dumps(values), "utf-8")
    return ours, nf4


@pytest.fixture(scope="module")
def found(checkpoints, ideogram4_golden):
    """What fresh processes find, by case. All at once: each imports for a minute."""
    ours, nf4 = checkpoints
    cases = {
        "plugin": ([ours, nf4, "ideogram-ai/ideogram-4-fp8"], {}),
        "disabled": (
            [ideogram4_golden.checkpoint],
            {"SGLANG_EXT_GEN_DISABLE": "ideogram4"},
        ),
        "asked first": ([ours, nf4, ideogram4_golden.checkpoint], {}),
    }
    programs = {"asked first": ASK_FIRST}
    processes = {}
    for name, (paths, environment) in cases.items():
        count_start(f"plugins: {name}")
        processes[name] = subprocess.Popen(
            [sys.executable, "-c", programs.get(name, RESOLVE), *map(str, paths)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
    answers = {}
    for name, process in processes.items():
        output, log = process.communicate(timeout=600)
        assert process.returncode == 0, log[-3000:]
        [line] = [line for line in output.splitlines() if line.startswith("FOUND ")]
        answers[name] = json.loads(line.removeprefix("FOUND "))
    return answers


OURS = [*["sglang_ext_gen"] * 3, "Ideogram4FP8Pipeline"]
STOCKS = [*["sglang"] * 3, None]


def test_entry_points_take_over_our_checkpoints_and_no_other(found, checkpoints):
    ours, nf4 = checkpoints
    assert found["plugin"] == {
        str(ours): OURS,
        str(nf4): STOCKS,
        "ideogram-ai/ideogram-4-fp8": OURS,
    }


def test_a_disabled_family_is_given_back_to_stock(found, ideogram4_golden):
    assert found["disabled"] == {str(ideogram4_golden.checkpoint): STOCKS}


def test_the_first_question_about_ours_is_answered_by_us(found):
    """Pipeline and config are of one maker, whoever chose which."""
    assert found["asked first"] == {
        "stock": ["Ideogram4Pipeline", False],
        "is diffusion": True,
        "name": "Ideogram4FP8Pipeline",
        "config": "Ideogram4FP8PipelineConfig",
        "given": "Ideogram4FP8PipelineConfig",
        "kept": "fp16",
        "named": "Ideogram4PipelineConfig",
    }


def test_doctor_proves_the_registration(capsys):
    count_start("doctor")
    assert main(["doctor", "--json", "--upgrade"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {step["state"] for step in found["upgrade"]} == {"ok"}
    process = found["process"]
    assert process["families"] == {family.name: True for family in FAMILIES}
    # Hooks of the language model runtime are applied in its own processes.
    assert process["hooks"] == {
        hook.target: True for hook in HOOKS if hook.runtime in ("diffusion", "cli")
    }
