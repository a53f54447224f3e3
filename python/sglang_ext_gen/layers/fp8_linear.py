# SPDX-License-Identifier: Apache-2.0
"""Linears whose weights are stored as FP8 with one scale per output row.

``FP8Linear`` is replicated; ``ColumnParallelFP8Linear``,
``MergedColumnParallelFP8Linear`` and ``RowParallelFP8Linear`` are split over
SGLang's tensor-parallel group. With ``is_quantized=False`` the same classes hold
an ordinary weight, so FP8 and bf16 checkpoints share one module tree.

What FP8 weights become is chosen once, after loading, by
``finalize_fp8_linears``:

- ``resident``: they stay FP8 and are dequantised inside each GEMM (default).
- ``expanded``: dequantised once to the compute dtype; twice the memory.
- ``w8a8``: they stay FP8 and SGLang's FP8 GEMM quantises the activations too;
  fastest on many rows, but the numbers differ from the released model's.

Deviation from stock SGLang, which expands FP8 weights at first use whenever
memory allows: here only on request.

Parameters: ``weight`` [out, in], ``weight_scale`` [out] float32 or None, ``bias``
[out] or None. Parameters that are split carry two attributes for the loader:
``tp_dim`` (the dimension) and ``tp_sections`` (sizes of the merged matrices along
it in the full tensor, each split on its own). The others are replicated.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglang_ext_gen.errors import ConfigError
from sglang_ext_gen.kernels.fp8_gemm import (
    FP8_CAPABILITY,
    FP8_DTYPE,
    dequantize_rowwise,
    fp8_linear,
)

logger = logging.getLogger(__name__)

FP8_MODES = ("resident", "expanded", "w8a8")
COMPUTE_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def tensor_parallel() -> tuple[int, int]:
    """``(rank, size)`` in SGLang's tensor-parallel group; (0, 1) without one."""
    # Where this module was never imported, nobody can have made a group; importing
    # it here would cost several seconds.
    state = sys.modules.get("sglang.multimodal_gen.runtime.distributed.parallel_state")
    if state is None or not state.model_parallel_is_initialized():
        return 0, 1
    return state.get_tp_rank(), state.get_tp_world_size()


class FP8Linear(nn.Module):
    """``y = x @ weight.T + bias``, the same on every rank.

    Args:
        in_features: K of the whole matrix.
        out_features: N of the whole matrix.
        bias: Whether there is one.
        is_quantized: FP8 weight with a scale; else a weight of ``dtype``.
        dtype: Of the bias and of a weight that is not quantised. Default: torch's
            default dtype.

    Values are left uninitialised: the loader proves that it writes each of them.
    """

    weight: nn.Parameter
    weight_scale: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        is_quantized: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self._matmul: Callable[..., Tensor] = fp8_linear
        weight_dtype = FP8_DTYPE if is_quantized else dtype
        self.weight = _uninitialized(out_features, in_features, dtype=weight_dtype)
        self.register_parameter("weight_scale", None)
        self.register_parameter("bias", None)
        if is_quantized:
            self.weight_scale = _uninitialized(out_features, dtype=torch.float32)
        if bias:
            self.bias = _uninitialized(out_features, dtype=dtype)

    @property
    def is_quantized(self) -> bool:
        """Whether the weight is FP8 now (not after ``expanded``)."""
        return self.weight_scale is not None

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out] in the dtype of ``x``."""
        return self._multiply(x, self.bias)

    def finalize(self, mode: str, compute_dtype: torch.dtype) -> None:
        """Take up ``mode``; see ``finalize_fp8_linears``, which checks it."""
        if self.weight_scale is None:
            return
        if mode == "expanded":
            full = dequantize_rowwise(self.weight, self.weight_scale, compute_dtype)
            self.weight = nn.Parameter(full, requires_grad=False)
            self.weight_scale = None
        elif mode == "w8a8":
            self._matmul = _w8a8_linear
        if mode != "resident" and self.bias is not None:
            self.bias.data = self.bias.data.to(compute_dtype)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``: sizes of this rank's part."""
        out_features, in_features = self.weight.shape
        return f"{in_features}, {out_features}, dtype={self.weight.dtype}"

    def _multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.weight_scale is None:
            return F.linear(x, self.weight, bias)
        return self._matmul(x, self.weight, self.weight_scale, bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Serve ``.to()`` and its like without ever casting FP8 weights or scales.

        ``Module.to(dtype)``, which SGLang's loaders and residency managers call,
        would cast both: the weight without its scale would be wrong, silently. They
        follow to other devices and keep their dtype; the bias follows a cast.
        """
        fixed = () if self.weight_scale is None else (self.weight, self.weight_scale)

        def keep_dtype(tensor: Tensor) -> Tensor:
            if all(tensor is not other for other in fixed):
                return fn(tensor)
            # An empty probe tells what ``fn`` does without a second copy.
            probe = fn(torch.empty(0, dtype=tensor.dtype, device=tensor.device))
            if probe.dtype == tensor.dtype:
                return fn(tensor)
            return tensor.to(probe.device)

        return super()._apply(keep_dtype, recurse)


class MergedColumnParallelFP8Linear(FP8Linear):
    """Several matrices side by side, each split by output features.

    A rank holds its share of every matrix (for q, k, v: its heads of each), whole
    rows with their scales, and returns the shares side by side:
    [..., in] -> [..., sum(local_output_sizes)].

    Args:
        output_sizes: Output features of each matrix.
        tp_size: Ranks that share the linear. Default: SGLang's group; 1 replicates.

    Raises:
        ConfigError: The ranks cannot share each matrix equally.
    """

    def __init__(
        self,
        in_features: int,
        output_sizes: Sequence[int],
        bias: bool = True,
        *,
        is_quantized: bool = True,
        dtype: torch.dtype | None = None,
        tp_size: int | None = None,
    ) -> None:
        tp_size = tensor_parallel()[1] if tp_size is None else tp_size
        local_output_sizes = tuple(_share(n, tp_size) for n in output_sizes)
        super().__init__(
            in_features,
            sum(local_output_sizes),
            bias,
            is_quantized=is_quantized,
            dtype=dtype,
        )
        self.out_features = sum(output_sizes)
        self.local_output_sizes = local_output_sizes
        for param in self.parameters():
            _mark_split(param, 0, output_sizes)


class ColumnParallelFP8Linear(MergedColumnParallelFP8Linear):
    """One matrix split by output features: [..., in] -> [..., out / tp_size]."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        is_quantized: bool = True,
        dtype: torch.dtype | None = None,
        tp_size: int | None = None,
    ) -> None:
        super().__init__(
            in_features,
            (out_features,),
            bias,
            is_quantized=is_quantized,
            dtype=dtype,
            tp_size=tp_size,
        )


class RowParallelFP8Linear(FP8Linear):
    """Split by input features: [..., in / tp_size] -> [..., out] on every rank.

    Each rank holds a part of every row, so the scale of the whole row serves all
    and is replicated, as is the bias.

    Args:
        tp_size: Ranks that share the linear. Default: SGLang's group; 1 replicates.

    Raises:
        ConfigError: The ranks cannot share the input features equally.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        is_quantized: bool = True,
        dtype: torch.dtype | None = None,
        tp_size: int | None = None,
    ) -> None:
        tp_size = tensor_parallel()[1] if tp_size is None else tp_size
        super().__init__(
            _share(in_features, tp_size),
            out_features,
            bias,
            is_quantized=is_quantized,
            dtype=dtype,
        )
        self.in_features = in_features
        self.tp_size = tp_size
        _mark_split(self.weight, 1, (in_features,))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in / tp_size] -> [..., out], summed over the ranks."""
        if self.tp_size == 1:
            return super().forward(x)
        total = all_reduce(self._multiply(x, None))
        return total if self.bias is None else total + self.bias.to(total.dtype)


@dataclass(frozen=True)
class FP8Report:
    """What ``finalize_fp8_linears`` did. Bytes are of weights, scales and biases."""

    mode: str
    num_fp8: int
    num_plain: int
    bytes_resident: int
    bytes_bf16: int

    def __str__(self) -> str:
        mib = 2**20
        return (
            f"{self.num_fp8} FP8 linears, mode {self.mode}, and {self.num_plain} "
            f"plain ones: {self.bytes_resident / mib:.1f} MiB in memory, "
            f"{self.bytes_bf16 / mib:.1f} MiB if all were bf16"
        )


def finalize_fp8_linears(
    module: nn.Module, mode: str, compute_dtype: torch.dtype
) -> FP8Report:
    """Decide what the loaded FP8 weights inside ``module`` become, and log it.

    Args:
        module: Any module; all ``FP8Linear`` in it are counted, those that are
            quantised take up ``mode``.
        mode: One of ``FP8_MODES``.
        compute_dtype: Dtype of the activations that the linears will see.

    Raises:
        ConfigError: As ``check_fp8_mode``; or ``w8a8`` without any FP8 weight.
    """
    check_fp8_mode(mode, compute_dtype)
    name = type(module).__name__
    linears = [m for m in module.modules() if isinstance(m, FP8Linear)]
    num_fp8 = sum(linear.is_quantized for linear in linears)
    if mode == "w8a8" and num_fp8 == 0:
        raise ConfigError(
            f"FP8 mode 'w8a8' was asked for, but {name} has no FP8 weights; use "
            "'resident' or an FP8 checkpoint"
        )
    for linear in linears:
        linear.finalize(mode, compute_dtype)
    params = [param for linear in linears for param in linear.parameters()]
    unscaled = [p for linear in linears for p in (linear.weight, linear.bias)]
    report = FP8Report(
        mode=mode,
        num_fp8=num_fp8,
        num_plain=len(linears) - num_fp8,
        bytes_resident=sum(param.nbytes for param in params),
        bytes_bf16=sum(2 * param.numel() for param in unscaled if param is not None),
    )
    logger.info("%s: %s", name, report)
    return report


def check_fp8_mode(mode: str, compute_dtype: torch.dtype) -> None:
    """Refuse a mode that cannot work here; cheap, so call it before loading.

    Raises:
        ConfigError: Unknown mode or dtype, or ``w8a8`` without what it needs.
    """
    if mode not in FP8_MODES:
        raise ConfigError(f"FP8 mode {mode!r} is unknown; use one of {FP8_MODES}")
    if compute_dtype not in COMPUTE_DTYPES:
        allowed = ", ".join(str(dtype) for dtype in COMPUTE_DTYPES)
        raise ConfigError(
            f"FP8 linears cannot compute in {compute_dtype}; use one of {allowed}"
        )
    if mode == "w8a8":
        _check_w8a8(compute_dtype)


def all_reduce(partial: Tensor) -> Tensor:
    """Sum over SGLang's tensor-parallel group."""
    from sglang.multimodal_gen.runtime.distributed import (
        tensor_model_parallel_all_reduce,
    )

    return tensor_model_parallel_all_reduce(partial)


def _check_w8a8(compute_dtype: torch.dtype) -> None:
    instead = "use mode 'resident' or 'expanded'"
    if compute_dtype == torch.float32:
        raise ConfigError(
            "FP8 mode 'w8a8' returns bfloat16 or float16, but the compute dtype is "
            f"float32; {instead}"
        )
    if not torch.cuda.is_available():
        raise ConfigError(
            "FP8 mode 'w8a8' needs SGLang's FP8 GEMM, which runs on CUDA only, and "
            f"no CUDA device is visible; {instead}"
        )
    capability = torch.cuda.get_device_capability()
    if capability < FP8_CAPABILITY:
        raise ConfigError(
            "FP8 mode 'w8a8' needs FP8 tensor cores (CUDA capability 8.9 or newer); "
            f"{torch.cuda.get_device_name()} has {capability}; {instead}"
        )


def _w8a8_linear(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None
) -> Tensor:
    """SGLang's FP8 GEMM: quantises each row of ``x`` to FP8 as it goes."""
    from sglang.srt.layers.quantization.fp8_utils import apply_fp8_linear

    return apply_fp8_linear(x.contiguous(), weight.t(), weight_scale, bias=bias)


def _uninitialized(*shape: int, dtype: torch.dtype | None) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)


def _share(features: int, tp_size: int) -> int:
    if features % tp_size:
        raise ConfigError(
            f"{features} features cannot be divided over {tp_size} tensor-parallel "
            "ranks; choose another --tp-size"
        )
    return features // tp_size


def _mark_split(param: nn.Parameter, dim: int, sections: Sequence[int]) -> None:
    """Tell the loader how ``param`` is split."""
    vars(param).update(tp_dim=dim, tp_sections=tuple(sections))
