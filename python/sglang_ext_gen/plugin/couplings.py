# SPDX-License-Identifier: Apache-2.0
"""What we rely on in SGLang and no import shows: words of its messages, flags,
variables, routes, fields of its answers, members of objects without a type. Of the
libraries that it brings, only private members.

Symbols, their members and parameters are not listed: ``stock_uses.py`` reads them from
the source. A test fails when a flag, a variable or a route of stock's has no row.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["field", "flag", "member", "message", "route", "variable"]


@dataclass(frozen=True)
class Coupling:
    """One of them.

    Args:
        kind: What it is, and so how it is checked: ``flag`` is known to the parser,
            ``route`` to the router, ``member`` to the class in ``found_in``; the
            others occur in the source of that module.
        name: Its name; where a source is searched, a regular expression.
        used_in: The file of this package that relies on it.
        found_in: ``"module"`` or ``"module:symbol"``.
        why: What would break.
    """

    kind: Kind
    name: str
    used_in: str
    found_in: str
    why: str


_GEN = "sglang.multimodal_gen.runtime"
_API = f"{_GEN}.entrypoints"
_SRT = "sglang.srt"
_SRT_SERVER = f"{_SRT}.entrypoints.http_server"
_CUDA_GRAPHS = f"{_SRT}.model_executor.runner.prefill_cuda_graph_runner"
_GEN_ARGS = f"{_GEN}.server_args:ServerArgs"
_SRT_ARGS = f"{_SRT}.server_args:ServerArgs"
_GENERATE = f"{_SRT}.managers.io_struct:GenerateReqInput"
_MING = "models/ming_omni"
_PIPELINE = f"{_GEN}.pipelines_core.composed_pipeline_base:ComposedPipelineBase"
_PROTOCOL = f"{_MING}/thinker_protocol.py"
_LANCE = "models/lance/thinker/model.py"


def _rows(
    kind: Kind, used_in: str, found_in: str, why: str, *names: str
) -> tuple[Coupling, ...]:
    return tuple(Coupling(kind, name, used_in, found_in, why) for name in names)


COUPLINGS: tuple[Coupling, ...] = (
    # Words in messages that we take apart, and names that stock asks for: no class of
    # stock's says anything of them.
    *_rows(
        *("message", "errors.py", f"{_GEN}.managers.gpu_worker"),
        "A refusal found in a worker would be answered as a failure.",
        r'"Error executing \{error_context\}: \{e\}"',
        r'error_context=f"request \{req.request_id\}"',
        r'error_context=f"grouped request \{req.request_id\}"',
    ),
    *_rows(
        *("message", "errors.py", f"{_GEN}.pipelines_core.executors.pipeline_executor"),
        "As above, for a group.",
        r'"Error executing grouped request \{batch.request_id\}: \{e\}"',
    ),
    *_rows(
        *("message", "diffusion/lora.py", f"{_API}.openai.common_api"),
        "An adapter that does not fit would be answered with 500.",
        r'detail=f"\{failure_msg\}: \{error_msg\}"',
    ),
    *_rows(
        *("message", "cli/running.py", f"{_GEN}.server_args.server_args"),
        "An unknown flag would be told with the word error twice.",
        r'SystemExit\(f"error: ',
    ),
    *_rows(
        *("message", _LANCE, f"{_SRT}.managers.tp_worker"),
        "The prefix cache would mix pictures up.",
        "pad_input_ids",
    ),
    *_rows(
        *("message", _LANCE, f"{_SRT}.managers.mm_utils"),
        "Pictures, videos and sound would not be encoded.",
        r"get_\{modality_id\}_feature",
    ),
    *_rows(
        *("message", _LANCE, _CUDA_GRAPHS),
        "Graphs would be captured without three-axis positions.",
        "is_mrope_enabled",
    ),
    *_rows(
        *("message", "models/ideogram4/pipeline_config.py", f"{_API}.cli.utils"),
        "The families' own flags would be unknown.",
        "add_pipeline_cli_args",
    ),
    *_rows(
        *("message", _PROTOCOL, f"{_SRT}.configs.model_config"),
        "The thinker would be served as a model of text.",
        "BailingMM2NativeForConditionalGeneration",
    ),
    *_rows(
        *("message", "gateway/launch.py", "sglang.cli.serve"),
        "Behind one port the generator could not be chosen.",
        "--model-type",
    ),
    # Fields of requests and answers.
    *_rows(
        *("field", "http/errors.py", f"{_SRT}.entrypoints.openai.serving_base"),
        "Errors of the language model runtime would not be restated.",
        'object="error"',
    ),
    *_rows(
        *("field", "http/errors.py", f"{_API}.http_server"),
        "Errors of the diffusion runtime would not be restated.",
        '"error": ',
    ),
    *_rows(
        *("field", "diffusion/lora.py", f"{_GEN}.pipelines_core.lora.pipeline"),
        "set_lora could not answer with what it applied.",
        '"loaded_adapters"',
        '"nickname"',
    ),
    *_rows(
        *("field", "cli/running.py", f"{_GEN}.utils.perf_logger"),
        "generate would report no seconds.",
        '"stages"',
        '"steps"',
    ),
    *_rows(
        *("field", f"{_MING}/thinker_client.py", _SRT_SERVER),
        "A thinker that runs elsewhere would not be recognised.",
        '"architectures"',
    ),
    *_rows(
        *("field", _PROTOCOL, f"{_SRT}.managers.tokenizer_manager"),
        "Query states would not come back.",
        "meta_info.*customized_info|customized_info.*meta_info",
    ),
    *_rows(
        *("field", f"{_MING}/thinker/processor.py", f"{_SRT}.managers.mm_utils"),
        "The vision tower would not know the shape of a picture.",
        '"image_grid_thw"',
    ),
    # Members of objects that have no type in our code.
    *_rows(
        *("member", f"{_MING}/thinker_client.py", _GENERATE),
        "The thinker would refuse the generator's questions.",
        *"text image_data sampling_params".split(),
    ),
    *_rows(
        *("member", "plugin/language_models.py", _SRT_ARGS),
        "Arguments would be prepared twice, the second time from the view.",
        "_resolution_finished",
    ),
    *_rows(
        *("member", "models/lance/thinker/view.py", _SRT_ARGS),
        "A Lance checkpoint could not be opened.",
        *(
            "model_path served_model_name chunked_prefill_size revision download_dir"
        ).split(),
    ),
    *_rows(
        *("member", f"{_MING}/thinker/model.py", f"{_SRT}.layers.moe.topk:TopKConfig"),
        "On a CPU the experts of Ming would be scaled wrongly.",
        "apply_routed_scaling_factor_on_output",
    ),
    *_rows(
        *("member", "plugin/hooks.py", f"{_GEN}.platforms.plugins:HookRegistry"),
        "doctor could not say which hooks are in force.",
        "_patched",
    ),
    *_rows(
        *("member", "plugin/hooks.py", f"{_SRT}.plugins.hook_registry:HookRegistry"),
        "doctor could not say which hooks are in force.",
        "_patched",
    ),
    *_rows(
        *("member", "http/middleware.py", "starlette.applications:Starlette"),
        "Requests would not be checked.",
        "user_middleware",
    ),
    *_rows(
        *("member", f"{_MING}/thinker/model.py", "transformers:PretrainedConfig"),
        "The thinker would not find its folder.",
        "_name_or_path",
    ),
    *_rows(
        *("member", f"{_MING}/byt5.py", "transformers:PretrainedConfig"),
        "The glyph encoder would choose its attention itself.",
        "_attn_implementation",
    ),
    *_rows(
        *("member", "diffusion/denoising.py"),
        "cache_dit.caching.cache_adapters.cache_adapter:CachedAdapter",
        "The steps that cache-dit spared could not be counted.",
        *("_context_manager", "_context_names"),
    ),
    # Environment variables.
    *_rows(
        *("variable", "cli/running.py", f"{_GEN}.utils.perf_logger"),
        "generate would report no seconds.",
        *(
            "SGLANG_DIFFUSION_STAGE_LOGGING SGLANG_DIFFUSION_SYNC_STAGE_PROFILING"
        ).split(),
    ),
    *_rows(
        *("variable", "gateway/launch.py", _SRT_SERVER),
        "Every health check would compute a token.",
        "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION",
    ),
    *_rows(
        *("variable", "plugin/early.py", f"{_SRT}.environ"),
        "A user could not leave this package out.",
        "SGLANG_PLUGINS",
    ),
    *_rows(
        *("variable", "platforms/cpu_reference.py", f"{_SRT}.platforms"),
        "The CPU platform could not be chosen.",
        *"SGLANG_PLATFORM SGLANG_USE_CPU_ENGINE".split(),
    ),
    # Flags of the two servers.
    *_rows(
        *("flag", "cli/running.py", _GEN_ARGS),
        "generate could not start.",
        *"--backend --master-port --model-path".split(),
    ),
    *_rows(
        *("flag", "request/flags.py", _GEN_ARGS),
        "--precision would be refused.",
        *(
            "--dit-precision --image-encoder-precision "
            "--text-encoder-precisions --vae-precision"
        ).split(),
    ),
    *_rows(
        *("flag", "gateway/launch.py", _GEN_ARGS),
        "The generator behind one port could not start.",
        *(
            "--master-port --scheduler-port --served-model-name "
            "--uvicorn-access-log-exclude-prefixes"
        ).split(),
    ),
    *_rows(
        *("flag", "process/child_server.py", _GEN_ARGS),
        "No server could be started as a child.",
        *"--host --port".split(),
    ),
    *_rows(
        *("flag", "process/child_server.py", _SRT_ARGS),
        "No server could be started as a child.",
        *"--host --port".split(),
    ),
    *_rows(
        *("flag", "gateway/arguments.py", _GEN_ARGS),
        "--generator-devices would be refused.",
        "--num-gpus",
    ),
    *_rows(
        *("flag", "gateway/launch.py", _SRT_ARGS),
        "The thinker behind one port could not start.",
        *(
            "--model-path --served-model-name --uvicorn-access-log-exclude-prefixes"
        ).split(),
    ),
    *_rows(
        *("flag", "gateway/arguments.py", _SRT_ARGS),
        "--precision and --thinker-tp would be refused.",
        *"--dtype --model --tp-size".split(),
    ),
    *_rows(
        *("flag", "checkpoint/needs.py", _GEN_ARGS),
        "doctor would advise a command that does not start.",
        *"--enable-cfg-parallel --num-gpus --tp-size --ulysses-degree".split(),
    ),
    *_rows(
        *("flag", f"{_MING}/thinker/needs.py", _SRT_ARGS),
        "doctor would advise a command that does not start.",
        *"--quantization --tp-size".split(),
    ),
    *_rows(
        *("flag", "cli/ask.py", _SRT_ARGS),
        "ask could not start.",
        *"--log-level --skip-server-warmup".split(),
    ),
    *_rows(
        *("flag", f"{_MING}/demo.py", _SRT_ARGS),
        "The demo of Ming could not start.",
        *"--context-length --max-total-tokens --mem-fraction-static".split(),
    ),
    # Routes that are served, asked or guarded.
    *_rows(
        *("route", f"{_MING}/thinker_client.py", f"{_SRT_SERVER}:app"),
        "The thinker would not answer the generator.",
        *"/generate /model_info".split(),
    ),
    *_rows(
        *("member", "plugin/early.py", "sglang.multimodal_gen.registry"),
        "Plain `sglang generate` would not find our models.",
        *"get_model_info get_non_diffusers_pipeline_name get_pipeline_class".split(),
        "get_pipeline_config_classes",
    ),
    *_rows(
        *("member", "diffusion/pipeline.py", _PIPELINE),
        "Components would be missing, or loaded for nothing.",
        *"_required_config_modules component_loaders".split(),
    ),
    *_rows(
        *("route", "gateway/app.py", f"{_SRT_SERVER}:app"),
        "The thinker would answer no client.",
        *(
            "/health /health_generate /v1/chat/completions /v1/completions /v1/models"
        ).split(),
    ),
    *_rows(
        *("route", "gateway/app.py", f"{_API}.http_server:health_router"),
        "The generator would never be ready.",
        *"/health /health_generate".split(),
    ),
    *_rows(
        *("route", "models/lance/__init__.py", f"{_API}.openai.image_api:router"),
        "Pictures could not be asked for.",
        *"/v1/images/generations /v1/images/edits".split(),
    ),
    *_rows(
        *("route", "models/lance/__init__.py", f"{_API}.openai.video_api:router"),
        "Videos could not be asked for.",
        "/v1/videos",
    ),
    *_rows(
        *("route", "http/middleware.py", f"{_API}.openai.common_api:router"),
        "The operator could not open it.",
        *"/v1/merge_lora_weights /v1/set_lora /v1/unmerge_lora_weights".split(),
    ),
    *_rows(
        *("route", "http/middleware.py", f"{_API}.post_training.rollout_api:router"),
        "The operator could not open it.",
        "/rollout/generate",
    ),
    *_rows(
        *("route", "http/middleware.py", f"{_API}.post_training.weights_api:router"),
        "The operator could not open it.",
        *(
            "/get_weights_checksum /release_memory_occupation "
            "/resume_memory_occupation /update_weights_from_disk "
            "/update_weights_from_tensor /update_weights_from_tensor_checker"
        ).split(),
    ),
)
