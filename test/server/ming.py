# SPDX-License-Identifier: Apache-2.0
"""The thinker's golden requests, for an in-process engine and for HTTP."""

import base64
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conftest import Golden
from server.servers import Server, free_ports, running
from sglang_ext_gen.models.ming_omni.thinker_protocol import QUERY_BLOCK, QueryStates

# Stated by the issue; measured here: 7e-5 at most.
THRESHOLD = 2e-4
FLAGS = (
    *("--dtype", "float32", "--context-length", "2048"),
    *("--max-total-tokens", "16384", "--mem-fraction-static", "0.3"),
)
GREEDY = {"max_new_tokens": 8, "temperature": 0, "ignore_eos": True}
ONE_TOKEN = {"max_new_tokens": 1, "temperature": 0}
CHAT_CASES = (
    *("a_text", "a_multiturn", "b_image", "b_two_images", "b_image_first"),
    *("c_audio", "c_two_audio_packed", "d_video", "f_mixed"),
)
# Over HTTP a video is a file; the golden ones are lists of frames.
HTTP_CASES = tuple(case for case in CHAT_CASES if case not in ("d_video", "f_mixed"))
GENERATION_CASES = ("e_t2i", "e_short", "e_edit")


def data_url(path: Path) -> str:
    kind = "image/png" if path.suffix == ".png" else "audio/wav"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def golden_request(golden: Golden, case: str) -> dict[str, Any]:
    """A golden case as arguments of ``/generate``; ``text`` or ``input_ids``."""
    media = {name: data_url(golden.path / name) for name in _media_files(golden)}
    video = {
        "frames": [media[f"frame{index}.png"] for index in range(4)],
        "resized_height": 64,
        "resized_width": 64,
    }
    images, videos, audios = {
        "b_image": (["image0.png"], [], []),
        "b_two_images": (["image1.png", "image0.png"], [], []),
        "b_image_first": (["image1.png"], [], []),
        "c_audio": ([], [], ["audio0.wav"]),
        "c_two_audio_packed": ([], [], ["audio0.wav", "audio1.wav"]),
        "d_video": ([], [video], []),
        "f_mixed": (["image0.png"], [video], ["audio0.wav"]),
        "e_edit": (["image0.png"], [], []),
    }.get(case, ([], [], []))
    if case == "a_raw":
        return {"input_ids": golden.tensor("a_raw.input_ids").tolist()}
    texts = {"b_image_first": "<IMAGE>ok", "e_short": "cat"}
    source = "c_two_audio" if case == "c_two_audio_packed" else case
    request: dict[str, Any] = {
        "text": texts.get(case) or golden.json["cases"][source]["prompt_text"]
    }
    image_data = [media[name] for name in images]
    if case in GENERATION_CASES:
        image_data.append(QUERY_BLOCK)
    for name, items in (
        ("image_data", image_data),
        ("video_data", videos),
        ("audio_data", [media[audio] for audio in audios]),
    ):
        if items:
            request[name] = items
    return request


def integrated_request(golden: Golden, case: str) -> dict[str, Any]:
    """A case of ``test/golden/ming_omni`` as arguments of ``/generate``."""
    stored = golden.json["cases"][case]
    media: dict[str, list[str]] = {"image": [], "audio": []}
    for part in stored["content"]:
        if part["type"] in media:
            path = golden.path / part[part["type"]]
            media[part["type"]].append(data_url(path))
    if stored["kind"] == "image":
        media["image"].append(QUERY_BLOCK)
    request: dict[str, Any] = {"text": stored["prompt_text"]}
    return request | {f"{kind}_data": items for kind, items in media.items() if items}


def _media_files(golden: Golden) -> list[str]:
    found = [*golden.path.glob("*.png"), *golden.path.glob("*.wav")]
    return [path.name for path in found]


def golden_sampling(golden: Golden, case: str) -> dict[str, Any]:
    """Greedy, as many tokens as the official code wrote."""
    tokens = golden.json["cases"][case]["max_new_tokens"]
    return {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}


def hidden_states(golden: Golden, case: str, output: Any) -> tuple[Tensor, Tensor]:
    """Those that were computed, and the official ones."""
    meta = output["meta_info"]
    assert meta["prompt_tokens"] == golden.json["cases"][case]["prompt_len"]
    expected = golden.tensor(f"{case}.hidden")
    return torch.tensor(meta["hidden_states"][0]), expected[meta["cached_tokens"] :]


def query_error(golden: Golden, case: str, meta_info: dict[str, Any]) -> float:
    """Largest difference of the returned query states from the official ones."""
    rows = query_rows(meta_info)
    assert rows.dtype == torch.float32
    return max_error(rows, golden.tensor(f"{case}.query_hidden"))


def query_rows(meta_info: dict[str, Any]) -> Tensor:
    """The returned query states, [rows, width] in the model's dtype."""
    states = QueryStates.from_meta_info(meta_info)
    assert states.rows == sum(scale * scale for scale in states.scales)
    dtype = getattr(torch, states.dtype)
    return torch.frombuffer(bytearray(states.data), dtype=dtype).view(-1, states.width)


def max_error(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    return float((got - expected).abs().max())


LAUNCH_SERVER = (sys.executable, "-m", "sglang.launch_server", "--model-path")
SGLANG_SERVE = (str(Path(sys.executable).with_name("sglang")), "serve")


@contextmanager
def thinker_server(
    model: Path,
    folder: Path,
    *flags: str,
    door: tuple[str, ...] = LAUNCH_SERVER,
    **environment: str,
) -> Iterator[Server]:
    """Run a server until the end of the block.

    Args:
        model: Checkpoint directory.
        folder: Working directory; the log is kept in it.
        flags: Further arguments.
        door: The command up to the checkpoint.
        environment: Further environment variables.
    """
    http_port, nccl_port, _ = free_ports()
    command = [
        *(*door, str(model)),
        *("--host", "127.0.0.1", "--port", str(http_port)),
        *("--nccl-port", str(nccl_port), *FLAGS, *flags),
    ]
    with running(command, folder, http_port, environment) as server:
        yield server


# Arguments of ``sgl.Engine``.
ENGINE: dict[str, Any] = {
    "context_length": 2048,
    "max_total_tokens": 16384,
    "mem_fraction_static": 0.3,
    "enable_return_hidden_states": True,
}
