# SPDX-License-Identifier: Apache-2.0
"""The tensors of the thinker: names and shapes.

Source: the names of the released index, with the sizes of its ``config.json``.
Independent of ``weights.py`` and of our modules. The learnable query tokens are in
``mlp/``, among tensors of the image generator: ``../tensors.py``.
"""

from collections.abc import Iterator

from sglang_ext_gen.checkpoint.component import Stored
from sglang_ext_gen.checkpoint.layout import TensorSpec
from sglang_ext_gen.models.ming_omni.thinker.released_config import (
    AudioTowerConfig,
    DecoderConfig,
    ReleasedThinkerConfig,
    VisionConfig,
)


def thinker_specs(
    config: ReleasedThinkerConfig, stored: Stored
) -> Iterator[TensorSpec]:
    """Every tensor of the root shards."""
    yield from _decoder(config.llm_config)
    yield from _vision(config.vision_config)
    hidden = config.llm_config.hidden_size
    for layer in range(config.mlp_depth):
        width = config.vision_config.out_hidden_size if layer == 0 else hidden
        yield from _linear(f"linear_proj.{2 * layer}", hidden, width)
    yield from _audio(config.audio_config, hidden)


def _decoder(llm: DecoderConfig) -> Iterator[TensorSpec]:
    hidden = llm.hidden_size
    yield TensorSpec("model.model.word_embeddings.weight", (llm.vocab_size, hidden))
    yield TensorSpec("model.model.norm.weight", (hidden,))
    yield TensorSpec("model.lm_head.weight", (llm.vocab_size, hidden))
    for index in range(llm.num_hidden_layers):
        layer = f"model.model.layers.{index}"
        yield TensorSpec(f"{layer}.input_layernorm.weight", (hidden,))
        yield TensorSpec(f"{layer}.post_attention_layernorm.weight", (hidden,))
        yield from _attention(f"{layer}.attention", llm)
        if index < llm.first_k_dense_replace:
            yield from _gated(f"{layer}.mlp", llm.intermediate_size, hidden)
        else:
            yield from _experts(f"{layer}.mlp", llm)


def _attention(name: str, llm: DecoderConfig) -> Iterator[TensorSpec]:
    hidden, heads, head_dim = llm.hidden_size, llm.num_attention_heads, llm.head_dim
    rows = (heads + 2 * llm.num_key_value_heads) * head_dim
    yield TensorSpec(f"{name}.query_key_value.weight", (rows, hidden))
    yield TensorSpec(f"{name}.q_norm.weight", (head_dim,))
    yield TensorSpec(f"{name}.k_norm.weight", (head_dim,))
    yield TensorSpec(f"{name}.dense.weight", (hidden, heads * head_dim))


def _experts(name: str, llm: DecoderConfig) -> Iterator[TensorSpec]:
    hidden, experts = llm.hidden_size, llm.num_experts
    width = llm.moe_intermediate_size
    for gate in ("gate", "image_gate", "audio_gate"):
        yield TensorSpec(f"{name}.{gate}.weight", (experts, hidden))
        yield TensorSpec(f"{name}.{gate}.expert_bias", (experts,))
    for expert in range(experts):
        yield from _gated(f"{name}.experts.{expert}", width, hidden)
    shared = width * llm.num_shared_experts
    yield from _gated(f"{name}.shared_experts", shared, hidden)


def _gated(name: str, width: int, hidden: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.gate_proj.weight", (width, hidden))
    yield TensorSpec(f"{name}.up_proj.weight", (width, hidden))
    yield TensorSpec(f"{name}.down_proj.weight", (hidden, width))


def _vision(vision: VisionConfig) -> Iterator[TensorSpec]:
    hidden, patch = vision.hidden_size, vision.patch_size
    kernel = (vision.in_channels, vision.temporal_patch_size, patch, patch)
    yield TensorSpec("vision.patch_embed.proj.weight", (hidden, *kernel))
    yield TensorSpec("vision.patch_embed.proj.bias", (hidden,))
    positions = vision.num_position_embeddings
    yield TensorSpec("vision.pos_embed.weight", (positions, hidden))
    for index in range(vision.depth):
        block, width = f"vision.blocks.{index}", vision.intermediate_size
        yield from _norm(f"{block}.norm1", hidden)
        yield from _norm(f"{block}.norm2", hidden)
        yield from _linear(f"{block}.attn.qkv", 3 * hidden, hidden)
        yield from _linear(f"{block}.attn.proj", hidden, hidden)
        yield from _linear(f"{block}.mlp.linear_fc1", width, hidden)
        yield from _linear(f"{block}.mlp.linear_fc2", hidden, width)
    merged = hidden * vision.spatial_merge_size**2
    mergers = [("vision.merger", hidden)] + [
        (f"vision.deepstack_merger_list.{index}", merged)
        for index in range(len(vision.deepstack_visual_indexes))
    ]
    for merger, norm_width in mergers:
        yield from _norm(f"{merger}.norm", norm_width)
        yield from _linear(f"{merger}.linear_fc1", merged, merged)
        yield from _linear(f"{merger}.linear_fc2", vision.out_hidden_size, merged)


def _audio(audio: AudioTowerConfig, hidden: int) -> Iterator[TensorSpec]:
    whisper = audio.whisper_encoder_config
    state = whisper.n_state
    for name, inputs in (("conv1", whisper.n_mels), ("conv2", state)):
        yield TensorSpec(f"audio.{name}.weight", (state, inputs, 3))
        yield TensorSpec(f"audio.{name}.bias", (state,))
    yield TensorSpec("audio.positional_embedding", (whisper.n_ctx, state))
    for index in range(whisper.n_layer):
        block = f"audio.blocks.{index}"
        yield from _norm(f"{block}.attn_ln", state)
        yield from _norm(f"{block}.mlp_ln", state)
        for part in ("query", "value", "out"):
            yield from _linear(f"{block}.attn.{part}", state, state)
        yield TensorSpec(f"{block}.attn.key.weight", (state, state))
        yield from _linear(f"{block}.mlp.0", 4 * state, state)
        yield from _linear(f"{block}.mlp.2", state, 4 * state)
    yield from _norm("audio.ln_post", state)
    kernel = (hidden, state, audio.ds_kernel_size)
    yield TensorSpec("linear_proj_audio.0.weight", kernel)
    yield TensorSpec("linear_proj_audio.0.bias", (hidden,))
    yield from _linear("linear_proj_audio.3", hidden, hidden)


def _linear(name: str, outputs: int, inputs: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", (outputs, inputs))
    yield TensorSpec(f"{name}.bias", (outputs,))


def _norm(name: str, width: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", (width,))
    yield TensorSpec(f"{name}.bias", (width,))
