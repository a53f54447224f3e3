# SPDX-License-Identifier: Apache-2.0
"""What ``doctor`` says of a model that is only on the Hugging Face hub.

By its list of files, which is one question with an end: without a network the answer is
that there is none.
"""

import re
import shlex
import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from sglang_ext_gen.checkpoint.component import Component, StoredComponent
from sglang_ext_gen.registry import family_of

_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Of the whole question, names of hosts included, which no library limits.
_SECONDS = 3.0
_GIB = 2**30
_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")


def is_id(text: str) -> bool:
    """Whether it can only be a name on the hub: no such path, and OWNER/NAME."""
    return not Path(text).exists() and _ID.fullmatch(text) is not None


def cached_folder(model: str) -> Path | None:
    """Where an earlier download of it is on this machine."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def examine(model: str) -> dict[str, Any]:
    """What the hub's file list says of a model.

    Returns:
        ``family`` (or None), ``problems``, and ``hub`` where the hub answered.
    """
    family = family_of(model)
    findings = {"path": model, "family": family and family.name, "notes": []}
    try:
        info = _ask(model)
    except ConnectionError as error:
        problem = f"{model} is not on this machine, and {error}"
        return {**findings, "problems": [problem]}
    files = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    hub = {
        "bytes": sum(files.values()),
        "weights": sum(n for name, n in files.items() if name.endswith(_WEIGHTS)),
        "licence": (info.card_data or {}).get("license"),
        "gated": bool(info.gated),
        "command": _next_command(model),
    }
    if family is None:
        known = "it is no release that this package knows by its name"
        problem = f"{model}: {known}; download it, and ask again about the directory"
        return {**findings, "problems": [problem], "hub": hub}
    hub["title"] = family.title
    hub["licence"] = family.licence.name
    hub["commercial"] = family.licence.commercial
    components = family.load("checkpoint:COMPONENTS")
    missing = dict.fromkeys(_missing(components, files))
    problems = [f"{name} is not in the hub's list of {model}" for name in missing]
    return {**findings, "problems": problems, "hub": hub}


def _next_command(model: str) -> str:
    folder = model.rpartition("/")[2]
    download = shlex.join(["hf", "download", model, "--local-dir", folder])
    return (
        f"{download} && {shlex.join(['sglang-ext-gen', 'doctor', '--model', folder])}"
    )


def _ask(model: str) -> Any:
    """The hub's answer.

    Raises:
        ConnectionError: There is none, or the hub does not know the model; says why.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    answers: list[Any] = []

    def ask() -> None:
        try:
            api = HfApi()
            answers.append(api.model_info(model, files_metadata=True))
        except OfflineModeIsEnabled:
            answers.append(ConnectionError("HF_HUB_OFFLINE forbids asking the hub"))
        except HfHubHTTPError as error:
            reason = str(error).strip().splitlines()[0]
            answers.append(ConnectionError(f"the hub does not show it: {reason}"))
        except (httpx.HTTPError, OSError, ValueError) as error:
            answers.append(ConnectionError(f"the hub cannot be reached: {error}"))

    # A thread that nobody waits for: looking up a host's name cannot be interrupted.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    if not answers:
        raise ConnectionError(f"the hub did not answer in {_SECONDS:g} s")
    if isinstance(answers[0], ConnectionError):
        raise answers[0]
    return answers[0]


def _missing(
    components: Collection[Component[Any]], files: Mapping[str, int]
) -> Iterator[str]:
    """Weights of components that a file list does not have, whole or in shards."""
    for component in components:
        stored = component.at(Path())
        for part in stored.parts.values() or (stored,):
            names = list(_names(part))
            if not any(_is_listed(name, files) for name in names):
                yield names[0]


def _names(part: StoredComponent[Any]) -> Iterator[str]:
    """What the weights of a component may be called, from the checkpoint on."""
    row = part.component
    for name in (row.file, row.other_file):
        if name is not None:
            yield (part.folder / name).as_posix()


def _is_listed(name: str, files: Mapping[str, int]) -> bool:
    path = PurePosixPath(name)
    shard = re.compile(
        rf"{re.escape(str(path.with_suffix('')))}-\d+-of-\d+{path.suffix}"
    )
    converted = str(path.with_suffix(".safetensors"))
    return bool({name, converted} & files.keys()) or any(map(shard.fullmatch, files))


def render(hub: Mapping[str, Any]) -> str:
    """The answer for people."""
    use = {True: "commercial use allowed", False: "no commercial use", None: "unknown"}
    lines = [
        "on the hub",
        f"  {hub.get('title', 'unknown family')}",
        f"  {hub['bytes'] / _GIB:.1f} GiB to download, {hub['weights'] / _GIB:.1f} GiB "
        "of it weights",
        f"  weights under {hub['licence']}: {use[hub.get('commercial')]}",
    ]
    if hub["gated"]:
        lines += [
            "  its conditions must be accepted on its page first; then hf auth login"
        ]
    lines += ["  what each GPU needs is told of the downloaded directory. Run next:"]
    return "\n".join([*lines, f"  {hub['command']}"])
