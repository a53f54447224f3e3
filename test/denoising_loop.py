# SPDX-License-Identifier: Apache-2.0
"""Looking into stock's denoising loop: what it calls, compiles and reuses."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

Call = tuple["nn.Module", dict[str, Any]]


def first_calls(modules: Sequence["nn.Module"], run: Callable[[], Any]) -> list[Call]:
    """Each module that ``run`` calls, with the inputs of the first call."""
    calls: dict[Any, dict[str, Any]] = {}

    def note(module: Any, args: Any, inputs: dict[str, Any]) -> None:
        calls.setdefault(module, inputs)

    hooks = [
        module.register_forward_pre_hook(note, with_kwargs=True) for module in modules
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return list(calls.items())


def call(module: Any, inputs: dict[str, Any]) -> "Tensor":
    """The output of one call, outside a request."""
    import torch
    from sglang.multimodal_gen.runtime.managers.forward_context import (
        set_forward_context,
    )

    with torch.inference_mode(), set_forward_context(0, None):
        return module(**inputs)


@contextmanager
def counted_graphs() -> Iterator[Any]:
    """torch.compile from a clean slate; its counters."""
    import torch._dynamo
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    yield counters
    torch._dynamo.reset()


def steps_reused(log: str, cache: str) -> list[int]:
    """Steps that ``TeaCache`` or ``cache-dit`` spared, one number a transformer."""
    return [int(count) for count in re.findall(f"{cache} reused ([0-9]+) steps", log)]


def without_a_break(calls: Sequence[Call]) -> None:
    """Each module compiles to one graph, which computes the same."""
    import torch

    with counted_graphs() as counters:
        for module, inputs in calls:
            compiled = torch.compile(module, fullgraph=True, backend="eager")
            assert torch.equal(call(compiled, inputs), call(module, inputs))
        assert counters["stats"]["unique_graphs"] == len(calls)


def check_graph_inputs(module: Any, inputs: dict[str, Any]) -> tuple[Any, ...]:
    """The key of a CUDA graph of these inputs, which its runner can copy."""
    import torch
    from sglang.multimodal_gen.runtime.breakable_cuda_graph import runner

    key = runner._signature_kwargs(inputs)
    static: Any = runner._map_tensors(inputs, torch.clone)
    assert runner._signature_kwargs(static) == key
    assert torch.equal(call(module, static), call(module, inputs))
    return key
