# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters with an account of every key.

Stock's loading and merging, with these contracts added:

- a key of an adapter that reaches no layer is an error that lists it (stock logs it);
- ``alpha`` may be any number (stock cuts it to an integer, so 0.5 becomes 0); one that
  is asked for beside the file's own is refused (stock ignores it);
- what is in force is what was asked for: an adapter is loaded again when its file or
  its alpha changed since (stock goes by name and path alone), and nothing is taken
  from the merges that stock keeps on disk, which do not see a changed checkpoint;
- ``list_loras``, and the answer of ``set_lora`` with it, says how many layers each
  adapter matched (``adapters.py``).
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from sglang.multimodal_gen.runtime.pipelines_core import LoRAPipeline
from sglang.multimodal_gen.runtime.utils.hf_diffusers_utils import maybe_download_lora
from torch import Tensor

from sglang_ext_gen.checkpoint.files import open_regular
from sglang_ext_gen.checkpoint.layout import read_header
from sglang_ext_gen.errors import CheckpointError, RequestError

_SHOWN_KEYS = 8
_PARTS = (".lora_A", ".lora_B")
# Values beside A and B that stock's loader understands.
_OTHER_PARTS = (".alpha", ".lora_output_offset")
_GROUPED = re.compile(r"(?P<layer>.*)\.add_[qkv]_proj\.(?P<part>.*)")


@dataclass(frozen=True)
class AdapterAccount:
    """What is known of a loaded adapter.

    Args:
        fingerprint: Hash of its files and of the alpha that was asked for.
        matched_layers: Layers that it changes.
    """

    fingerprint: str
    matched_layers: int


class AccountedLoRAPipeline(LoRAPipeline):
    """A pipeline whose adapters are accounted for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Before the base class, which may load an adapter at once.
        self.lora_accounts: dict[str, AdapterAccount] = {}
        super().__init__(*args, **kwargs)

    def set_lora(
        self,
        lora_nickname: str | list[str],
        lora_path: str | list[str | None] | None = None,
        target: str | list[str] = "all",
        strength: float | list[float] = 1.0,
        lora_alpha: Any = None,
        cache_merged: bool = False,
        **kwargs: Any,
    ) -> None:
        """As stock's; see the module docstring for what is added.

        Args:
            lora_nickname: One or several; the other arguments as long, or one for all.
            lora_path: A file, a folder or a Hugging Face id; None is the loaded one.
            target: As stock's.
            strength: As stock's.
            lora_alpha: Number or list of numbers, for adapters whose weights come
                without one; stock's type says integer.
            cache_merged: Not used; see the module docstring.
            kwargs: Stock's ``merge_weights`` and ``merge_mode``.

        Raises:
            RequestError: The transformer holds FP8 weights; lists differ in length; an
                adapter cannot be read, or one of its keys reaches no layer.
        """
        config: Any = self.server_args.pipeline_config
        if config.weight_format == "fp8":
            raise RequestError(
                "lora_path",
                "an adapter cannot be merged into FP8 weights without rounding it "
                "away; start without weight_format fp8",
            )
        with _blaming("lora_nickname"):
            names, paths, strengths, targets, alphas = self._normalize_lora_params(
                lora_nickname, lora_path, strength, target, lora_alpha
            )
        if len(set(names)) < len(names):
            raise RequestError("lora_nickname", f"{names} given, expected each once")
        paths = [
            path or self.loaded_adapter_paths.get(name)
            for name, path in zip(names, paths, strict=True)
        ]
        before = dict(self.lora_accounts)
        try:
            with _blaming("lora_path"):
                self._forget_changed(names, paths, alphas)
                super().set_lora(
                    names, paths, targets, strengths, lora_alpha=alphas, **kwargs
                )
        except RequestError:
            # What was loaded just now is not in force, and stock would think it is.
            for name in names:
                account = self.lora_accounts.get(name)
                if account is None or account is not before.get(name):
                    self._forget(name)
            raise

    def _forget_changed(
        self,
        names: list[str],
        paths: list[str | None],
        alphas: Sequence[float | None],
    ) -> None:
        """Stock loads an adapter again when it does not know it."""
        for name, path, alpha in zip(names, paths, alphas, strict=True):
            account = self.lora_accounts.get(name)
            if path is not None and account is not None:
                if account.fingerprint != fingerprint(path, alpha):
                    self._forget(name)

    def load_lora_adapter(
        self,
        lora_path: str,
        lora_nickname: str,
        rank: int,
        weight_name: str | None = None,
        lora_alpha: Any = None,
    ) -> None:
        """As stock's, then match every key with a layer.

        Raises:
            RequestError: Lists the first keys that reach no layer.
        """
        if weight_name is None and lora_path == self.server_args.lora_path:
            weight_name = self.server_args.lora_weight_name
        super().load_lora_adapter(
            lora_path, lora_nickname, rank, weight_name, lora_alpha
        )
        adapter = self.lora_adapters[lora_nickname]
        stored = list(
            read_header(Path(maybe_download_lora(lora_path, weight_name=weight_name)))
        )
        lost = unmatched_keys(adapter, self.lora_layers) + incomplete_groups(stored)
        if lost:
            shown = ", ".join(lost[:_SHOWN_KEYS])
            raise RequestError(
                "lora_path",
                f"{lora_path}: {len(lost)} keys match no layer of the transformer "
                f"({shown}); this adapter is for another model or damaged",
            )
        if lora_alpha is not None and any(name.endswith(".alpha") for name in stored):
            raise RequestError(
                "lora_alpha", f"{lora_alpha:g} given, but the adapter has its own"
            )
        fold_alpha(adapter, self.loaded_adapter_alphas[lora_nickname])
        self.lora_accounts[lora_nickname] = AdapterAccount(
            fingerprint(lora_path, lora_alpha), len(_layers(adapter))
        )

    def get_lora_status(self) -> dict[str, Any]:
        """Stock's, with ``matched_layers`` and ``fingerprint`` of each adapter."""
        status = super().get_lora_status()
        for entry in status["loaded_adapters"]:
            account = self.lora_accounts[entry["nickname"]]
            entry["matched_layers"] = account.matched_layers
            entry["fingerprint"] = account.fingerprint
        return status

    def _forget(self, nickname: str) -> None:
        self.lora_accounts.pop(nickname, None)
        self.lora_adapters.pop(nickname, None)
        self.loaded_adapter_paths.pop(nickname, None)
        self.loaded_adapter_alphas.pop(nickname, None)


def fingerprint(path: str, alpha: float | None) -> str:
    """What decides an adapter's effect: the content of its files, and ``alpha``.

    A path that is not on this machine (a Hugging Face id) stands for its content.
    """
    digest = hashlib.sha256(f"{path} alpha={alpha}".encode())
    for file in (*_local_files(path, "safetensors"), *_local_files(path, "json")):
        stream, _ = open_regular(file)
        with stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def incomplete_groups(stored: Iterable[str]) -> list[str]:
    """Names of a text stream's q, k and v where not all three are stored.

    Stock fuses the three and leaves out what it cannot fuse.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for name in stored:
        match = _GROUPED.fullmatch(name)
        if match:
            found.setdefault((match["layer"], match["part"]), []).append(name)
    return sorted(name for group in found.values() if len(group) < 3 for name in group)


def _local_files(path: str, suffix: str) -> list[Path]:
    local = Path(path)
    if local.is_dir():
        return sorted(local.glob(f"*.{suffix}"))
    return [local] if local.is_file() and local.suffix == f".{suffix}" else []


def unmatched_keys(
    adapter: Mapping[str, Tensor], layers: Mapping[str, Any]
) -> list[str]:
    """Keys that change nothing: unknown layers, unknown kinds, an A without its B."""
    lost = []
    for key in sorted(adapter):
        part = next((p for p in (*_PARTS, *_OTHER_PARTS) if key.endswith(p)), None)
        layer = key.removesuffix(part or "")
        is_complete = all(layer + other in adapter for other in _PARTS)
        if part is None or layer not in layers or not is_complete:
            lost.append(key)
    return lost


def fold_alpha(adapter: dict[str, Tensor], alpha: float | None) -> None:
    """Scale each B by ``alpha / rank`` in place, and make alpha equal to the rank.

    Args:
        adapter: Keys of stock's loader, ``<layer>.lora_A`` and the like.
        alpha: Of the whole adapter, where a layer has none of its own.
    """
    for layer in _layers(adapter):
        rank = adapter[f"{layer}.lora_A"].shape[-2]
        up = adapter[f"{layer}.lora_B"]
        value = adapter.get(f"{layer}.alpha")
        if value is None and alpha is None:
            continue
        if value is None:
            value = torch.tensor(float(alpha or 0.0))
        scale = value.float().to(up.device) / rank
        if scale.numel() > 1:
            # Three fused projections, [3, out, rank], each with its own alpha.
            scale = scale.reshape(-1, 1, 1)
        adapter[f"{layer}.lora_B"] = (up.float() * scale).to(up.dtype)
        adapter[f"{layer}.alpha"] = torch.tensor(float(rank), device=up.device)


def _layers(adapter: Mapping[str, Tensor]) -> list[str]:
    return [key.removesuffix(".lora_A") for key in adapter if key.endswith(".lora_A")]


@contextmanager
def _blaming(field: str) -> Iterator[None]:
    """What stock raises over an argument is the caller's error."""
    try:
        yield
    except RequestError:
        raise
    except (ValueError, OSError, KeyError, CheckpointError, SafetensorError) as error:
        raise RequestError(field, str(error)) from error
