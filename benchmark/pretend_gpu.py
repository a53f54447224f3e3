# SPDX-License-Identifier: Apache-2.0
"""A GPU that is not here: the CUDA path of a process on tensors without data.

Fake tensors carry shape, dtype and device, so a model runs at its released size in
seconds, and what it would ask of a GPU can be counted: kernels, bytes, waits of the
host, copies from the host. Nothing is computed and nothing is timed.

``install`` comes before anything imports SGLang; ``start_runtime`` after it.
"""

import contextlib
import ctypes
import os
import socket
import subprocess
import tempfile
import traceback
import types
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MEMORY_BYTES = 80 << 30
# What sgl_kernel looks up in the driver when it is imported; each would fail.
_DRIVER = (
    "cuCtxFromGreenCtx",
    "cuCtxPopCurrent_v2",
    "cuCtxPushCurrent_v2",
    "cuDevResourceGenerateDesc",
    "cuDevSmResourceSplitByCount",
    "cuDeviceGetDevResource",
    "cuDriverGetVersion",
    "cuGetErrorString",
    "cuGetProcAddress_v2",
    "cuGreenCtxCreate",
    "cuGreenCtxDestroy",
    "cuGreenCtxGetDevResource",
    "cuPointerGetAttribute",
    "cuStreamCreate",
)
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


def install(capability: tuple[int, int]) -> None:
    """Make torch and SGLang believe in one GPU of a compute capability."""
    _load_driver()
    properties = types.SimpleNamespace(
        name="NVIDIA (pretended)",
        major=capability[0],
        minor=capability[1],
        multi_processor_count=132,
        total_memory=MEMORY_BYTES,
        is_integrated=False,
        warp_size=32,
        L2_cache_size=50 << 20,
        shared_memory_per_block_optin=232448,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048,
    )
    answers = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_capability": capability,
        "get_device_name": properties.name,
        "get_device_properties": properties,
        "mem_get_info": (MEMORY_BYTES, MEMORY_BYTES),
    }
    nothing = ("_lazy_init", "init", "set_device", "empty_cache", "synchronize")
    for name in (*nothing, "reset_peak_memory_stats"):
        answers[name] = None
    for name in ("allocated", "reserved"):
        answers |= {f"memory_{name}": 0, f"max_memory_{name}": 0}
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    torch._C._ensureCUDADeviceGuardSet()


def start_runtime() -> None:
    """SGLang's groups of one process, its arguments, and kernels that are shapes."""
    from sglang.multimodal_gen.runtime import server_args

    arguments: Any = _Arguments()
    server_args.set_global_server_args(arguments)
    _start_groups()
    _replace_kernels()


class _Arguments(types.SimpleNamespace):
    """Server arguments of one process: whatever is asked for is not set."""

    def __init__(self) -> None:
        degrees = ("kv_gather", "ulysses", "ring", "sp")
        super().__init__(**{f"{name}_degree": 1 for name in degrees})
        self.tp_size = self.num_gpus = 1

    def __getattr__(self, name: str) -> None:
        return None


def fake_module(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A module that was built on the meta device, on the pretended GPU."""
    with mode:
        for part in module.modules():
            for name, tensor in part._parameters.items():
                if tensor is not None:
                    fake = nn.Parameter(_on_gpu(tensor), requires_grad=False)
                    part._parameters[name] = fake
            for name, tensor in part._buffers.items():
                if tensor is not None:
                    part._buffers[name] = _on_gpu(tensor)
    return module


def _on_gpu(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")


@dataclass
class Counts:
    """What a stretch of code asks of the GPU.

    Args:
        kernels: By operator; views and allocations are none.
        elementwise_bytes: Read and written by kernels that are neither matrix
            products nor attention, by source line.
        syncs: Waits of the host for the GPU, by operator and source line.
        host_copies: Copies from the host, by source line.
        mixed_devices: Operators with tensors of two devices, by source line.
        attention: Attention kernels by name.
    """

    kernels: Counter[str] = field(default_factory=Counter)
    elementwise_bytes: Counter[str] = field(default_factory=Counter)
    syncs: Counter[str] = field(default_factory=Counter)
    host_copies: Counter[str] = field(default_factory=Counter)
    mixed_devices: Counter[str] = field(default_factory=Counter)
    attention: Counter[str] = field(default_factory=Counter)


_VIEWS = frozenset(
    """_conj _reshape_alias _unsafe_view alias as_strided chunk detach diagonal expand
    lift_fresh permute reshape select.int slice.Tensor split.Tensor split_with_sizes
    squeeze squeeze.dim squeeze.dims t transpose.int unbind.int unflatten.int unfold
    unsqueeze view view.dtype view_as_complex view_as_real""".split()
)
_ALLOCATIONS = frozenset(
    "empty.memory_format empty_like empty_strided new_empty new_empty_strided".split()
)
_SYNCS = frozenset(
    """_local_scalar_dense _unique2 equal is_nonzero masked_select nonzero
    repeat_interleave.Tensor unique_consecutive unique_dim""".split()
)
_PRODUCTS = frozenset(
    "addmm baddbmm bmm convolution fp8_linear linear mm _scaled_mm".split()
)
# Operator -> what people call it.
_ATTENTION = {"flash_attention": "FA", "torch_attention": "SDPA"}
_INDEXING = frozenset(("index.Tensor", "index_put", "index_put_"))
_COPIES = frozenset(("_to_copy", "copy_", "to.device"))


class KernelCounter(TorchDispatchMode):
    """Counts what runs inside it; enter it inside of the fake mode."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def __torch_dispatch__(
        self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        inputs = _tensors((args, kwargs))
        namespace, name = func.name().split("::")
        # What waits for the GPU has no value here and may raise.
        self._count_troubles(name, inputs)
        out = func(*args, **(kwargs or {}))
        outputs = _tensors(out)
        if namespace != "prim" and any(t.is_cuda for t in inputs + outputs):
            self._count_kernel(name, inputs, outputs)
        return out

    def _count_troubles(self, name: str, inputs: list[Tensor]) -> None:
        counts = self.counts
        devices = {tensor.device.type for tensor in inputs if tensor.dim() > 0}
        if len(devices) > 1 and name not in _COPIES:
            counts.mixed_devices[f"{name} {source_line()}"] += 1
        is_masked = name in _INDEXING and any(t.dtype == torch.bool for t in inputs[1:])
        if "cuda" in devices and (name in _SYNCS or is_masked):
            counts.syncs[f"{name} {source_line()}"] += 1

    def _count_kernel(
        self, name: str, inputs: list[Tensor], outputs: list[Tensor]
    ) -> None:
        counts = self.counts
        if name in _COPIES:
            source, target = inputs[-1], outputs[0]
            if target.is_cuda and not source.is_cuda:
                counts.host_copies[source_line()] += 1
            if source.is_cuda and not target.is_cuda:
                counts.syncs[f"{name} {source_line()}"] += 1
        if name in _VIEWS | _ALLOCATIONS:
            return
        counts.kernels[name] += 1
        if name in _ATTENTION:
            counts.attention[_ATTENTION[name]] += 1
        elif name.partition(".")[0] not in _PRODUCTS:
            size = sum(map(_nbytes, inputs + outputs))
            counts.elementwise_bytes[source_line()] += size


def source_line() -> str:
    """The line outside of torch that called the operator."""
    for frame in reversed(traceback.extract_stack()):
        if "/torch/" not in frame.filename and frame.filename != __file__:
            return f"{frame.filename.rpartition('site-packages/')[2]}:{frame.lineno}"
    return "?"


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _nbytes(tensor: Tensor) -> int:
    """Bytes that are really there: an expanded dimension is read once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1
    return count * tensor.element_size()


def _load_driver() -> None:
    """Build a libcuda whose functions fail, so that sgl_kernel can be imported."""
    folder = Path(tempfile.mkdtemp(prefix="pretend-gpu-"))
    source, library = folder / "libcuda.c", folder / "libcuda.so.1"
    lines = [f"int {name}(void) {{ return {_NO_DEVICE}; }}" for name in _DRIVER]
    source.write_text("\n".join(lines) + "\n")
    shared = ("-shared", "-fPIC", "-Wl,-soname,libcuda.so.1")
    subprocess.run(["gcc", *shared, "-o", library, source], check=True)
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def _start_groups() -> None:
    import torch.distributed
    from sglang.multimodal_gen.runtime.distributed import parallel_state

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", **address)

    def on_gloo(start: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            kwargs.pop("device_id", None)
            return start(*args, **{**kwargs, "backend": "gloo"})

        return call

    with contextlib.ExitStack() as undo:
        for name in ("init_process_group", "new_group"):
            replaced = on_gloo(getattr(torch.distributed, name))
            setattr(torch.distributed, name, replaced)
        for name in ("arange", "empty", "full", "ones", "tensor", "zeros"):
            undo.enter_context(_on_the_host(name))
        parallel_state.maybe_init_distributed_environment_and_model_parallel(
            tp_size=1, sp_size=1, distributed_init_method=f"tcp://127.0.0.1:{port}"
        )


@contextlib.contextmanager
def _on_the_host(name: str) -> Iterator[None]:
    """Groups exchange small real tensors when they start."""
    make = getattr(torch, name)

    def on_host(*args: Any, **kwargs: Any) -> Tensor:
        if "cuda" in str(kwargs.get("device")):
            kwargs["device"] = "cpu"
        return make(*args, **kwargs)

    setattr(torch, name, on_host)
    yield
    setattr(torch, name, make)


@torch.library.custom_op("pretended::flash_attention", mutates_args=())
def _flash_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raise AssertionError("nothing is computed")


@_flash_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise TypeError(f"flash attention takes no {q.dtype}")
    return q.new_empty(*q.shape[:-1], v.shape[-1])


@torch.library.custom_op("pretended::torch_attention", mutates_args=())
def _torch_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    raise AssertionError("nothing is computed")


@_torch_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return q.new_empty(*q.shape[:-1], v.shape[-1])


@torch.library.custom_op("pretended::fp8_linear", mutates_args=())
def _fp8_linear(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None
) -> Tensor:
    raise AssertionError("nothing is computed")


@_fp8_linear.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _replace_kernels() -> None:
    attention = "sglang.multimodal_gen.runtime.layers.attention"
    layer: Any = import_module(f"{attention}.layer")
    backend: Any = import_module(f"{attention}.backends.flash_attn")
    fp8: Any = import_module("sglang_ext_gen.kernels.fp8_gemm_triton")

    def flash(q: Tensor, k: Tensor, v: Tensor, *_: Any, **kwargs: Any) -> Any:
        out = torch.ops.pretended.flash_attention(q, k, v)
        if kwargs.get("return_softmax_lse"):
            return out, q.new_empty(q.shape[:-1], dtype=torch.float32)
        return out

    def torch_attention(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, *_: Any, **__: Any
    ) -> Tensor:
        return torch.ops.pretended.torch_attention(q, k, v, attn_mask)

    torch.nn.functional.scaled_dot_product_attention = torch_attention
    for module in (layer, backend):
        module.flash_attn_varlen_func = flash
    backend.flash_attn_varlen_func_op = flash
    fp8.fp8_linear_triton = lambda x, weight, scale, bias=None: (
        torch.ops.pretended.fp8_linear(x, weight, scale, bias)
    )
