# SPDX-License-Identifier: Apache-2.0
"""The command line: help, refusals, exit codes, what is passed to SGLang."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoint_damage import copy_checkpoint, missing_scale
from sglang_ext_gen.__main__ import COMMANDS, main
from sglang_ext_gen.cli import doctor, running, serve, upgrade
from sglang_ext_gen.errors import RequestError
from sglang_ext_gen.plugin import compat
from sglang_ext_gen.registry import FAMILIES


@pytest.fixture(autouse=True)
def _no_variable_of_ours(monkeypatch):
    monkeypatch.delenv("SGLANG_EXT_GEN_DISABLE", raising=False)


@pytest.fixture
def model(ideogram4_golden):
    return str(ideogram4_golden.checkpoint)


def exit_code(*argv):
    """Of ``main``, also where argparse ends the process."""
    try:
        return main([str(word) for word in argv])
    except SystemExit as error:
        return error.code


# --- help -------------------------------------------------------------------


def test_every_help_without_torch_and_sglang():
    lines = [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
    script = (
        "import sys\n"
        "from sglang_ext_gen.__main__ import main\n"
        f"for line in {lines!r}:\n"
        "    try:\n"
        "        main(line)\n"
        "    except SystemExit as error:\n"
        "        assert error.code == 0, line\n"
        "heavy = {'torch', 'sglang', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    for command in COMMANDS:
        assert f"usage: sglang-ext-gen {command}" in result.stdout


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_generate_help_lists_every_request_field(family, capsys):
    assert exit_code("generate", "--help") == 0
    text = capsys.readouterr().out
    assert family.title in text
    for field in family.load(family.request_fields):
        if field.interfaces != "python":
            assert "--" + field.name.replace("_", "-") in text
    assert "--fp8-mode" in text
    assert "--no-unconditional" in text


def test_help_is_the_answer_to_nothing(capsys):
    assert main([]) == 0
    assert "doctor" in capsys.readouterr().out


def test_module_and_command_are_the_same_program(capsys):
    result = subprocess.run(
        [sys.executable, "-m", "sglang_ext_gen", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    main(["--help"])
    assert result.stdout == capsys.readouterr().out


# --- refusals ---------------------------------------------------------------

BAD_FIELDS = [
    (["--width", "17"], "width"),
    (["--width", "0"], "width"),
    (["--width", "-1"], "width"),
    (["--height", "4096"], "height"),
    (["--height", "abc"], "height"),
    (["--width", "2048", "--height", "256"], "width"),
    (["--num-inference-steps", "0"], "num_inference_steps"),
    (["--num-inference-steps", "-1"], "num_inference_steps"),
    (["--num-inference-steps", "1.5"], "num_inference_steps"),
    (["--num-inference-steps", "1000000000"], "num_inference_steps"),
    (["--num-outputs-per-prompt", "0"], "num_outputs_per_prompt"),
    (["--num-outputs-per-prompt", "1000000"], "num_outputs_per_prompt"),
    (["--num-outputs-per-prompt", "-1"], "num_outputs_per_prompt"),
    (["--num-outputs-per-prompt", "two"], "num_outputs_per_prompt"),
    (["--seed", "-1"], "seed"),
    (["--seed", "x"], "seed"),
    (["--seed", "1" + 400 * "0"], "seed"),
    (["--guidance-scale", "nan"], "guidance_scale"),
    (["--guidance-scale", "inf"], "guidance_scale"),
    (["--guidance-scale", "much"], "guidance_scale"),
    (["--guidance-scale", "-1"], "guidance_scale"),
    (["--guidance-schedule", *["7"] * 19, "nan"], "guidance_schedule"),
    (["--guidance-schedule", *["7"] * 300], "guidance_schedule"),
    (["--guidance-schedule", "7", "3"], "guidance_schedule"),
    (["--guidance-schedule", "7", "x"], "guidance_schedule"),
    (["--guidance-scale", "3", "--guidance-schedule", *["3"] * 20], "guidance"),
    (["--mu", "1e9"], "mu"),
    (["--mu", "high"], "mu"),
    (["--std", "0"], "std"),
    (["--std=-inf"], "std"),
    (["--preset", "V5"], "preset"),
    (["--preset", ""], "preset"),
    (["--negative-prompt", "blurry"], "negative_prompt"),
    (["--prompt", ""], "prompt"),
    (["--prompt", " "], "prompt"),
    (["--prompt", "x" * 70_000], "prompt"),
    (["--prompt", "\udcff"], "prompt"),
    (["--width", "256.5"], "width"),
    (["--height", "-256"], "height"),
    (["--height", "inf"], "height"),
    (["--fp8-mode", "fast"], "fp8_mode"),
]


@pytest.mark.parametrize(("words", "field"), BAD_FIELDS, ids=lambda words: str(words))
def test_bad_fields_are_named(model, words, field, capsys):
    assert exit_code("generate", model, "--prompt", "a cat", *words) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"sglang-ext-gen generate: {field}"), message
    assert message.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "word " * 4000], "prompt: "),
        (["--no-unconditional", "--guidance-scale", "3"], "guidance_scale: guidance 3"),
        (["--steps", "4"], "--steps"),
        (["--lora-path", "adapter"], "--lora-path: LoRA is not supported"),
        (["--quantization", "fp8"], "--quantization: the weights are FP8 as released"),
        (["--dit-precision", "int4"], "--dit-precision"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_no_worker_starts_for_what_cannot_work(
    model, words, message, capsys, monkeypatch
):
    from sglang.multimodal_gen.runtime.entrypoints.diffusion_generator import (
        DiffGenerator,
    )

    def start(*_):
        pytest.fail("a worker was started")

    monkeypatch.setattr(DiffGenerator, "from_server_args", start)
    for variable in running.TIMING_VARIABLES:
        monkeypatch.setenv(variable, "1")
    assert exit_code("generate", model, "--prompt", "a cat", *words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--prompt", "a"), "MODEL must come first"),
        (("{model}",), "prompt: missing or empty"),
        (("{model}", "--prompt", " "), "prompt: missing or empty"),
        (("{model}", "--prompt", "a", "--image", "no.png"), "image: no.png cannot be"),
        (("{model}", "--prompt", "a", "--max-tokens", "0"), "max_tokens: 0 given"),
        (("{model}", "--prompt", "a", "--temperature", "-1"), "temperature: -1 given"),
        (("{other}", "--prompt", "a"), "is no checkpoint of Ming-flash-omni 2.0"),
    ],
)
def test_a_question_is_refused_before_a_server_starts(
    words, message, model, golden_dir, capsys
):
    lance = golden_dir("lance") / "checkpoint"
    argv = [word.format(model=lance, other=model) for word in words]
    assert exit_code("ask", *argv) == 2
    assert message in capsys.readouterr().err


def test_a_question_to_a_composite_checkpoint_says_what_is_there(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"thinker_config": {}}')
    assert exit_code("ask", tmp_path, "--prompt", "a") == 2
    message = capsys.readouterr().err
    assert "no thinker was found because config.json is a composite one" in message


def test_generate_says_what_a_near_miss_is(tmp_path, golden_dir, capsys):
    layered = tmp_path / "layered"
    layered.mkdir()
    index = {"_class_name": "QwenImageLayeredPipeline"}
    (layered / "model_index.json").write_text(json.dumps(index))
    assert exit_code("generate", layered, "--prompt", "a") == 2
    assert "is left to stock SGLang; for other models" in capsys.readouterr().err

    # Ours, but for its thinker: a note, then the request's own fault.
    ming = copy_checkpoint(golden_dir("ming_omni") / "checkpoint", tmp_path / "ming")
    whole = {"thinker_config": json.loads((ming / "config.json").read_text())}
    (ming / "config.json").write_text(json.dumps(whole))
    assert exit_code("generate", ming) == 2
    message = capsys.readouterr().err
    assert "note: " in message
    assert "no thinker was found because config.json is a composite one" in message


@pytest.mark.slow
def test_no_worker_starts_for_a_damaged_checkpoint(
    ideogram4_golden, tmp_path, capsys, monkeypatch
):
    for variable in running.TIMING_VARIABLES:
        monkeypatch.setenv(variable, "1")
    broken = copy_checkpoint(ideogram4_golden.checkpoint, tmp_path / "broken")
    name = missing_scale(broken)
    assert exit_code("generate", broken, "--prompt", "a cat") == 1
    assert name in capsys.readouterr().err


def test_missing_prompt_is_named(model, capsys):
    assert exit_code("generate", model) == 2
    assert "prompt: missing" in capsys.readouterr().err


def test_two_sources_of_the_prompt(model, tmp_path, capsys):
    file = tmp_path / "prompt.json"
    file.write_text("a dog", "utf-8")
    words = ("--prompt", "a cat", "--prompt-file", file)
    assert exit_code("generate", model, *words) == 2
    assert "prompt: also given" in capsys.readouterr().err
    assert exit_code("generate", model, "--prompt-file", tmp_path / "nope") == 2
    assert "nope" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nope"], "unknown command 'nope'"),
        (["generate", "--prompt", "x"], "MODEL must come first"),
        (["serve", "--port", "1"], "MODEL must come first"),
        (["generate", "some/model", "--prompt", "x"], "some/model is no checkpoint"),
        (["tiny", "nope", "there"], "unknown model family 'nope'"),
        (["demo", "nope"], "unknown model family 'nope'"),
        (["demo", "--steps", "0"], "num_inference_steps"),
        (["doctor", "--nope"], "--nope"),
    ],
)
def test_wrong_command_lines(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert exit_code(*argv) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_misspelt_variable_is_an_error(model, monkeypatch, capsys):
    monkeypatch.setenv("SGLANG_EXT_GEN_DISABEL", "ideogram4")
    assert exit_code("doctor", "--no-process") == 2
    assert "SGLANG_EXT_GEN_DISABEL" in capsys.readouterr().err


# --- what is passed on ------------------------------------------------------


def test_serve_speaks_sglangs_words(model):
    ours = ["--port", "1", "--no-unconditional", "--fp8-mode", "expanded"]
    assert serve.sglang_arguments(model, [*ours, "--precision", "float32"]) == [
        *("--model-path", model, "--backend", "sglang"),
        *("--dit-precision", "fp32", "--vae-precision", "fp32"),
        *("--text-encoder-precisions", "fp32", "--image-encoder-precision", "fp32"),
        *("--fp8-mode", "expanded", "--load-unconditional", "false"),
        *("--port", "1"),
    ]


def test_serve_leaves_stock_models_and_the_backend_alone(model):
    argv = ["--port", "1"]
    stock = "Tongyi-MAI/Z-Image-Turbo"
    expected = ["--model-path", stock, *argv]
    assert serve.sglang_arguments(stock, argv) == expected
    assert serve.sglang_arguments(model, ["--backend", "auto"]) == [
        *("--model-path", model, "--backend", "auto")
    ]
    with pytest.raises(RequestError, match="fp8_mode"):
        serve.sglang_arguments(model, ["--fp8-mode", "x"])


@pytest.mark.parametrize(
    ("output", "fields"),
    [
        ("outputs", {"output_path": "outputs"}),
        ("a/b.PNG", {"output_path": "a", "output_file_name": "b.PNG"}),
        ("b.mp4", {"output_path": ".", "output_file_name": "b.mp4"}),
        ("a/v1.5", {"output_path": "a/v1.5"}),
    ],
)
def test_output_is_a_file_or_a_directory(output, fields):
    assert running.output_fields(output) == fields


def test_stdout_of_children_goes_to_stderr(capfd):
    with running.stdout_to_stderr() as stdout:
        subprocess.run([sys.executable, "-c", "print('log')"], check=True)
        os.write(stdout, b"answer\n")
    os.write(1, b"afterwards\n")
    captured = capfd.readouterr()
    assert captured.out == "answer\nafterwards\n"
    assert captured.err == "log\n"


# --- tiny and doctor --------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_doctor_finds_a_tiny_checkpoint_complete(family, tmp_path, capsys):
    target = tmp_path / "tiny"
    assert exit_code("tiny", family.name, target, "--seed", 3) == 0
    capsys.readouterr()
    assert exit_code("doctor", "--no-process", "--json", "--model", target) == 0
    found = json.loads(capsys.readouterr().out)
    model = found["model"]
    assert (model["path"], model["family"]) == (str(target), family.name)
    assert model["problems"] == []
    assert family.title in model["advice"]["titles"]
    assert found["versions"]["sglang"] == compat.SUPPORTED_SGLANG
    assert found["problems"] == []

    assert exit_code("tiny", family.name, target) == 2
    assert str(target) in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["ming_thinker", "ming_omni/checkpoint"])
def test_doctor_finds_the_golden_thinkers_complete(folder, golden_dir, capsys):
    path = golden_dir("ming_thinker").parent / folder
    assert exit_code("doctor", "--no-process", "--json", "--model", path) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"]["family"], found["problems"]) == ("ming_omni", [])


def test_doctor_names_what_is_broken(ideogram4_golden, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(ideogram4_golden.checkpoint, broken)
    (broken / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert exit_code("doctor", "--no-process", "--model", broken) == 1
    text = capsys.readouterr().out
    assert "vae" in text
    assert "1 problem(s)" in text


@pytest.mark.parametrize(("name", "message"), [("there", "no checkpoint of"), ("", "")])
def test_doctor_on_something_else(tmp_path, name, message, capsys):
    (tmp_path / "there").mkdir()
    path = tmp_path / (name or "nowhere")
    assert exit_code("doctor", "--no-process", "--model", path) == 1
    assert message in capsys.readouterr().out


def test_doctor_names_a_missing_installation(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "entry_points", lambda group: ())
    monkeypatch.setattr(compat, "installed_sglang", lambda: "0.4")
    assert exit_code("doctor", "--no-process") == 1
    text = capsys.readouterr().out
    assert "found 0.4" in text
    assert "register_diffusion is missing" in text
    assert "register_srt is missing" in text


def test_doctor_names_what_a_process_lacks(monkeypatch, capsys):
    process = {
        "families": {family.name: False for family in FAMILIES},
        "hooks": {hook.target: False for hook in doctor.hooks.HOOKS},
        "compat": ["a:b does not exist"],
        "device": {"type": "cpu"},
    }
    monkeypatch.setattr(doctor, "_fresh_process", lambda: process)
    assert exit_code("doctor") == 1
    text = capsys.readouterr().out
    assert "NOT REGISTERED" in text
    assert "MISSING" in text
    assert "a:b does not exist" in text


def test_upgrade_says_of_each_step_what_to_do(monkeypatch, capsys):
    process = {
        "families": {"lance": False},
        "hooks": {},
        "compat": ["a:b does not exist"],
        "cpu_kernels": {"fused_norm": True},
        "device": {"type": "cpu"},
    }
    monkeypatch.setattr(doctor, "_fresh_process", lambda: process)
    monkeypatch.setattr(compat, "installed_sglang", lambda: "9.9")
    assert exit_code("doctor", "--upgrade") == 1
    text = capsys.readouterr().out.partition("UPGRADING.md")[2]
    states = dict(re.findall(r"^  [ \d]\d  (.+?)  +(ok|look here|failed)$", text, re.M))
    failed = ["Release", "Registration", "Couplings"]
    assert [title for title, state in states.items() if state == "failed"] == failed
    assert "ok" not in states.values()
    for line in ("found 9.9", "lance is missing", "a:b does not", "has fused_norm now"):
        assert line in text
    for hook in doctor.hooks.HOOKS:
        assert hook.remove_when in text
    monkeypatch.setattr(doctor, "_fresh_process", lambda: {"error": "it crashed"})
    assert exit_code("doctor", "--upgrade") == 1
    assert "it crashed" in capsys.readouterr().out.partition("UPGRADING.md")[2]
    assert exit_code("doctor", "--upgrade", "--no-process") == 2


def test_the_page_on_upgrades_has_the_steps_of_the_command():
    page = (Path(__file__).parents[3] / "UPGRADING.md").read_text("utf-8")
    headings = re.findall(r"^## (\d+)\. (.+)$", page, re.M)
    titles = [step.title for step in upgrade.steps({})]
    assert headings == [(str(n), title) for n, title in enumerate(titles, 1)]
