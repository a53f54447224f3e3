# SPDX-License-Identifier: Apache-2.0
"""Two sides of a benchmark of denoising: SGLang with this package, and stock SGLang.

Which of the two it is depends on the environment alone (``SGLANG_PLUGINS``, or
``SGLANG_EXT_GEN_DISABLE``). SGLang's own worker runs in this process, without its
scheduler and HTTP server, so that times and memory are those of the model.
"""

import importlib.util
import socket
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from denoise_protocol import (
    LoadingMemory,
    Message,
    StepClock,
    peak_rss_mib,
    serve,
)
from sglang.multimodal_gen.configs.sample.sampling_params import SamplingParams
from sglang.multimodal_gen.runtime.entrypoints.utils import (
    expand_request_outputs,
    prepare_request,
)
from sglang.multimodal_gen.runtime.managers.gpu_worker import GPUWorker
from sglang.multimodal_gen.runtime.platforms.plugins import apply_plugin_hooks
from sglang.multimodal_gen.runtime.server_args import ServerArgs, set_global_server_args


def load(options: Message) -> tuple[Message, Callable[[Message], Message]]:
    """Load the checkpoint.

    Args:
        options: ``model``, ``precision`` ("bf16" or "fp32"), ``load_options`` (fields
            of the pipeline config) and ``transformers`` (components, the conditional
            one first).
    """
    rss_before = peak_rss_mib()
    let_stock_run_without_cuda()
    apply_plugin_hooks()
    precision = options["precision"]
    server_args = ServerArgs.from_kwargs(
        model_path=options["model"],
        backend="sglang",
        master_port=free_port(),
        dit_precision=precision,
        vae_precision=precision,
        text_encoder_precisions=(precision,),
        **options["load_options"],
    )
    set_global_server_args(server_args)
    memory = LoadingMemory()
    worker = GPUWorker(0, 0, server_args.master_port, server_args)
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else bool
    loading = memory.finish()
    components = options["transformers"]
    clock = StepClock(worker.pipeline.get_module(components[0]), synchronize)

    def answer(request: Message) -> Message:
        answer = {**run(worker, server_args, request), **clock.take()}
        return {**answer, **weight_bytes(worker.pipeline, components)}

    pipeline = type(worker.pipeline)
    description = {
        "pipeline": f"{pipeline.__module__}.{pipeline.__name__}",
        "rss_before_loading_mib": rss_before,
        "loading": loading,
    }
    return description, answer


def run(worker: Any, server_args: ServerArgs, request: Message) -> Message:
    """Answer one request and report what it cost."""
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    picture = Path(request["picture"])
    params = SamplingParams.from_user_sampling_params_args(
        server_args.model_path,
        server_args=server_args,
        **request["fields"],
        generator_device="cpu",
        output_path=str(picture.parent),
        output_file_name=picture.name,
        return_file_paths_only=True,
    )
    batch = prepare_request(server_args, params)
    output = worker.execute_forward(expand_request_outputs(batch))
    if output.error:
        raise RuntimeError(output.error)
    has_cuda = torch.cuda.is_available()
    return {
        "peak_rss_mib": peak_rss_mib(),
        "peak_cuda_mib": torch.cuda.max_memory_allocated() / 2**20 if has_cuda else 0,
        "pictures": output.output_file_paths,
    }


def weight_bytes(pipeline: Any, components: list[str]) -> Message:
    """Bytes of the transformers' parameters, now and if all were bf16."""
    params = [
        (name, param)
        for component in components
        for name, param in pipeline.get_module(component).named_parameters()
    ]
    return {
        "dit_bytes": sum(param.nbytes for _, param in params),
        "dit_bf16_bytes": sum(
            2 * param.numel()
            for name, param in params
            if not name.endswith("weight_scale")
        ),
    }


def let_stock_run_without_cuda() -> None:
    """Give stock's text encoder the vLLM operator that it imports where CUDA is not.

    It imports it and never calls it; where vLLM is not installed the stock pipeline
    fails at its first request, and there would be nothing to compare with. Text
    encoding is not timed.
    """
    if torch.cuda.is_available() or importlib.util.find_spec("vllm") is not None:
        return
    operators = types.ModuleType("vllm._custom_ops")
    vars(operators)["rotary_embedding"] = None
    sys.modules |= {"vllm": types.ModuleType("vllm"), operators.__name__: operators}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    serve(load)
