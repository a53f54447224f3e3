# SPDX-License-Identifier: Apache-2.0
"""What ``set_lora`` answers for our families, in Python and over HTTP.

Stock answers that it worked. Here the answer lists the adapters with what the pipeline
knows of them (``list_loras``): path, matched layers, fingerprint. Over HTTP an adapter
that cannot be used is the client's error, not the server's.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from sglang.multimodal_gen.runtime.entrypoints.control_requests import SetLoraReq
from sglang.multimodal_gen.runtime.entrypoints.diffusion_generator import DiffGenerator
from sglang.multimodal_gen.runtime.entrypoints.openai.common_api import list_loras
from sglang.multimodal_gen.runtime.server_args import get_global_server_args
from starlette.exceptions import HTTPException

from sglang_ext_gen.diffusion.pipeline_config import FamilyPipelineConfig

# Fields of the request that a pipeline may name in an error.
FIELDS = ("lora_nickname", "lora_path", "lora_alpha", "strength", "target")


def set_lora(
    original: Callable[..., None],
    generator: DiffGenerator,
    lora_nickname: str | list[str],
    *args: Any,
    **kwargs: Any,
) -> list[dict[str, Any]] | None:
    """Around ``DiffGenerator.set_lora``: returns the adapters that are in force."""
    original(generator, lora_nickname, *args, **kwargs)
    if not isinstance(generator.server_args.pipeline_config, FamilyPipelineConfig):
        return None
    return _entries(generator.list_loras(), lora_nickname)


async def handle_lora_request(
    original: Callable[..., Awaitable[dict[str, Any]]],
    req: Any,
    success_msg: str,
    failure_msg: str,
) -> dict[str, Any]:
    """Around the function behind ``/v1/set_lora``: ``adapters`` in its answer."""
    server_args = get_global_server_args()
    is_ours = isinstance(server_args.pipeline_config, FamilyPipelineConfig)
    if not is_ours or not isinstance(req, SetLoraReq):
        return await original(req, success_msg, failure_msg)
    try:
        answer = await original(req, success_msg, failure_msg)
    except HTTPException as error:
        reason = str(error.detail).removeprefix(f"{failure_msg}: ")
        if reason.partition(":")[0] in FIELDS:
            raise HTTPException(400, reason) from error
        raise
    status = await list_loras()
    return {**answer, "adapters": _entries(status, req.lora_nickname)}


def _entries(status: Any, names: str | list[str]) -> list[dict[str, Any]]:
    """The loaded adapters of these names, in their order."""
    loaded = {entry["nickname"]: entry for entry in status["loaded_adapters"]}
    return [loaded[name] for name in ([names] if isinstance(names, str) else names)]
