# SPDX-License-Identifier: Apache-2.0
"""What this package relies on in SGLang: the release, its symbols, their parameters.

A new SGLang release fails here first. A test checks that every ``sglang`` import of
the package is in ``STOCK``, and that the installed SGLang has all of it.
"""

import importlib
import inspect
import pkgutil
from importlib.metadata import PackageNotFoundError, version

SUPPORTED_SGLANG = "0.5.23"

_GEN = "sglang.multimodal_gen"
_ENTRYPOINTS = f"{_GEN}.runtime.entrypoints"

# Module -> symbol -> the parameters (of a class: of its constructor) that we name.
# Symbols with a dot are members; an empty string stands for "no parameter".
STOCK: dict[str, dict[str, str]] = {
    f"{_GEN}.registry": {
        "ModelInfo": "pipeline_cls sampling_param_cls pipeline_config_cls",
        "get_model_info": "model_path backend model_id",
        "get_non_diffusers_pipeline_name": "model_path",
        "get_registered_pipeline_names": "",
        "register_pipeline": "pipeline_cls sampling_param_cls pipeline_config_cls",
    },
    f"{_GEN}.runtime.platforms.plugins": {
        "HookRegistry": "",
        "HookRegistry._patched": "",
        "HookRegistry.register": "target hook hook_type",
        "apply_plugin_hooks": "",
    },
    f"{_ENTRYPOINTS}.diffusion_generator": {
        "DiffGenerator": "server_args",
        "DiffGenerator._log_summary": "results",
        "DiffGenerator._resolve_image_paths_per_prompt": "prompts image_paths",
        "DiffGenerator._resolve_prompts": "prompt prompt_path",
        "DiffGenerator._result_common": "req output_batch generation_time output_index",
        "DiffGenerator._send_to_scheduler_and_wait_for_response": "batch",
        "DiffGenerator.from_server_args": "server_args",
        "DiffGenerator.generate": "sampling_params_kwargs external_trace_header",
        "_replace_sampling_params_for_prompt": "sampling_params_orig prompt "
        "output_file_name image_path",
    },
    f"{_ENTRYPOINTS}.http_server": {
        "create_app": "server_args worker_pids disagg_server",
    },
    f"{_ENTRYPOINTS}.utils": {
        "GenerationResult": "samples frames audio prompt_index output_file_path",
        "RequestOutput": "request request_index",
        "expand_request_outputs": "req num_prompts prompt_index",
        "map_request_outputs": "requests",
        "prepare_request": "server_args sampling_params external_trace_header",
        "save_outputs": "outputs data_type fps save_output build_output_path audio "
        "audio_sample_rate samples_out audios_out frames_out output_compression "
        "x264_preset enable_frame_interpolation frame_interpolation_exp "
        "frame_interpolation_scale frame_interpolation_model_path enable_upscaling "
        "upscaling_model_path upscaling_scale",
    },
    f"{_GEN}.runtime.utils.trace_wrapper": {"trace_req": ""},
    "sglang.cli.serve": {"serve": "args extra_argv"},
    "sglang.cli.utils": {"get_is_diffusion_model": "model_path"},
    "sglang.srt.plugins": {"load_plugins": ""},
    "sglang.srt.plugins.hook_registry": {
        "HookRegistry": "",
        "HookRegistry._patched": "",
        "HookType": "",
    },
}


def installed_sglang() -> str | None:
    """Version of the installed SGLang, or None; does not import it."""
    try:
        return version("sglang")
    except PackageNotFoundError:
        return None


def unsupported_version() -> str | None:
    """Why the installed SGLang is not supported, as a sentence, or None."""
    installed = installed_sglang()
    if installed == SUPPORTED_SGLANG:
        return None
    found = "none" if installed is None else installed
    return f"sglang_ext_gen is made for SGLang {SUPPORTED_SGLANG}, found {found}."


def check() -> list[str]:
    """Compare ``STOCK`` with the installed SGLang; imports all of it.

    Returns:
        One sentence per symbol or parameter that is missing; empty when all is there.
    """
    problems = []
    for module_name, symbols in STOCK.items():
        try:
            importlib.import_module(module_name)
        except ImportError as error:
            problems.append(f"{module_name} cannot be imported: {error}")
            continue
        for symbol, parameters in symbols.items():
            problems += _check_symbol(f"{module_name}:{symbol}", parameters.split())
    return problems


def _check_symbol(reference: str, parameters: list[str]) -> list[str]:
    try:
        found = pkgutil.resolve_name(reference)
    except AttributeError:
        return [f"{reference} does not exist"]
    if not parameters:
        return []
    signature = inspect.signature(found)
    return [
        f"{reference} has no parameter {parameter!r}"
        for parameter in parameters
        if parameter not in signature.parameters
    ]
