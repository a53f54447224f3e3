# SPDX-License-Identifier: Apache-2.0
"""``doctor`` on a model that is only on the hub, against a hub on this machine."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sglang_ext_gen.cli import hub

RELEASE = "ideogram-ai/ideogram-4-fp8"
WEIGHTS = "diffusion_pytorch_model.safetensors"
FILES = {
    "model_index.json": 500,
    f"transformer/{WEIGHTS}": 9_000_000_000,
    f"unconditional_transformer/{WEIGHTS}.index.json": 900,
    "unconditional_transformer/diffusion_pytorch_model-00001-of-00001.safetensors": 5,
    "text_encoder/model.safetensors": 8_000_000_000,
    f"vae/{WEIGHTS}": 200_000_000,
}


@contextmanager
def hub_of(models: dict[str, Any], *, answers: bool = True) -> Iterator[str]:
    """The address of a hub with these models; one that never answers, if told so."""
    end = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not answers:
                end.wait()
                return
            name = self.path.removeprefix("/api/models/").partition("?")[0]
            content = json.dumps(models.get(name, {"error": "Repository not found"}))
            self.send_response(200 if name in models else 404)
            self.send_header("Content-Type", "application/json")
            if name not in models:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *_: Any) -> None:
            """Nothing is logged."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        end.set()
        server.shutdown()
        server.server_close()
        thread.join()


def listing(name: str, files: dict[str, int], **fields: Any) -> dict[str, Any]:
    siblings = [{"rfilename": file, "size": size} for file, size in files.items()]
    return {"id": name, "modelId": name, "siblings": siblings, **fields}


def doctor(
    model: str, folder: Path, endpoint: str, **environment: str
) -> tuple[dict[str, Any], int]:
    """What ``doctor --json`` says in a process of its own, and its exit code."""
    command = ["-m", "sglang_ext_gen", "doctor", "--no-process", "--json", "--model"]
    variables = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder), **environment}
    kept = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, *command, model],
        cwd=folder,
        env={**kept, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout)["model"], done.returncode


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (RELEASE, True),
        ("a/b/c", False),
        ("name", False),
        ("/tmp/x", False),
        ("./here", True),
    ],
)
def test_what_is_an_id(text, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub.is_id(text) is expected
    (tmp_path / "here").mkdir()
    assert not hub.is_id("./here")


def test_a_release_is_answered_from_its_file_list(tmp_path):
    models = {RELEASE: listing(RELEASE, FILES, gated="auto")}
    with hub_of(models) as endpoint:
        found, code = doctor(RELEASE, tmp_path, endpoint)
    assert (found["family"], found["problems"], code) == ("ideogram4", [], 0)
    answer = found["hub"]
    assert answer["bytes"] == sum(FILES.values())
    assert answer["weights"] == 17_200_000_005
    assert answer["licence"] == "Ideogram Non-Commercial Model Agreement"
    assert (answer["commercial"], answer["gated"]) == (False, True)
    assert answer["command"] == (
        f"hf download {RELEASE} --local-dir ideogram-4-fp8 && "
        "sglang-ext-gen doctor --model ideogram-4-fp8"
    )
    text = hub.render(answer)
    assert "16.0 GiB to download" in text
    assert "conditions must be accepted" in text


def test_what_a_release_lacks_is_named(tmp_path):
    files = {name: size for name, size in FILES.items() if "vae" not in name}
    with hub_of({RELEASE: listing(RELEASE, files)}) as endpoint:
        found, code = doctor(RELEASE, tmp_path, endpoint)
    assert code == 1
    assert found["problems"] == [f"vae/{WEIGHTS} is not in the hub's list of {RELEASE}"]


def test_another_model_is_not_guessed(tmp_path):
    models = {"a/b": listing("a/b", FILES, cardData={"license": "mit"})}
    with hub_of(models) as endpoint:
        found, code = doctor("a/b", tmp_path, endpoint)
        unknown, _ = doctor("no/such", tmp_path, endpoint)
    assert (found["family"], code) == (None, 1)
    assert "download it, and ask again" in found["problems"][0]
    assert found["hub"]["licence"] == "mit"
    assert "the hub does not show it" in unknown["problems"][0]


def test_no_network_is_said(tmp_path):
    found, code = doctor(RELEASE, tmp_path, "http://127.0.0.1:9")
    assert code == 1
    [problem] = found["problems"]
    assert "is not on this machine, and the hub cannot be reached" in problem
    offline, _ = doctor(RELEASE, tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in offline["problems"][0]


def test_a_hub_that_never_answers_is_left(tmp_path):
    with hub_of({}, answers=False) as endpoint:
        found, _ = doctor(RELEASE, tmp_path, endpoint)
    assert "the hub did not answer in 3 s" in found["problems"][0]


def test_an_earlier_download_is_looked_at(ideogram4_golden, tmp_path):
    repository = tmp_path / "hub" / f"models--{RELEASE.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "snapshots").mkdir()
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.symlink_to(ideogram4_golden.checkpoint)
    found, code = doctor(RELEASE, tmp_path, "http://127.0.0.1:9")
    assert (found["family"], found["problems"], code) == ("ideogram4", [], 0)
    assert found["path"] == str(snapshot)
