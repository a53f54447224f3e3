# SPDX-License-Identifier: Apache-2.0
"""What becomes of stock's options where one of our families is served: tables.

Every server argument and flag of stock's diffusion runtime and every ``SGLANG_*``
variable that it reads works, is refused, or does not apply. A family states its own
rows in ``options.py`` (``STOCK_OPTIONS``); ``SHARED`` holds for all families, and
``OWN_LOADERS`` for those whose weights our loaders read. ``docs/options.md`` is made
from them. Nothing here imports torch or SGLang.
"""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal

from sglang_ext_gen.errors import ConfigError

if TYPE_CHECKING:
    from sglang.multimodal_gen.runtime.server_args import ServerArgs

logger = logging.getLogger(__name__)

Status = Literal["works", "refused", "does not apply"]


@dataclass(frozen=True)
class OptionRow:
    """Options of one fate.

    Args:
        status: What becomes of them.
        names: Server arguments as Python names them, or variables.
        reason: Why they do not work, and what to use instead.
        unless: Values that are what happens anyway; they are not refused.
    """

    status: Status
    names: tuple[str, ...]
    reason: str = ""
    unless: tuple[Any, ...] = ()


def works(names: str) -> OptionRow:
    """Options, separated by spaces, that do what stock says."""
    return OptionRow("works", tuple(names.split()))


def refused(reason: str, names: str, unless: tuple[Any, ...] = ()) -> OptionRow:
    """Options that nothing would obey: loading refuses them by name."""
    return OptionRow("refused", tuple(names.split()), reason, unless)


def does_not_apply(reason: str, names: str) -> OptionRow:
    """Options about something that is not there; one that is given is logged."""
    return OptionRow("does not apply", tuple(names.split()), reason)


# What stock's denoising loop serves, for every family whose steps run on it.
GRAPHS = (
    "enable_breakable_cuda_graph bcg_text_buckets "
    "SGLANG_DIFFUSION_BCG_MAX_ENTRIES SGLANG_DIFFUSION_BCG_MAX_SEGMENTS"
)
ON_STOCKS_LOOP: tuple[OptionRow, ...] = (
    works(
        "enable_torch_compile offload_during_compile "
        "dit_config.torch_compile_mode SGLANG_TORCH_COMPILE_MODE"
    ),
    works(
        "SGLANG_CACHE_DIT_ENABLED SGLANG_CACHE_DIT_FN SGLANG_CACHE_DIT_BN "
        "SGLANG_CACHE_DIT_WARMUP SGLANG_CACHE_DIT_RDT SGLANG_CACHE_DIT_MC "
        "SGLANG_CACHE_DIT_TAYLORSEER SGLANG_CACHE_DIT_TS_ORDER SGLANG_CACHE_DIT_DMD "
        "SGLANG_CACHE_DIT_DMD_HISTORY SGLANG_CACHE_DIT_DMD_RANK "
        "SGLANG_CACHE_DIT_DMD_RIDGE SGLANG_CACHE_DIT_DMD_SVD_PRECISION "
        "SGLANG_CACHE_DIT_SCM_PRESET SGLANG_CACHE_DIT_SCM_COMPUTE_BINS "
        "SGLANG_CACHE_DIT_SCM_CACHE_BINS SGLANG_CACHE_DIT_SCM_POLICY"
    ),
    works(GRAPHS),
    works(
        "dit_cpu_offload dit_layerwise_offload dit_offload_prefetch_size "
        "dit_layerwise_resident_layers dit_layerwise_residency_policy "
        "dit_layerwise_residency_lifetime layerwise_offload_components "
        "layerwise_prefetch_size layerwise_resident_layers layerwise_residency_policy "
        "layerwise_residency_lifetime"
    ),
    works("enable_layerwise_nvtx_marker"),
    works(
        "batching_mode batching_max_size batching_delay_ms batching_config "
        "enable_batching_metrics"
    ),
)
# Which layers of attention compute how; Lance has its own attention.
ATTENTION = (
    "attention_backend component_attention_backends "
    "component_attention_backend_roles enable_attention_backend_autotune"
)
OF_ATTENTION = "SGLANG_USE_SAGE_ATTENTION_IMPL SGLANG_VARLEN_FA"
# How the ranks of a replica share one request; Lance runs on one device.
PARALLEL = (
    "tp_size sp_degree ulysses_degree ring_degree kv_gather_degree dp_size "
    "enable_cfg_parallel cfg_parallel_degree nnodes node_rank dist_init_addr"
)
DISAGGREGATION = (
    "disagg_timeout disagg_downstream_wait_timeout disagg_dispatch_policy "
    "disagg_instance_id disagg_max_slots_per_instance disagg_transfer_redundancy "
    "disagg_role_device disagg_transfer_backend disagg_transfer_pool_size "
    "disagg_transfer_pin_memory disagg_p2p_hostname disagg_ib_device "
    "disagg_server_addr encoder_urls prompt_encoder_urls image_encoder_urls "
    "denoiser_urls decoder_urls encoder_tp denoiser_tp denoiser_sp denoiser_ulysses "
    "denoiser_ring decoder_sp"
)
# Exchanges inside the attention of a sequence that is spread over ranks.
SEQUENCE_EXCHANGE = (
    "SGLANG_DIFFUSION_DISABLE_SP_PAD_MASK SGLANG_DIFFUSION_ULYSSES_PIPELINE_GROUPS "
    "SGLANG_DIFFUSION_IPC_A2A SGLANG_DIFFUSION_IPC_A2A_MULTI "
    "SGLANG_DIFFUSION_IPC_A2A_TIMEOUT_MS SGLANG_DIFFUSION_IPC_A2A_MAX_BUFFERS"
)
LORA = (
    "lora_path lora_nickname lora_scale lora_alpha lora_merge_mode lora_weight_name "
    "lora_target_modules"
)
# Weights in another form than on disk.
QUANTIZATION = (
    "quantization quantization_ignored_layers component_quantization_ignored_layers "
    "component_quantizations nunchaku_config enable_svdquant "
    "quantization_precision quantization_rank quantization_act_unsigned "
    "dit_config.quant_config"
)
OF_QUANTIZATION = (
    "SGLANG_DIFFUSION_CONVROT_INT8_BACKEND SGLANG_CRASH_ON_JIT_COMPILE "
    "SGLANG_KITCHEN_INT8_MAX_ROWS SGLANG_KITCHEN_INT8_MIN_SPLIT_N "
    "SGLANG_DIFFUSION_FLASHINFER_FP4_GEMM_BACKEND SGLANG_FORCE_FP8_MARLIN "
    "SGLANG_DIFFUSION_ENABLE_W8A8_FP8_GEMM SGLANG_DIFFUSION_FP8_WEIGHT_DEQUANT_CACHE"
)
FSDP = "use_fsdp_inference hsdp_replicate_dim hsdp_shard_dim"
# Weights from elsewhere, or by another way, than a component's own folder.
WEIGHT_FILES = (
    "transformer_weights_path component_weights_paths direct_gpu_weight_loading "
    "component_direct_gpu_weight_loading"
)
VAE_CONFIG = (
    "vae_config.load_encoder vae_config.load_decoder "
    "vae_config.tile_sample_min_height vae_config.tile_sample_min_width "
    "vae_config.tile_sample_min_num_frames vae_config.tile_sample_stride_height "
    "vae_config.tile_sample_stride_width vae_config.tile_sample_stride_num_frames "
    "vae_config.blend_num_frames vae_config.use_tiling "
    "vae_config.use_temporal_tiling vae_config.use_parallel_tiling "
    "vae_config.use_parallel_decode vae_config.parallel_decode_mode"
)
# What stock's own loaders and encoders read from the environment.
OF_STOCKS_LOADERS = (
    "SGLANG_USE_RUNAI_MODEL_STREAMER SGLANG_DIFFUSION_VAE_CHANNELS_LAST_3D "
    "SGLANG_DIFFUSION_DISABLE_EARLY_VAE_DECODER_CAST "
    "SGLANG_DIFFUSION_DISABLE_VAE_DECODER_STORE SGLANG_DIFFUSION_HOST_SPILL_DIR "
    "SGLANG_DIFFUSION_DISABLE_HOST_SPILL SGLANG_DIFFUSION_DISABLE_MAPPED_COURIER "
    "SGLANG_DIFFUSION_DISABLE_MAPPED_DIRECT_READ "
    "SGLANG_DIFFUSION_DISABLE_MAPPED_WILLNEED SGLANG_ENABLE_FUSED_QKNORM_ROPE "
    "SGLANG_SP_TEXT_SHARD_MIN SGLANG_FORCE_CPU_IMAGE_PREPROCESSING "
    "SGLANG_ENABLE_DETERMINISTIC_INFERENCE"
)
# Attention that needs nothing but its inputs.
DENSE_BACKENDS = (
    *("fa", "fa2", "torch_sdpa", "torch_cudnn_sdpa", "dynamic_cudnn_sdpa"),
    *("sage_attn", "sage_attn_3", "aiter", "aiter_sage", "fp8_fa_sm120"),
)

SHARED: tuple[OptionRow, ...] = (
    *ON_STOCKS_LOOP,
    works(
        "model_path model_id served_model_name backend pipeline_class_name "
        "pipeline_config pipeline_config_path revision performance_mode"
    ),
    works("component_paths component_precisions"),
    # Of the parts that there are; our --precision gives all four.
    works(
        "dit_precision vae_precision text_encoder_precisions image_encoder_precision"
    ),
    works(f"{ATTENTION} {OF_ATTENTION}"),
    works(PARALLEL),
    works(
        "num_gpus base_gpu_id gpu_ids numa_node enable_nccl_nvls dist_timeout "
        "scheduler_rpc_timeout master_port disable_autocast allow_cudnn_tf32 "
        "allow_bf16_reduced_precision_reduction"
    ),
    works(SEQUENCE_EXCHANGE),
    works(
        "component_residency cpu_offload_components vae_cpu_offload pin_cpu_memory "
        "disable_conditioning_cache"
    ),
    works("warmup_mode warmup_resolutions warmup_steps warmup_sampling_params"),
    works(
        "host port http_graceful_shutdown_timeout enable_metrics scheduler_port "
        "strict_ports async_output_save sleep_on_idle output_path prompt_file_path "
        "prompt_enhancer_config log_level log_requests log_requests_level "
        "log_requests_format log_requests_target uvicorn_access_log_exclude_prefixes "
        "enable_trace otlp_traces_endpoint otlp_service_name"
    ),
    works(
        "SGLANG_CPU_OMP_THREADS_BIND "
        "SGLANG_DIFFUSION_NCCL_SO_PATH SGLANG_DIFFUSION_PLATFORM_OVERRIDE "
        "SGLANG_PLUGINS SGLANG_EXTERNAL_MODEL_PACKAGE SGLANG_USE_MODELSCOPE "
        "SGLANG_DIFFUSION_CACHE_ROOT SGLANG_DIFFUSION_DISABLE_AUTO_RESIDENCY "
        "SGLANG_DIFFUSION_DEBUG_HOST_MEMORY SGLANG_DIFFUSION_DEBUG_LAYERWISE_TIMING "
        "SGLANG_DIFFUSION_STAGE_LOGGING SGLANG_DIFFUSION_SYNC_STAGE_PROFILING "
        "SGLANG_DIFFUSION_TORCH_PROFILER_DIR SGLANG_TORCH_PROFILER_DIR "
        "SGLANG_PERF_LOG_DIR SGLANG_GIT_COMMIT SGLANG_LOG_REQUEST_EXCEEDED_MS "
        "SGLANG_CLOUD_STORAGE_TYPE SGLANG_S3_BUCKET_NAME SGLANG_S3_ENDPOINT_URL "
        "SGLANG_S3_REGION_NAME SGLANG_S3_ACCESS_KEY_ID SGLANG_S3_SECRET_ACCESS_KEY "
        "SGLANG_TEST_NUM_INFERENCE_STEPS SGLANG_DIFFUSION_TEST_CAP_DEVICE_MEMORY_GIB "
        "SGLANG_DIFFUSION_TEST_FORCE_HOST_AVAILABLE_GIB"
    ),
    refused("these checkpoints have no variants", "model_variant"),
    refused(
        "it configures the diffusers backend; here SGLANG_CACHE_DIT_* and the "
        "request's enable_cache_dit do",
        "cache_dit_config",
    ),
    refused("a request says its size", "resolution"),
    refused("these transformers are compiled as a whole", "regional_compile"),
    refused("a warm-up draws one picture", "warmup_num_frames"),
    refused(
        "its page asks for 81 frames, which these models refuse; use the HTTP routes",
        "webui webui_port",
    ),
    refused(
        "uploads are in a temporary folder and are deleted with their request",
        "input_save_path",
    ),
    refused("ComfyUI drives stock's pipelines only", "comfyui_mode"),
    does_not_apply(
        "nothing in SGLang reads it, for any model",
        "vae_slicing vae_sp nccl_port boundary_ratio SGLANG_DIFFUSION_TRACE_FUNCTION",
    ),
    does_not_apply(
        "SGLang sets it itself",
        "scheduler_ports sp_split_auto model_paths model_loaded disagg_mode "
        "pool_work_endpoint pool_result_endpoint",
    ),
    does_not_apply("these models have no embedded guidance", "embedded_cfg_scale"),
    does_not_apply(
        "prompts are encoded anew, no tokens are cached", "enable_cache_report"
    ),
    does_not_apply(
        "the parts of these models run in this server, or behind its own options",
        "srt_encoder_url srt_encoder_connect_timeout srt_encoder_connection_timeout "
        "srt_encoder_timeout pe_server_url",
    ),
    does_not_apply(
        "for attention over a cache of frames",
        "kv_cache_quant_config kv_cache_quant kv_cache_quant_centroids "
        "kv_cache_quant_block_size kv_cache_quant_stages kv_cache_quant_iters "
        "kv_cache_quant_asymmetric kv_cache_quant_keep_recent kv_cache_quant_sink "
        "kv_cache_quant_sink_keep",
    ),
    does_not_apply(
        "for other models (Cosmos, FLUX, HunyuanImage, LingBot, LTX-2, MiniMax-H3, "
        "SANA-WM, Wan)",
        "load_diffusion_decoder minimax_h3_adaln_cache_path minimax_h3_adaln_online "
        "minimax_h3_adaln_plan_width minimax_h3_adaln_host_cache_gb "
        "ltx2_two_stage_device_mode streaming refiner_chunked num_frame_per_block "
        "diffusion_decoder_tiling diffusion_decoder_parallel_tiling "
        "dmd_denoising_steps realtime_causal_sink_size "
        "realtime_causal_kv_cache_num_frames mask_strategy_file_path "
        "SGLANG_CACHE_DIR SGLANG_DIFFUSION_ATTENTION_CONFIG "
        "SGLANG_DIFFUSION_COSMOS3_LIDAR_USE_NATTEN "
        "SGLANG_DIFFUSION_COSMOS3_MULTIVIEW_ATTENTION_BACKEND "
        "SGLANG_DIFFUSION_COSMOS3_STEP_MIXED_PRECISION_FIRST_STEPS "
        "SGLANG_DIFFUSION_COSMOS3_STEP_MIXED_PRECISION_LAST_STEPS "
        "SGLANG_DIFFUSION_DEBUG_COSMOS3_MULTIVIEW_SP_CHECK "
        "SGLANG_DIFFUSION_ENABLE_COSMOS3_STEP_MIXED_PRECISION "
        "SGLANG_DISABLE_COSMOS3_GUARDRAILS SGLANG_DIFFUSION_FLUX3_NATTEN_BACKEND "
        "SGLANG_ENABLE_FLUX3_PRIMS_TS_AUTOTUNE "
        "SGLANG_OPT_FLUX3_PRIMS_TS_TUNING_BUCKETS SGLANG_HI3_COND_ENCODE_BATCHING "
        "SGLANG_HI3_OUTPUT_CROP SGLANG_LINGBOT_ENABLE_INTERACTIVE_KV_WINDOW "
        "SGLANG_LINGBOT_LAZY_VAE_ENCODE_BLACK_FRAMES SGLANG_LINGBOT_SP_STRATEGY "
        "SGLANG_LTX2_TWO_STAGE_DEVICE_MODE SGLANG_DIFFUSION_MINIMAX_H3_ADALN_FP32 "
        "SGLANG_DIFFUSION_MINIMAX_H3_ADALN_GPU_PLANS "
        "SGLANG_DIFFUSION_MINIMAX_H3_PDD_HEADS SGLANG_SANA_WM_DIAGNOSTICS "
        "SGLANG_SANA_WM_LOG_TENSOR_STATS SGLANG_SANA_WM_SKIP_REFINER",
    ),
    does_not_apply(
        "for the second transformer of Wan 2.2; here SGLANG_CACHE_DIT_* is for all",
        "SGLANG_CACHE_DIT_SECONDARY_FN SGLANG_CACHE_DIT_SECONDARY_BN "
        "SGLANG_CACHE_DIT_SECONDARY_WARMUP SGLANG_CACHE_DIT_SECONDARY_RDT "
        "SGLANG_CACHE_DIT_SECONDARY_MC SGLANG_CACHE_DIT_SECONDARY_TAYLORSEER "
        "SGLANG_CACHE_DIT_SECONDARY_TS_ORDER SGLANG_CACHE_DIT_SECONDARY_DMD "
        "SGLANG_CACHE_DIT_SECONDARY_DMD_HISTORY SGLANG_CACHE_DIT_SECONDARY_DMD_RANK "
        "SGLANG_CACHE_DIT_SECONDARY_DMD_RIDGE "
        "SGLANG_CACHE_DIT_SECONDARY_DMD_SVD_PRECISION",
    ),
    does_not_apply(
        "for AMD and Ascend devices, where this package was never run",
        "SGLANG_DIFFUSION_AITER_FP8_ATTN SGLANG_USE_AITER SGLANG_INT4_WEIGHT "
        "SGLANG_DISABLE_GFX1250_FP8_GEMM SGLANG_DIFFUSION_ENABLE_MXFP8_ATTENTION "
        "SGLANG_DIFFUSION_MXFP8_FA_HEAD_CHUNK_SIZE SGLANG_USE_ROCM_AITER_TGEMM "
        "SGLANG_USE_ROCM_CUDNN_BENCHMARK SGLANG_USE_ROCM_FLYDSL SGLANG_USE_ROCM_VAE "
        "SGLANG_USE_ROCM_VAE_CONV2D SGLANG_USE_ROCM_VAE_CONV2D_BF16",
    ),
)

# Families whose components our strict loaders read, and whose stages are their own.
OWN_LOADERS: tuple[OptionRow, ...] = (
    refused(
        "the checkpoint is the folder that --model-path names; name the subfolder",
        "model_subfolder",
    ),
    refused("LoRA is not supported by this pipeline", LORA),
    refused("weights are not sharded by FSDP; use --tp-size", FSDP),
    refused(
        "a component's folder is read strictly and as a whole; name another folder by "
        "--component-paths.NAME",
        WEIGHT_FILES,
    ),
    refused("weights are taken as they are on disk", QUANTIZATION),
    refused(
        "the encoders have a layout of their own",
        "encoder_parallel",
        unless=("auto", "replicate"),
    ),
    refused(
        "prompts are encoded for each request, equal ones of a group once",
        "conditioning_cache_max_size_mb",
        unless=(0,),
    ),
    refused("the VAE decodes in its own precision", "vae_decode_precision"),
    refused("the VAE runs whole, on one rank", f"vae_tiling {VAE_CONFIG}"),
    refused("the VAE is not compiled", "SGLANG_VAE_TORCH_COMPILE_MODE"),
    refused(
        "the schedule is the family's own; a request says its steps and shift",
        "flow_shift scheduler_class_override",
    ),
    refused(
        "the steps are the family's own and have no such gate",
        "SGLANG_DIFFUSION_CFG_GATE_STEP",
        unless=("1", "1.0"),
    ),
    refused(
        "attention is dense",
        "attention_backend attention_backend_config",
        unless=DENSE_BACKENDS,
    ),
    works("text_encoder_cpu_offload"),
    does_not_apply("there is no image encoder", "image_encoder_cpu_offload"),
    does_not_apply("no code of a checkpoint is ever run", "trust_remote_code"),
    does_not_apply("blocks are found by the class", "dit_config.prefix"),
    does_not_apply("--quantization is refused", OF_QUANTIZATION),
    does_not_apply(
        "LoRA is not supported",
        "SGLANG_DIFFUSION_LORA_MERGE_FP32 SGLANG_DIFFUSION_DISABLE_LORA_MERGE_CACHE",
    ),
    does_not_apply(
        "for stock's loaders and layers, which this family does without",
        OF_STOCKS_LOADERS,
    ),
)
# Families that cannot be split into encoder, denoiser and decoder.
MONOLITHIC: tuple[OptionRow, ...] = (
    refused("what its stages share stays in one process", "disagg_role"),
    does_not_apply("--disagg-role is refused", DISAGGREGATION),
)

# Arguments whose flag is not their name with dashes; None where they have no flag.
_FLAGS: dict[str, str | None] = {
    "cfg_parallel_degree": "--cfg-parallel-size",
    "component_direct_gpu_weight_loading": "--component-direct-gpu-weight-loading.NAME",
    "component_paths": "--component-paths.NAME",
    "component_precisions": "--component-precisions.NAME",
    "component_quantization_ignored_layers": (
        "--component-quantization-ignored-layers.NAME"
    ),
    "component_quantizations": "--component-quantizations.NAME",
    "component_weights_paths": "--component-weights-paths.NAME",
    **dict.fromkeys(
        (
            "boundary_ratio comfyui_mode component_attention_backend_roles disagg_mode "
            "enable_attention_backend_autotune kv_cache_quant_config "
            "lora_target_modules model_loaded model_paths nccl_port nunchaku_config "
            "pipeline_config pool_result_endpoint pool_work_endpoint scheduler_ports "
            "sp_split_auto srt_encoder_connect_timeout"
        ).split()
    ),
}
# Arguments whose value maps components to something.
_OF_COMPONENTS = (
    "component_attention_backends",
    "component_paths",
    "component_precisions",
    "component_quantizations",
    "component_weights_paths",
)
_OFF = ("", "0", "false", "no", "off")


def stock_options(own: Iterable[OptionRow]) -> dict[str, OptionRow]:
    """Name -> row of all options; where a family's own rows name one, they decide."""
    return {name: row for row in (*SHARED, *own) for name in row.names}


def as_written(name: str) -> str:
    """A variable as it is, a server argument as its flag, or as in Python."""
    if name.isupper():
        return name
    return _FLAGS.get(name, "--" + name.replace("_", "-")) or name


def refuse_options(own: Iterable[OptionRow], server_args: "ServerArgs") -> None:
    """Refuse what is given and nothing would obey; say of the rest that it is no use.

    Args:
        own: The family's ``STOCK_OPTIONS``.
        server_args: In the user's process, before a worker starts.

    Raises:
        ConfigError: Names the first of them and why.
    """
    for name, row in stock_options(own).items():
        if row.status == "works" or not _is_given(name, row.unless, server_args):
            continue
        if row.status == "refused":
            raise ConfigError(f"{as_written(name)}: {row.reason}")
        logger.warning("%s does not apply here: %s", as_written(name), row.reason)


def refuse_unknown_components(known: Iterable[str], server_args: "ServerArgs") -> None:
    """Refuse an option for a component that the family does not have.

    SGLang takes any flag that ends in ``-path`` for one.

    Raises:
        ConfigError: Names it and the components.
    """
    for name in _OF_COMPONENTS:
        for component in getattr(server_args, name) or ():
            if component not in known:
                flag = f"--{name.replace('_', '-')}"
                raise ConfigError(
                    f"{flag}.{component}: there is no such component; there are "
                    + ", ".join(known)
                )


def _is_given(name: str, unless: tuple[Any, ...], server_args: "ServerArgs") -> bool:
    """Whether the user asks for something by an option.

    What SGLang fills in itself is not given, nor is its default, nor off.
    """
    if name.isupper():
        value = os.environ.get(name, "").strip().lower()
        return value not in (*_OFF, *unless)
    if not server_args.is_arg_explicitly_set(name):
        return False
    value, default = _value_and_default(name, server_args)
    if value is True:
        return True
    return bool(value) and value not in (default, *unless)


def _value_and_default(name: str, server_args: "ServerArgs") -> tuple[Any, Any]:
    """Of a server argument, or a flag of the pipeline config; else (True, None)."""
    *path, last = name.split(".")
    for owner in (server_args, server_args.pipeline_config):
        for step in path:
            owner = getattr(owner, step, None)
        if not is_dataclass(owner):
            continue
        for field in fields(owner):
            if field.name == last:
                return getattr(owner, last), field.default
    return True, None
