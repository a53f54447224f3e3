# SPDX-License-Identifier: Apache-2.0
"""What we rely on in SGLang and no import shows: words of its messages, flags,
variables, routes, fields of its answers, members of objects without a type. Of the
libraries that it brings, only private members.

Symbols, their members and parameters are not listed: ``stock_uses.py`` reads them from
the source. A test fails when a flag, a variable or a route of stock's has no row.
"""

from collections.abc import Iterable
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
_SRT_SERVER = "sglang.srt.entrypoints.http_server"
_GEN_ARGS = f"{_GEN}.server_args:ServerArgs"
_SRT_ARGS = "sglang.srt.server_args:ServerArgs"
_LANCE = "models/lance/thinker/model.py"


def _rows(
    kind: Kind, names: Iterable[str], used_in: str, found_in: str, why: str
) -> tuple[Coupling, ...]:
    return tuple(Coupling(kind, name, used_in, found_in, why) for name in names)


COUPLINGS: tuple[Coupling, ...] = (
    # Messages that we take apart.
    *_rows(
        "message",
        (
            r'"Error executing \{error_context\}: \{e\}"',
            r'error_context=f"request \{req.request_id\}"',
            r'error_context=f"grouped request \{req.request_id\}"',
        ),
        "errors.py",
        f"{_GEN}.managers.gpu_worker",
        "A refusal found in a worker would be answered as a failure.",
    ),
    Coupling(
        "message",
        r'"Error executing grouped request \{batch.request_id\}: \{e\}"',
        "errors.py",
        f"{_GEN}.pipelines_core.executors.pipeline_executor",
        "As above, for a group.",
    ),
    Coupling(
        "message",
        r'detail=f"\{failure_msg\}: \{error_msg\}"',
        "diffusion/lora.py",
        f"{_API}.openai.common_api",
        "An adapter that does not fit would be answered with 500.",
    ),
    Coupling(
        "message",
        r'SystemExit\(f"error: ',
        "cli/running.py",
        f"{_GEN}.server_args.server_args",
        "An unknown flag would be told with the word error twice.",
    ),
    # Fields of stock's answers and requests.
    Coupling(
        "field",
        'object="error"',
        "http/errors.py",
        "sglang.srt.entrypoints.openai.serving_base",
        "Errors of the language model runtime would not be restated.",
    ),
    Coupling(
        "field",
        '"error": ',
        "http/errors.py",
        f"{_API}.http_server",
        "Errors of the diffusion runtime would not be restated.",
    ),
    *_rows(
        "field",
        ('"loaded_adapters"', '"nickname"'),
        "diffusion/lora.py",
        f"{_GEN}.pipelines_core.lora.pipeline",
        "set_lora could not answer with what it applied.",
    ),
    *_rows(
        "field",
        ('"stages"', '"steps"'),
        "cli/running.py",
        f"{_GEN}.utils.perf_logger",
        "generate would report no seconds.",
    ),
    Coupling(
        "field",
        '"architectures"',
        "models/ming_omni/thinker_client.py",
        _SRT_SERVER,
        "A thinker that runs elsewhere would not be recognised.",
    ),
    *_rows(
        "member",
        ("text", "image_data", "sampling_params"),
        "models/ming_omni/thinker_client.py",
        "sglang.srt.managers.io_struct:GenerateReqInput",
        "The thinker would refuse the generator's questions.",
    ),
    Coupling(
        "field",
        r"meta_info.*customized_info|customized_info.*meta_info",
        "models/ming_omni/thinker_protocol.py",
        "sglang.srt.managers.tokenizer_manager",
        "Query states would not come back.",
    ),
    Coupling(
        "field",
        '"image_grid_thw"',
        "models/ming_omni/thinker/processor.py",
        "sglang.srt.managers.mm_utils",
        "The vision tower would not know the shape of a picture.",
    ),
    # Members of objects that have no type in our code.
    Coupling(
        "member",
        "_resolution_finished",
        "plugin/language_models.py",
        _SRT_ARGS,
        "Arguments would be prepared twice, the second time from the view.",
    ),
    *_rows(
        "member",
        (
            "model_path",
            "served_model_name",
            "chunked_prefill_size",
            "revision",
            "download_dir",
        ),
        "models/lance/thinker/view.py",
        _SRT_ARGS,
        "A Lance checkpoint could not be opened.",
    ),
    Coupling(
        "member",
        "apply_routed_scaling_factor_on_output",
        "models/ming_omni/thinker/model.py",
        "sglang.srt.layers.moe.topk:TopKConfig",
        "On a CPU the experts of Ming would be scaled wrongly.",
    ),
    *(
        Coupling(
            "member",
            "_patched",
            "plugin/hooks.py",
            f"{module}:HookRegistry",
            "doctor could not say which hooks are in force.",
        )
        for module in (f"{_GEN}.platforms.plugins", "sglang.srt.plugins.hook_registry")
    ),
    Coupling(
        "member",
        "user_middleware",
        "http/middleware.py",
        "starlette.applications:Starlette",
        "Requests would not be checked.",
    ),
    Coupling(
        "member",
        "_name_or_path",
        "models/ming_omni/thinker/model.py",
        "transformers:PretrainedConfig",
        "The thinker would not find its folder.",
    ),
    Coupling(
        "member",
        "_attn_implementation",
        "models/ming_omni/byt5.py",
        "transformers:PretrainedConfig",
        "The glyph encoder would choose its attention itself.",
    ),
    # What stock asks of a model by name; nn.Module says nothing of it.
    Coupling(
        "message",
        "pad_input_ids",
        _LANCE,
        "sglang.srt.managers.tp_worker",
        "The prefix cache would mix pictures up.",
    ),
    Coupling(
        "message",
        r"get_\{modality_id\}_feature",
        _LANCE,
        "sglang.srt.managers.mm_utils",
        "Pictures, videos and sound would not be encoded.",
    ),
    Coupling(
        "message",
        "is_mrope_enabled",
        _LANCE,
        "sglang.srt.model_executor.runner.prefill_cuda_graph_runner",
        "Graphs would be captured without three-axis positions.",
    ),
    Coupling(
        "message",
        "add_pipeline_cli_args",
        "models/ideogram4/pipeline_config.py",
        f"{_API}.cli.utils",
        "The families' own flags would be unknown.",
    ),
    Coupling(
        "message",
        "BailingMM2NativeForConditionalGeneration",
        "models/ming_omni/thinker_protocol.py",
        "sglang.srt.configs.model_config",
        "The thinker would be served as a model of text.",
    ),
    # Environment variables.
    *_rows(
        "variable",
        ("SGLANG_DIFFUSION_STAGE_LOGGING", "SGLANG_DIFFUSION_SYNC_STAGE_PROFILING"),
        "cli/running.py",
        f"{_GEN}.utils.perf_logger",
        "generate would report no seconds.",
    ),
    Coupling(
        "variable",
        "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION",
        "gateway/launch.py",
        _SRT_SERVER,
        "Every health check would compute a token.",
    ),
    Coupling(
        "variable",
        "SGLANG_EXTERNAL_MODEL_PACKAGE",
        "__init__.py",
        f"{_GEN}.utils.external_model_package",
        "Plain `sglang generate` would not find our models.",
    ),
    *_rows(
        "variable",
        ("SGLANG_PLATFORM", "SGLANG_USE_CPU_ENGINE"),
        "platforms/cpu_reference.py",
        "sglang.srt.platforms",
        "The CPU platform could not be chosen.",
    ),
    # Flags of the two servers.
    *_rows(
        "flag",
        ("--backend", "--master-port", "--model-path"),
        "cli/running.py",
        _GEN_ARGS,
        "generate could not start.",
    ),
    *_rows(
        "flag",
        (
            "--dit-precision",
            "--image-encoder-precision",
            "--text-encoder-precisions",
            "--vae-precision",
        ),
        "request/flags.py",
        _GEN_ARGS,
        "--precision would be refused.",
    ),
    *_rows(
        "flag",
        (
            "--master-port",
            "--scheduler-port",
            "--served-model-name",
            "--uvicorn-access-log-exclude-prefixes",
        ),
        "gateway/launch.py",
        _GEN_ARGS,
        "The generator behind one port could not start.",
    ),
    *(
        row
        for arguments in (_GEN_ARGS, _SRT_ARGS)
        for row in _rows(
            "flag",
            ("--host", "--port"),
            "process/child_server.py",
            arguments,
            "No server could be started as a child.",
        )
    ),
    Coupling(
        "flag",
        "--num-gpus",
        "gateway/arguments.py",
        _GEN_ARGS,
        "--generator-devices would be refused.",
    ),
    *_rows(
        "flag",
        (
            "--model-path",
            "--served-model-name",
            "--uvicorn-access-log-exclude-prefixes",
        ),
        "gateway/launch.py",
        _SRT_ARGS,
        "The thinker behind one port could not start.",
    ),
    *_rows(
        "flag",
        ("--dtype", "--model", "--tp-size"),
        "gateway/arguments.py",
        _SRT_ARGS,
        "--precision and --thinker-tp would be refused.",
    ),
    *_rows(
        "flag",
        ("--log-level", "--skip-server-warmup"),
        "cli/ask.py",
        _SRT_ARGS,
        "ask could not start.",
    ),
    *_rows(
        "flag",
        ("--context-length", "--max-total-tokens", "--mem-fraction-static"),
        "models/ming_omni/demo.py",
        _SRT_ARGS,
        "The demo of Ming could not start.",
    ),
    Coupling(
        "message",
        "--model-type",
        "gateway/launch.py",
        "sglang.cli.serve",
        "Behind one port the generator could not be chosen.",
    ),
    # Routes that are served, asked or guarded.
    *_rows(
        "route",
        ("/generate", "/model_info"),
        "models/ming_omni/thinker_client.py",
        f"{_SRT_SERVER}:app",
        "The thinker would not answer the generator.",
    ),
    *_rows(
        "route",
        (
            "/health",
            "/health_generate",
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/models",
        ),
        "gateway/app.py",
        f"{_SRT_SERVER}:app",
        "The thinker would answer no client.",
    ),
    *_rows(
        "route",
        ("/health", "/health_generate"),
        "gateway/app.py",
        f"{_API}.http_server:health_router",
        "The generator would never be ready.",
    ),
    *_rows(
        "route",
        ("/v1/images/generations", "/v1/images/edits"),
        "registry.py",
        f"{_API}.openai.image_api:router",
        "Pictures could not be asked for.",
    ),
    Coupling(
        "route",
        "/v1/videos",
        "registry.py",
        f"{_API}.openai.video_api:router",
        "Videos could not be asked for.",
    ),
    *_rows(
        "route",
        ("/v1/merge_lora_weights", "/v1/set_lora", "/v1/unmerge_lora_weights"),
        "http/middleware.py",
        f"{_API}.openai.common_api:router",
        "The operator could not open it.",
    ),
    *_rows(
        "route",
        (
            "/get_weights_checksum",
            "/release_memory_occupation",
            "/resume_memory_occupation",
            "/update_weights_from_disk",
            "/update_weights_from_tensor",
            "/update_weights_from_tensor_checker",
        ),
        "http/middleware.py",
        f"{_API}.post_training.weights_api:router",
        "The operator could not open it.",
    ),
)
