# SPDX-License-Identifier: Apache-2.0
"""The ledger of hooks: every stock symbol whose behaviour this package changes.

Nothing is patched anywhere else. Each row says why the hook is needed and when it can
go. The hooks run through SGLang's own ``HookRegistry``; for a model that is not ours
each of them returns what stock returns.
"""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sglang_ext_gen.errors import ConfigError

if TYPE_CHECKING:
    from sglang.srt.plugins.hook_registry import HookRegistry

Runtime = Literal["diffusion", "cli", "srt", "srt_cpu"]


@dataclass(frozen=True)
class Hook:
    """One changed symbol.

    Args:
        target: Dotted name of the stock function or method.
        kind: How the replacement meets the original, in ``HookType``'s words.
        replacement: ``"module:function"``.
        runtime: ``diffusion`` hooks are applied in every process of the diffusion
            runtime, ``cli`` hooks in the process of ``sglang serve`` before it knows
            which runtime a model needs, ``srt`` hooks in every process of the language
            model runtime, ``srt_cpu`` hooks where one of our models runs on CPU.
        device: ``cpu`` hooks are applied only where the diffusion runtime uses the
            CPU.
        reason: Why stock's behaviour is not enough.
        remove_when: What would make the hook unnecessary.
    """

    target: str
    kind: Literal["before", "after", "around", "replace"]
    replacement: str
    runtime: Runtime
    reason: str
    remove_when: str
    device: Literal["any", "cpu"] = "any"


_ENTRYPOINTS = "sglang.multimodal_gen.runtime.entrypoints"
_LAYERNORM = "sglang.multimodal_gen.runtime.layers.layernorm"

HOOKS: tuple[Hook, ...] = (
    Hook(
        target="sglang.multimodal_gen.registry.get_model_info",
        kind="around",
        replacement="sglang_ext_gen.plugin.resolution:get_model_info",
        runtime="diffusion",
        reason="A checkpoint is recognised by its content: stock goes by the name of "
        "the directory, and sends names with -4bit, -awq or -gptq to diffusers.",
        remove_when="register_pipeline takes a detector that sees the directory and "
        "decides both the pipeline class and its configs.",
    ),
    Hook(
        target="sglang.multimodal_gen.registry.get_non_diffusers_pipeline_name",
        kind="around",
        replacement="sglang_ext_gen.plugin.resolution:get_non_diffusers_pipeline_name",
        runtime="diffusion",
        reason="The command line asks this function which pipeline config adds its "
        "flags (--fp8-mode); stock answers by name only.",
        remove_when="As for get_model_info.",
    ),
    Hook(
        target="sglang.multimodal_gen.configs.pipeline_configs.base.PipelineConfig."
        "from_kwargs",
        kind="around",
        replacement="sglang_ext_gen.plugin.resolution:pipeline_config_from_kwargs",
        runtime="diffusion",
        reason="Pipeline and config are decided together: stock's config that a user "
        "gives, or stock's pipeline that it names, would meet our half of the pair.",
        remove_when="get_model_info decides with both in sight.",
    ),
    Hook(
        target=f"{_ENTRYPOINTS}.diffusion_generator.DiffGenerator.generate",
        kind="around",
        replacement="sglang_ext_gen.plugin.generate:generate",
        runtime="diffusion",
        reason="Stock logs a failure and returns None, draws a missing prompt as a "
        "blank, and runs a list of prompts one after the other.",
        remove_when="generate raises the worker's error and groups its prompts.",
    ),
    Hook(
        target=f"{_ENTRYPOINTS}.diffusion_generator.DiffGenerator.set_lora",
        kind="around",
        replacement="sglang_ext_gen.diffusion.lora:set_lora",
        runtime="diffusion",
        reason="Stock returns nothing: whether an adapter reached a layer is not said.",
        remove_when="set_lora returns what it applied.",
    ),
    Hook(
        target=f"{_ENTRYPOINTS}.openai.common_api._handle_lora_request",
        kind="around",
        replacement="sglang_ext_gen.diffusion.lora:handle_lora_request",
        runtime="diffusion",
        reason="As above, and an adapter that cannot be used is answered with 500.",
        remove_when="/v1/set_lora answers with what was applied, and 400 for an "
        "adapter that does not fit.",
    ),
    Hook(
        target="sglang.multimodal_gen.runtime.managers.scheduler.Scheduler."
        "_execute_generation_grouped",
        kind="around",
        replacement="sglang_ext_gen.diffusion.group_failures:"
        "execute_generation_grouped",
        runtime="diffusion",
        reason="Requests of several users run as one group, and where one of them "
        "fails stock fails all.",
        remove_when="A failed group is run again one by one.",
    ),
    Hook(
        target=f"{_ENTRYPOINTS}.http_server.create_app",
        kind="after",
        replacement="sglang_ext_gen.http.middleware:install",
        runtime="diffusion",
        reason="Stock clamps or ignores fields of a request that it does not "
        "understand, lets a client name paths on the server, and answers failures in "
        "four formats.",
        remove_when="create_app takes middleware, and requests are checked by the "
        "model's own table of fields.",
    ),
    Hook(
        target="sglang.cli.utils.get_is_diffusion_model",
        kind="around",
        replacement="sglang_ext_gen.plugin.resolution:get_is_diffusion_model",
        runtime="cli",
        reason="sglang serve chooses the runtime before it loads diffusion plugins.",
        remove_when="sglang serve loads diffusion plugins before it chooses.",
    ),
    Hook(
        target="sglang.srt.server_args.prepare_server_args",
        kind="around",
        replacement="sglang_ext_gen.plugin.resolution:prepare_server_args",
        runtime="cli",
        reason="Registering our language models takes seconds, so sglang serve does it "
        "only when it is about to serve one.",
        remove_when="A config can be registered without importing SGLang's models.",
    ),
    Hook(
        target="sglang.srt.model_loader.utils.get_model_architecture",
        kind="around",
        replacement="sglang_ext_gen.plugin.language_models:get_model_architecture",
        runtime="srt",
        reason="Our models are registered when one is about to be used: registering at "
        "plugin time would import every model of SGLang into every process.",
        remove_when="ModelRegistry takes lazy entries.",
    ),
    Hook(
        target="sglang.srt.server_args.ServerArgs.resolve_once",
        kind="around",
        replacement="sglang_ext_gen.plugin.language_models:resolve_once",
        runtime="srt",
        reason="A checkpoint without a config.json that SGLang can read (Lance) is "
        "opened through a folder of links.",
        remove_when="SGLang takes a config parser by the content of a folder.",
    ),
    Hook(
        target="sglang.srt.configs.update_config.adjust_config_with_unaligned_cpu_tp",
        kind="around",
        replacement="sglang_ext_gen.plugin.language_models:keep_sizes",
        runtime="srt",
        reason="On a CPU stock changes sizes of the config to multiples of 32 before "
        "the model is built, for kernels that the CPU reference platform does not use; "
        "our weights are proved against the config.",
        remove_when="A platform says whether its kernels need padding.",
    ),
    Hook(
        target="sglang.srt.layers.multi_gate.multi_gate_triton_kernel",
        kind="around",
        replacement="sglang_ext_gen.models.ming_omni.thinker.routing:multi_gate",
        runtime="srt_cpu",
        reason="The three routers of Ming have a Triton kernel only.",
        remove_when="multi_gate has a torch form.",
    ),
    Hook(
        target="sglang.kernels.ops.attention.rotary_triton."
        "triton_ernie45_rope_fused_inplace",
        kind="around",
        replacement="sglang_ext_gen.models.ming_omni.thinker.rotary:rotate_in_place",
        runtime="srt_cpu",
        reason="The three-axis rotation of Ming has a Triton kernel only.",
        remove_when="BailingMRotaryEmbedding has a torch form.",
    ),
    Hook(
        target="sglang.srt.layers.attention.torch_native_backend."
        "TorchNativeAttnBackend._run_sdpa_forward_decode",
        kind="around",
        replacement="sglang_ext_gen.platforms.cpu_attention:decode_together",
        runtime="srt_cpu",
        reason="Plain torch attention decodes one request after the other, so that a "
        "batch of 32 is hardly faster than 32 requests.",
        remove_when="torch_native attention decodes a batch in one call.",
    ),
    Hook(
        target=f"{_LAYERNORM}._NormScaleShift.forward_cpu",
        kind="around",
        replacement="sglang_ext_gen.platforms.cpu_kernels:norm_scale_shift",
        runtime="diffusion",
        device="cpu",
        reason="The published x86 wheel lacks fused_norm_scale_shift_cpu, so stock's "
        "Qwen-Image fails at its first step on a CPU.",
        remove_when="The wheel has the kernel, or the layer goes on without it.",
    ),
    Hook(
        target=f"{_LAYERNORM}._ScaleResidualNormScaleShift.forward_cpu",
        kind="around",
        replacement="sglang_ext_gen.platforms.cpu_kernels:"
        "scale_residual_norm_scale_shift",
        runtime="diffusion",
        device="cpu",
        reason="As above, for fused_scale_residual_norm_scale_shift_cpu.",
        remove_when="As above.",
    ),
    Hook(
        target="sglang.multimodal_gen.runtime.models.encoders.qwen_vl_rope."
        "build_qwen_vl_text_rope",
        kind="around",
        replacement="sglang_ext_gen.platforms.cpu_kernels:build_qwen_vl_text_rope",
        runtime="diffusion",
        device="cpu",
        reason="The class that stock builds imports a kernel of vLLM where there is "
        "no accelerator; the text encoders need only its plain arithmetic.",
        remove_when="MRotaryEmbedding can be constructed on a CPU without vLLM.",
    ),
)

# The row that is enough to refuse our models on an SGLang release we do not support.
RESOLVER = HOOKS[0]


def register_hooks(runtime: Runtime, rows: tuple[Hook, ...] = HOOKS) -> None:
    """Hand the rows of one runtime to SGLang, which applies them after all plugins.

    Raises:
        ConfigError: A target does not exist in this SGLang release.
    """
    from sglang.srt.plugins.hook_registry import HookType

    registry = _registry(runtime)
    for hook in rows:
        if hook.runtime != runtime or not _is_wanted_here(hook):
            continue
        _keep_cache_methods(_find(hook.target))
        replacement = pkgutil.resolve_name(hook.replacement)
        registry.register(hook.target, replacement, HookType(hook.kind))


def apply_hooks(runtime: Runtime) -> None:
    """Apply what is registered and not applied yet, where SGLang will not do it."""
    _registry(runtime).apply_hooks()


def applied_hooks(runtime: Runtime) -> dict[str, bool]:
    """Target of each row of one runtime -> whether it is in force in this process."""
    patched = _registry(runtime)._patched
    targets = (
        hook.target
        for hook in HOOKS
        if hook.runtime == runtime and _is_wanted_here(hook)
    )
    return {target: target in patched for target in targets}


def _is_wanted_here(hook: Hook) -> bool:
    if hook.device == "any":
        return True
    from sglang.multimodal_gen.runtime.platforms import current_platform

    return current_platform.is_cpu()


def _registry(runtime: Runtime) -> "type[HookRegistry]":
    # The two runtimes keep separate registries.
    if runtime == "diffusion":
        from sglang.multimodal_gen.runtime.platforms.plugins import HookRegistry
    else:
        from sglang.srt.plugins.hook_registry import HookRegistry
    return HookRegistry


def _find(target: str) -> Any:
    try:
        return pkgutil.resolve_name(target)
    except (AttributeError, ImportError) as error:
        raise ConfigError(
            f"this SGLang release has no {target}, which sglang_ext_gen hooks: {error}"
        ) from error


def _keep_cache_methods(function: Callable[..., Any]) -> None:
    # HookRegistry wraps with functools.wraps, which copies what is in __dict__. The
    # methods of an lru_cache are not, and register_pipeline of any later plugin
    # calls get_model_info.cache_clear().
    for name in ("cache_clear", "cache_info"):
        if hasattr(function, name):
            setattr(function, name, getattr(function, name))
