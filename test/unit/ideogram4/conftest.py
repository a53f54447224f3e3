# SPDX-License-Identifier: Apache-2.0
"""SGLang's single-process runtime, and the real pipeline built in this process."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from conftest import Golden
from server.servers import free_ports

if TYPE_CHECKING:
    from sglang_ext_gen.models.ideogram4.pipeline import Ideogram4FP8Pipeline


@dataclass(frozen=True)
class LoadedPipeline:
    """A pipeline with the server arguments that it was built from."""

    pipeline: "Ideogram4FP8Pipeline"
    server_args: Any

    def run(self, prompts: list[str], seeds: list[int], **fields: Any) -> list[Any]:
        """Outputs of 256 x 256 requests that run as one group."""
        import torch
        from sglang.multimodal_gen.configs.sample.sampling_params import SamplingParams
        from sglang.multimodal_gen.runtime.pipelines_core.schedule_batch import Req

        fields = {"height": 256, "width": 256, **fields}
        requests = [
            Req(
                sampling_params=SamplingParams.from_user_sampling_params_args(
                    self.server_args.model_path,
                    server_args=self.server_args,
                    prompt=prompt,
                    seed=seed,
                    **fields,
                )
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        with torch.inference_mode():
            return self.pipeline.forward_batch(requests, self.server_args)


@pytest.fixture(scope="package")
def load_pipeline(ideogram4_golden: Golden) -> Iterator[Callable[..., LoadedPipeline]]:
    """Builds the golden checkpoint's pipeline: ``load_pipeline("fp32", **options)``."""
    import torch
    from sglang.multimodal_gen.runtime.distributed.parallel_state import (
        cleanup_dist_env_and_memory,
        maybe_init_distributed_environment_and_model_parallel,
    )
    from sglang.multimodal_gen.runtime.platforms.plugins import apply_plugin_hooks
    from sglang.multimodal_gen.runtime.server_args import (
        ServerArgs,
        set_global_server_args,
    )

    from sglang_ext_gen.models.ideogram4.pipeline import Ideogram4FP8Pipeline

    def load(precision: str, **options: Any) -> LoadedPipeline:
        defaults = {
            "model_path": str(ideogram4_golden.checkpoint),
            "dit_precision": precision,
            "vae_precision": precision,
            "text_encoder_precisions": (precision,),
        }
        server_args = ServerArgs.from_kwargs(**{**defaults, **options})
        set_global_server_args(server_args)
        pipeline = Ideogram4FP8Pipeline(server_args.model_path, server_args)
        return LoadedPipeline(pipeline, server_args)

    apply_plugin_hooks()
    torch.set_num_threads(1)
    _, _, port = free_ports()
    maybe_init_distributed_environment_and_model_parallel(
        tp_size=1, sp_size=1, distributed_init_method=f"tcp://127.0.0.1:{port}"
    )
    yield load
    cleanup_dist_env_and_memory()


@pytest.fixture(scope="package")
def float32_pipeline(load_pipeline: Callable[..., LoadedPipeline]) -> LoadedPipeline:
    """The golden checkpoint in float32 on the CPU."""
    return load_pipeline("fp32")
