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
_RUN = f"{_GEN}.runtime"

# Module -> symbol -> the parameters (of a class: of its constructor) that we name.
# Symbols with a dot are members that we call, override or read.
STOCK: dict[str, dict[str, str]] = {
    f"{_RUN}.utils.vision": {"preprocess_image": ""},
    f"{_RUN}.platforms": {"current_platform": ""},
    f"{_RUN}.pipelines_core.diffusion_scheduler_utils": {"calculate_linear_shift": ""},
    f"{_RUN}.pipelines.qwen_image": {
        "QwenImageEditPlusPipeline": "",
        "QwenImagePipeline": "",
    },
    f"{_RUN}.models.registry": {"ModelRegistry": ""},
    f"{_RUN}.models.encoders.qwen_vl_rope": {"build_qwen_vl_text_rope": ""},
    f"{_RUN}.models.dits.qwen_image": {"QwenImageTransformer2DModel": ""},
    f"{_RUN}.loader.component_loaders.transformer_loader": {"TransformerLoader": ""},
    f"{_RUN}.layers.quantization.configs.base_config": {"QuantizationConfig": ""},
    f"{_RUN}.layers.linear": {
        "ColumnParallelLinear": "",
        "LinearBase": "",
        "LinearMethodBase": "",
        "RowParallelLinear": "",
    },
    f"{_RUN}.layers.layernorm": {
        "_NormScaleShift.forward_cpu": "",
        "_ScaleResidualNormScaleShift.forward_cpu": "",
    },
    f"{_GEN}.configs.pipeline_configs.qwen_image": {
        "QwenImageEditPlusPipelineConfig": "",
        "QwenImagePipelineConfig": "",
        "_shard_qwen_edit_freqs_cis_for_sp": "",
    },
    f"{_GEN}.configs.models.dits.qwenimage": {"QwenImageDitConfig": ""},
    f"{_GEN}.configs.models": {"DiTConfig": "", "VAEConfig": ""},
    f"{_GEN}.configs.models.vaes": {"WanVAEConfig": ""},
    f"{_GEN}.configs.models.vaes.flux": {"Flux2VAEConfig": "", "FluxVAEConfig": ""},
    f"{_GEN}.configs.models.vaes.wanvae": {
        "WanVAEArchConfig": "base_dim decoder_base_dim z_dim is_residual patch_size "
        "scale_factor_spatial scale_factor_temporal latents_mean latents_std"
    },
    f"{_GEN}.configs.pipeline_configs.base": {
        "ImagePipelineConfig": "task_type should_use_guidance dit_precision "
        "vae_precision text_encoder_precisions generator_device dit_config vae_config "
        "native_only_components",
        "ImagePipelineConfig.supports_native_grouped_requests": "",
        "ImagePipelineConfig.validate_server_args": "server_args",
        "ModelTaskType.T2I": "",
        "PipelineConfig.from_kwargs": "kwargs",
    },
    f"{_GEN}.configs.sample.sampling_params": {
        "DataType.IMAGE": "",
        "SamplingParams": "data_type negative_prompt height width num_inference_steps "
        "guidance_scale seed prompt image_path output_path output_file_name request_id",
        "SamplingParams._adjust": "server_args",
        "SamplingParams._set_output_file_name": "",
        "SamplingParams._validate": "",
        "SamplingParams.from_user_sampling_params_args": "model_path server_args",
        "SamplingParams.image_request_extra_fields": "",
        "SamplingParams.should_use_classifier_free_guidance": "",
        "generate_request_id": "",
    },
    f"{_GEN}.configs.task_type": {"ModelTaskType": "", "ModelTaskType.parse": "value"},
    f"{_GEN}.registry": {
        "ModelInfo": "pipeline_cls sampling_param_cls pipeline_config_cls",
        "get_model_info": "model_path backend model_id",
        "get_non_diffusers_pipeline_name": "model_path",
        "get_pipeline_config_classes": "pipeline_class_name",
        "get_registered_pipeline_names": "",
        "register_pipeline": "pipeline_cls sampling_param_cls pipeline_config_cls",
    },
    f"{_RUN}.disaggregation.roles": {
        "RoleType.DECODER": "",
        "RoleType.DENOISER": "",
        "RoleType.ENCODER": "",
    },
    f"{_RUN}.distributed": {
        "get_sp_parallel_rank": "",
        "get_sp_world_size": "",
        "get_local_torch_device": "",
        "tensor_model_parallel_all_reduce": "",
    },
    f"{_RUN}.distributed.communication_op": {"cfg_model_parallel_all_gather": ""},
    f"{_RUN}.distributed.parallel_state": {
        "get_cfg_group": "",
        "get_classifier_free_guidance_rank": "",
        "get_world_group": "",
    },
    f"{_RUN}.distributed.sp_shard_utils": {
        "SpShard": "",
        "build_shard_plan": "",
        "gather_seq": "",
        "shard_like": "",
        "tail_attn_meta": "",
    },
    f"{_RUN}.entrypoints.control_requests": {"SetLoraReq": "lora_nickname"},
    f"{_RUN}.entrypoints.openai.common_api": {
        "_handle_lora_request": "req success_msg failure_msg",
        "list_loras": "",
    },
    f"{_RUN}.entrypoints.diffusion_generator": {
        "DiffGenerator.list_loras": "",
        "DiffGenerator.set_lora": "lora_nickname",
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
    f"{_RUN}.entrypoints.http_server": {"create_app": "server_args"},
    f"{_RUN}.entrypoints.utils": {
        "GenerationResult": "samples frames audio prompt_index output_file_path",
        "RequestOutput": "request request_index",
        "RequestOutput.output_file_path": "",
        "expand_request_outputs": "req num_prompts prompt_index",
        "map_request_outputs": "requests",
        "prepare_request": "server_args sampling_params external_trace_header",
        "save_outputs": "outputs data_type fps save_output build_output_path audio "
        "audio_sample_rate samples_out audios_out frames_out output_compression "
        "x264_preset enable_frame_interpolation frame_interpolation_exp "
        "frame_interpolation_scale frame_interpolation_model_path enable_upscaling "
        "upscaling_model_path upscaling_scale",
    },
    f"{_RUN}.layers.attention": {
        "USPAttention": "num_heads head_size",
        "build_varlen_mask_meta": "",
    },
    f"{_RUN}.loader.component_loaders.component_loader": {
        "ComponentLoader.component_load_precision": "server_args component_name",
        "ComponentLoader.load_customized": "component_model_path server_args "
        "component_name",
        "ComponentLoader.target_device": "",
    },
    f"{_RUN}.loader.utils": {
        "finalize_loaded_model": "",
        "initialize_model": "",
        "set_default_torch_dtype": "",
    },
    f"{_RUN}.managers.forward_context": {
        "set_forward_context": "attn_metadata forward_batch"
    },
    f"{_RUN}.managers.memory_managers.component_manager": {
        "ComponentUse": "phase memory_intensive target_dtype keep_ready_after_warmup"
    },
    f"{_RUN}.managers.memory_managers.layerwise_offload": {
        "LayerwiseOffloadableModuleMixin": ""
    },
    f"{_RUN}.models.vaes.autoencoder": {"AutoencoderKL": "config"},
    f"{_RUN}.models.vaes.wanvae": {
        "AutoencoderKLWan": "config",
        "AutoencoderKLWan.decode": "z",
        "AutoencoderKLWan.encode": "",
    },
    f"{_RUN}.pipelines_core": {
        "LoRAPipeline": "",
        "LoRAPipeline._normalize_lora_params": "lora_nickname lora_path strength "
        "target lora_alpha",
        "LoRAPipeline.get_lora_status": "",
        "LoRAPipeline.load_lora_adapter": "lora_path lora_nickname rank weight_name "
        "lora_alpha",
        "LoRAPipeline.set_lora": "lora_nickname lora_path target strength merge_mode "
        "lora_alpha cache_merged",
        "Req": "",
    },
    f"{_RUN}.pipelines_core.composed_pipeline_base": {
        "ComposedPipelineBase._load_config": "",
        "ComposedPipelineBase.add_stage": "",
        "ComposedPipelineBase.add_stage_factory": "",
        "ComposedPipelineBase.component_loaders": "",
        "ComposedPipelineBase.create_pipeline_stages": "server_args",
        "ComposedPipelineBase.get_module": "",
        "ComposedPipelineBase.load_modules": "server_args loaded_modules",
    },
    f"{_RUN}.pipelines_core.schedule_batch": {
        "OutputBatch": "output error metrics trajectory_latents output_file_paths fps "
        "audio audio_sample_rate",
        "Req": "",
    },
    f"{_RUN}.pipelines_core.stages": {
        "DenoisingStage": "",
        "ImageEncodingStage": "",
        "ImageVAEEncodingStage": "",
        "TextEncodingStage": "",
        "TimestepPreparationStage": "",
        "InputValidationStage": "",
    },
    f"{_RUN}.pipelines_core.stages.base": {
        "PipelineStage._active_profile_stage_name": "",
        "PipelineStage._component_stage_name": "",
        "PipelineStage.build_dedup_fingerprint": "batch server_args",
        "PipelineStage.component_uses": "",
        "PipelineStage.progress_bar": "total batch",
        "PipelineStage.use_declared_component": "component_name module",
    },
    f"{_RUN}.platforms.plugins": {
        "HookRegistry._patched": "",
        "HookRegistry.apply_hooks": "",
        "HookRegistry.register": "target hook hook_type",
        "apply_plugin_hooks": "",
    },
    f"{_RUN}.server_args": {
        "ServerArgs": "model_path pipeline_config prompt_file_path tp_size "
        "ulysses_degree enable_cfg_parallel served_model_name",
        "get_global_server_args": "",
        "ServerArgs.add_cli_args": "parser",
        "ServerArgs.from_cli_args": "args unknown_args default_args argv",
    },
    f"{_RUN}.utils.argparse": {"FlexibleArgumentParser": "", "StoreBoolean": ""},
    f"{_RUN}.utils.hf_diffusers_utils": {
        "maybe_download_lora": "model_name_or_path weight_name",
        "maybe_download_model": "force_diffusers_model revision",
    },
    f"{_RUN}.utils.logging_utils": {"init_logger": ""},
    f"{_RUN}.utils.perf_logger": {
        "StageProfiler": "logger metrics perf_dump_path_provided record_as_step"
    },
    f"{_RUN}.utils.precision": {
        "precision_to_dtype": "",
        "resolve_component_precision": "",
    },
    f"{_RUN}.utils.trace_wrapper": {"trace_req": ""},
    "sglang.kernels.ops.attention.rotary_triton": {
        "triton_ernie45_rope_fused_inplace": "q k cos_sin_cache positions "
        "mrope_section head_size rotary_dim is_neox_style"
    },
    "sglang.cli.serve": {"serve": "args extra_argv"},
    "sglang.cli.serve_backends": {
        "SERVE_BACKEND_API_VERSION": "",
        "ServeBackend": "api_version run detect requires_model_path",
        "ServeBackendDetection": "",
        "ServeRequest": "argv model_path",
    },
    "sglang.cli.utils": {"get_is_diffusion_model": "model_path"},
    "sglang.srt.configs": {"model_config": ""},
    "sglang.srt.configs.bailing_moe_v2": {
        "BailingMM2Config": "llm_config vision_config audio_config mrope_section"
    },
    "sglang.srt.layers.attention.torch_native_backend": {
        "TorchNativeAttnBackend._run_sdpa_forward_decode": "query output k_cache "
        "v_cache req_to_token req_pool_indices seq_lens encoder_lens scaling "
        "enable_gqa causal is_cross_attn sliding_window_size",
    },
    "sglang.srt.layers.logits_processor": {
        "LogitsProcessor": "config",
        "LogitsProcessorOutput": "customized_info next_token_logits",
    },
    "sglang.srt.layers.layernorm": {"RMSNorm": "eps"},
    "sglang.srt.layers.multi_gate": {
        "multi_gate_triton_kernel": "hidden_states multi_gate_indices"
    },
    "sglang.srt.layers.quantization.base_config": {"QuantizationConfig": ""},
    "sglang.srt.layers.quantization.fp8_utils": {"apply_fp8_linear": "bias"},
    "sglang.srt.layers.radix_attention": {
        "RadixAttention": "num_heads head_dim scaling num_kv_heads layer_id",
        "RadixAttention.forward": "q k v forward_batch",
    },
    "sglang.srt.layers.vocab_parallel_embedding": {"ParallelLMHead": ""},
    "sglang.srt.managers.mm_utils": {
        "general_mm_embed_routine": "input_ids forward_batch language_model "
        "multimodal_model",
        "pad_mm_tokens": "input_ids mm_inputs",
        "prepare_mm_inputs": "input_ids forward_batch language_model kwargs "
        "multimodal_model",
    },
    "sglang.srt.managers.multimodal_processor": {"PROCESSOR_MAPPING": ""},
    "sglang.srt.managers.schedule_batch": {
        "Modality": "",
        "MultimodalDataItem": "modality feature offsets model_specific_data",
        "MultimodalDataItem.set_hash": "hash_value",
        "MultimodalProcessorOutput": "mm_items input_ids im_token_id video_token_id "
        "audio_token_id mrope_positions mrope_position_delta",
    },
    "sglang.srt.model_executor.forward_batch_info": {
        "ForwardBatch": "mm_inputs mrope_positions extend_prefix_lens_cpu "
        "extend_seq_lens_cpu",
        "PPProxyTensors": "",
    },
    "sglang.srt.model_executor.forward_context": {
        "get_req_to_token_pool": "",
        "get_token_to_kv_pool": "",
    },
    "sglang.srt.model_loader.utils": {"get_model_architecture": "model_config"},
    "sglang.srt.model_loader.weight_utils": {"default_weight_loader": ""},
    "sglang.srt.models.bailing_mm": {
        "BailingMM2NativeForConditionalGeneration": "config quant_config prefix",
        "BailingMM2NativeForConditionalGeneration.get_image_feature": "items",
    },
    "sglang.srt.models.bailing_moe": {"BailingMoESparseMoeBlock": ""},
    "sglang.srt.models.qwen2": {
        "Qwen2Attention": "hidden_size num_heads num_kv_heads layer_id rope_theta "
        "rope_scaling max_position_embeddings quant_config prefix",
        "Qwen2DecoderLayer": "config layer_id start_layer quant_config prefix "
        "alt_stream",
        "Qwen2Model": "config quant_config prefix decoder_layer_type",
    },
    "sglang.srt.models.registry": {"ModelRegistry": "", "ModelRegistry.models": ""},
    "sglang.srt.models.utils": {
        "apply_qk_norm": "q k q_norm k_norm head_dim alt_stream"
    },
    "sglang.srt.multimodal.customized_mm_processor_utils": {
        "_CUSTOMIZED_MM_PROCESSOR": "",
        "register_customized_processor": "processor_class",
    },
    "sglang.srt.multimodal.processors.base_processor": {
        "BaseMultimodalProcessor": "hf_config server_args _processor"
    },
    "sglang.srt.platforms": {"current_platform": ""},
    "sglang.srt.platforms.cpu": {"CpuSRTPlatform": ""},
    "sglang.srt.platforms.device_mixin": {"PlatformEnum": "", "PlatformEnum.OOT": ""},
    "sglang.srt.platforms.interface": {
        "PlatformCapabilities": "supports_triton graph_capture",
        "SRTPlatform.get_compile_backend": "mode",
        "SRTPlatform.get_default_attention_backend": "",
        "SRTPlatform.get_dispatch_key_name": "",
    },
    "sglang.srt.plugins": {"load_plugins": ""},
    "sglang.srt.server_args": {
        "ServerArgs.resolve_once": "",
        "prepare_server_args": "argv",
    },
    "sglang.srt.utils": {"add_prefix": ""},
    "sglang.srt.utils.hf_transformers.common": {
        "_CONFIG_REGISTRY": "",
        "download_from_hf": "allow_patterns",
        "get_rope_config": "",
    },
    "sglang.srt.plugins.hook_registry": {
        "HookRegistry": "",
        "HookType.AFTER": "",
        "HookType.AROUND": "",
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
