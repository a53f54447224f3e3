# SPDX-License-Identifier: Apache-2.0
"""A program: builds every model at full size on the meta device and fills it.

Of the files only headers are read. What our loader fills is proved by that which it
proves before it reads data. The thinkers, which SGLang's loader feeds, are given
tensors without data, and every write is noted.

Arguments: ``NAME=FOLDER``, as ``sparse.py`` wrote them. Prints a line ``FOUND`` with,
for each module, how many tensors are on disk and how many are used, skipped and filled;
or what is wrong.
"""

import json
import pkgutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from full_size.sparse import write_tensors
from sglang_ext_gen.checkpoint.component import StoredComponent
from sglang_ext_gen.checkpoint.layout import read_tensors
from sglang_ext_gen.checkpoint.load import prove_fit
from sglang_ext_gen.errors import ExtGenError
from sglang_ext_gen.models.ideogram4 import checkpoint as ideogram4
from sglang_ext_gen.models.lance import checkpoint as lance
from sglang_ext_gen.models.lance.tensors import VaeWidths, vae_specs
from sglang_ext_gen.models.lance.thinker.view import make_view
from sglang_ext_gen.models.ming_omni import checkpoint as ming
from sglang_ext_gen.models.qwen_image import checkpoint as qwen_image
from sglang_ext_gen.process.child_server import free_port

Row = StoredComponent[Any]
RELEASED, FP8 = (SimpleNamespace(weight_format=kind) for kind in ("released", "fp8"))
# Of Wan 2.2's VAE.
WIDTHS = VaeWidths(encoder=160, decoder=256)
DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32}


def main(roots: dict[str, Path]) -> dict[str, Any]:
    """What is found of each module."""
    found = {}
    for title, folder in (
        ("lance thinker", make_view(roots["lance_bf16"] / "Lance_3B")),
        ("lance video thinker", make_view(roots["lance_bf16"] / "Lance_3B_Video")),
        ("ming thinker", roots["ming_full"]),
    ):
        found[title] = thinker_fit(folder)
    start_generator_runtime(roots["lance_bf16"])
    for name, root in roots.items():
        for title, row, options in generator_rows(name, root):
            found[f"{name} {title}"] = row_fit(row, options)
    return found


def generator_rows(name: str, root: Path) -> Iterator[tuple[str, Row, Any]]:
    """Title, component and load options of what our loader fills."""
    if name == "ideo_fp8":
        for component in ideogram4.COMPONENTS[:3]:
            yield component.name, component.at(root), RELEASED
    if name == "lance_bf16":
        files = lance.find_files(root)
        with_data(lance.VAE.at(root), list(vae_specs(WIDTHS)))
        for variant in lance.VARIANTS:
            yield variant, files.transformer(variant), RELEASED
            yield f"{variant} fp8", files.transformer(variant), FP8
            yield f"{variant} tower", files.vision(variant), RELEASED
        yield "vae", lance.VAE.at(root), RELEASED
        yield "vae decoder", lance.VAE_DECODER.at(root), RELEASED
    if name == "ming_full":
        for part in ming.GLYPH_ENCODER.at(root).parts.values():
            with_data(part, list(part.component.specs(part.config, {})))
        for component in ming.COMPONENTS:
            yield component.name, component.at(root), RELEASED
    if name.startswith("qwen"):
        from sglang_ext_gen.models.qwen_image.pipeline_config import (
            QwenImageExtPipelineConfig,
        )

        row = qwen_image.TRANSFORMER.at(root)
        yield "transformer fp8", row, QwenImageExtPipelineConfig()


def with_data(row: Row, specs: list[Any]) -> None:
    """Put a converted pickle beside one that has no content."""
    file = (row.folder / row.component.file).with_suffix(".safetensors")
    write_tensors(file, [(spec.name, "F32", list(spec.shape)) for spec in specs])


def row_fit(row: Row, options: Any) -> Any:
    """A component, all its parts together."""
    module = pkgutil.resolve_name(row.component.build)(row, torch.bfloat16, options)
    parts = {module.get_submodule(name): part for name, part in row.parts.items()}
    counts: Counter[str] = Counter()
    for submodule, part in (parts or {module: row}).items():
        try:
            fit = prove_fit(
                submodule,
                part.stored,
                part.rules,
                where=part.where,
                quantize=part.component.quantizes,
            )
        except ExtGenError as error:
            return str(error)
        used = sum(len(step.sources) for step in fit.plan.steps)
        written = sum(len(step.targets) for step in fit.plan.steps)
        counts.update(
            stored=len(part.stored),
            used=used,
            skipped=len(fit.plan.skipped),
            filled=written + len(fit.shrunk),
            parameters=len(submodule.state_dict()),
            bytes=rank_bytes(submodule, 1),
            bytes_of_two=rank_bytes(submodule, 2),
        )
    return counts


def rank_bytes(module: nn.Module, ranks: int) -> int:
    """What one tensor-parallel rank would hold of a module."""
    state = module.state_dict(keep_vars=True).values()
    return sum(
        tensor.nbytes // (1 if getattr(tensor, "tp_dim", None) is None else ranks)
        for tensor in state
    )


def start_generator_runtime(model: Path) -> None:
    """SGLang's diffusion runtime in this process, one rank on the CPU."""
    from sglang.multimodal_gen.runtime.distributed.parallel_state import (
        maybe_init_distributed_environment_and_model_parallel,
    )
    from sglang.multimodal_gen.runtime.platforms.plugins import apply_plugin_hooks
    from sglang.multimodal_gen.runtime.server_args import (
        ServerArgs,
        set_global_server_args,
    )

    apply_plugin_hooks()
    arguments = ServerArgs.from_kwargs(model_path=str(model), backend="sglang")
    set_global_server_args(arguments)
    maybe_init_distributed_environment_and_model_parallel(
        tp_size=1,
        sp_size=1,
        distributed_init_method=f"tcp://127.0.0.1:{free_port()}",
    )


class Writes(TorchDispatchMode):
    """Notes which part of which storage is written to.

    Attributes:
        parts: (storage, offset, shape, stride) of every write.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[tuple[int, Any, torch.Size, tuple[int, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in (torch.ops.aten.copy_.default, torch.ops.aten.fill_.Scalar):
            to: Tensor = args[0]
            place = to.storage_offset(), to.shape, to.stride()
            self.parts.append((to.untyped_storage()._cdata, *place))
        return func(*args, **(kwargs or {}))


def thinker_fit(folder: Path) -> Any:
    """A thinker, as SGLang builds it, filled by its own ``load_weights``."""
    model: Any = build_thinker(folder)
    weights = list(meta_weights(folder))
    with Writes() as writes:
        filled = model.load_weights(iter(weights))
    parts = Counter(writes.parts)
    written: Counter[int] = Counter()
    for storage, _, shape, _ in parts:
        written[storage] += shape.numel()
    state = model.state_dict(keep_vars=True)
    wrong = [
        name
        for name, tensor in state.items()
        if written[tensor.untyped_storage()._cdata] != tensor.numel()
    ]
    twice = [part for part, count in parts.items() if count > 1]
    return {
        "stored": len(weights),
        "filled": len(filled),
        "parameters": len(state),
        "bytes": rank_bytes(model, 1),
        "wrong": wrong[:5],
        "twice": len(twice),
    }


def build_thinker(folder: Path) -> nn.Module:
    """The module on the meta device."""
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.model_loader import utils
    from sglang.srt.plugins import load_plugins
    from sglang.srt.runtime_context import SpawnRanks, publish
    from sglang.srt.server_args import ServerArgs

    load_plugins()
    make: Any = ServerArgs
    arguments = make(model_path=str(folder), device="cpu", dtype="bfloat16")
    arguments.resolve_once()
    publish(arguments, role="scheduler", ranks=SpawnRanks(world_rank=0))
    make_groups()
    config = ModelConfig.from_server_args(arguments)
    model_class, _ = utils.get_model_architecture(config)
    with torch.device("meta"), set_default_dtype(torch.bfloat16):
        return model_class(config=config.hf_config)


@cache
def make_groups() -> None:
    """SGLang's process groups, of one rank each."""
    from sglang.srt.distributed.parallel_state import (
        init_distributed_environment,
        initialize_model_parallel,
    )

    init_distributed_environment(
        backend="gloo",
        world_size=1,
        rank=0,
        local_rank=0,
        distributed_init_method=f"tcp://127.0.0.1:{free_port()}",
    )
    initialize_model_parallel()


@contextmanager
def set_default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """As SGLang does while it builds a model."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


def meta_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and empty tensors, as SGLang reads the files of a folder."""
    for name, tensor in read_tensors(folder / "model.safetensors").items():
        dtype = DTYPES[tensor.dtype]
        yield name, torch.empty(tensor.shape, dtype=dtype, device="meta")


if __name__ == "__main__":
    folders = dict(argument.split("=", 1) for argument in sys.argv[1:])
    print("FOUND " + json.dumps(main({n: Path(p) for n, p in folders.items()})))
