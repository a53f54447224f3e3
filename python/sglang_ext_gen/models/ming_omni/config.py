# SPDX-License-Identifier: Apache-2.0
"""Architecture of the image generator, read strictly from the released files.

Source: ``connector/``, ``mlp/``, ``transformer/``, ``vae/``, ``scheduler/`` and
``byt5/`` of the release. Where a key is missing the official loader's default holds,
which for ``mlp/config.json`` is never the released value. Imports nothing heavy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from sglang_ext_gen.checkpoint.layout import read_json
from sglang_ext_gen.checkpoint.released_config import (
    StrictConfig,
    refuse_unknown_keys,
    require,
    require_values,
)
from sglang_ext_gen.errors import ConfigError

# Token counts of both streams of the transformer are padded to a multiple of this.
TOKEN_MULTIPLE = 32
# Width of the time embedding that modulates the blocks, at most.
MODULATION_WIDTH = 256
TIME_FREQUENCIES, TIME_HIDDEN = 256, 1024
PATCH = 2
# Of the VAE; each but the last halves the picture, to 8 pixels a latent.
VAE_STAGES = 4
# Of a mlp/config.json that names none, as in the official code.
DEFAULT_SCALES = (4, 8, 16)
# In byt5/.
GLYPH_FILE = "byt5.json"
# ``cn-Kai`` has a token of its own language; any other prefix has none.
_LANGUAGES = ("cn", "en", "jp", "kr")

Values = Mapping[str, Any]


def default_head_dim(values: Values, where: str) -> int:
    """Width of a head where a config does not state it.

    Raises:
        ConfigError: The sizes that give it are missing or no sizes.
    """
    sizes = {
        key: require(values, key, where)
        for key in ("hidden_size", "num_attention_heads")
    }
    for key, size in sizes.items():
        if type(size) is not int or size <= 0:
            raise ConfigError(
                f"{where}: {key} is {size!r}, expected a positive integer"
            )
    return sizes["hidden_size"] // sizes["num_attention_heads"]


_METADATA = {
    "_class_name": "checked above",
    "_diffusers_version": "says who wrote the file",
    "_name_or_path": "says where the file came from",
}
_CONNECTOR_NORM = {"connector_norm": "a further norm behind the connector"}


@dataclass(frozen=True)
class ConnectorConfig(StrictConfig):
    """The connector: a Qwen2 decoder that is run without a causal mask."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float

    fixed: ClassVar[Values] = {
        "hidden_act": "silu",
        "rope_scaling": None,
        "use_sliding_window": False,
        "model_type": "qwen2",
    }
    off: ClassVar[Mapping[str, str]] = _CONNECTOR_NORM
    ignored: ClassVar[Values] = {
        "_attn_implementation_autoset": "chosen here",
        "_name_or_path": "says where the file came from",
        "architectures": "only the base model is used",
        "attention_dropout": "inference",
        "bos_token_id": "the connector sees no tokens",
        "dtype": "precision is chosen at run time",
        "eos_token_id": "the connector sees no tokens",
        "initializer_range": "training",
        "layer_types": "required to be full attention",
        "max_position_embeddings": "there are as many positions as query tokens",
        "max_window_layers": "there is no sliding window",
        "pad_token_id": "the connector sees no tokens",
        "sliding_window": "there is no sliding window",
        "tie_word_embeddings": "the language head is not used",
        "torch_dtype": "older spelling of dtype",
        "transformers_version": "says who wrote the file",
        "use_cache": "one forward pass",
        "use_mrope": "text positions are equal on all axes",
    }

    @classmethod
    def from_dict(cls, values: Values, where: str) -> Self:
        """Read ``connector/config.json`` (Transformers 4 or 5 style).

        Raises:
            ConfigError: A key is unknown or missing, or asks for what we do not have.
        """
        flat = dict(values)
        rope = flat.pop("rope_parameters", None) or {}
        if not isinstance(rope, dict):
            raise ConfigError(f"{where}: rope_parameters is {rope!r}, not an object")
        refuse_unknown_keys(rope, ("rope_theta", "rope_type"), where)
        require_values(rope, {"rope_type": "default"}, where)
        if "rope_theta" in rope:
            flat["rope_theta"] = rope["rope_theta"]
        layers = require(flat, "num_hidden_layers", where)
        types = flat.get("layer_types")
        full = ["full_attention"] * len(types) if isinstance(types, list) else None
        if types is not None and (types != full or len(types) != layers):
            raise ConfigError(f"{where}: layer_types is {types!r}, expected full ones")
        if not flat.get("head_dim"):
            flat["head_dim"] = default_head_dim(flat, where)
        return super().from_dict(flat, where)


@dataclass(frozen=True)
class BridgeConfig(StrictConfig):
    """``mlp/config.json``: how query states become the transformer's caption.

    Args:
        diffusion_c_input_dim: Width of a caption row.
        img_gen_scales: Sides of the query blocks; the last one is used.
        text_encoder_norm: Whether caption rows are normalised and scaled.
    """

    diffusion_c_input_dim: int
    img_gen_scales: tuple[int, ...]
    text_encoder_norm: bool

    defaults: ClassVar[Values] = {
        "diffusion_c_input_dim": 2048,
        "img_gen_scales": list(DEFAULT_SCALES),
        "text_encoder_norm": False,
    }
    off: ClassVar[Mapping[str, str]] = _CONNECTOR_NORM
    ignored: ClassVar[Values] = {
        "_name_or_path": "says where the file came from",
        "architectures": "there is one kind",
        "dtype": "precision is chosen at run time",
        "model_type": "there is one kind",
        "torch_dtype": "precision is chosen at run time",
        "transformers_version": "says who wrote the file",
    }

    @property
    def num_query_tokens(self) -> int:
        """Rows of the last scale."""
        return self.img_gen_scales[-1] ** 2

    @classmethod
    def from_dict(cls, values: Values, where: str) -> Self:
        """Read the file.

        Raises:
            ConfigError: A key is unknown, or the file describes another generator.
        """
        flat = {"dit_type": "sd3", "use_identity_mlp": False, **values}
        if "zimage" not in str(flat.pop("dit_type")):
            raise ConfigError(
                f"{where}: dit_type is {values.get('dit_type', 'sd3')!r}, expected "
                "one with 'zimage'"
            )
        if flat.pop("use_identity_mlp") is not True:
            raise ConfigError(
                f"{where}: use_identity_mlp is not true; the release has no further "
                "MLP behind the connector, and this package none either"
            )
        return super().from_dict(flat, where)


@dataclass(frozen=True)
class TransformerConfig(StrictConfig):
    """The Z-Image transformer."""

    in_channels: int
    dim: int
    n_layers: int
    n_refiner_layers: int
    n_heads: int
    norm_eps: float
    cap_feat_dim: int
    rope_theta: float
    t_scale: float
    axes_dims: tuple[int, int, int]
    axes_lens: tuple[int, int, int]

    fixed: ClassVar[Values] = {
        "all_patch_size": [PATCH],
        "all_f_patch_size": [1],
        "qk_norm": True,
        "siglip_feat_dim": None,
        "_class_name": "ZImageTransformer2DModel",
    }
    ignored: ClassVar[Values] = {**_METADATA, "n_kv_heads": "required to be n_heads"}

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def ffn_dim(self) -> int:
        """Width of the feed-forward layers, by the model's own rule."""
        return int(self.dim / 3 * 8)

    @property
    def modulation_width(self) -> int:
        return min(self.dim, MODULATION_WIDTH)

    @classmethod
    def from_dict(cls, values: Values, where: str) -> Self:
        """Read ``transformer/config.json``.

        Raises:
            ConfigError: A key is unknown or missing, or asks for what we do not have.
        """
        require_values(values, {"n_kv_heads": values.get("n_heads")}, where)
        config = super().from_dict(values, where)
        if config.dim % config.n_heads or sum(config.axes_dims) != config.head_dim:
            raise ConfigError(
                f"{where}: dim {config.dim} over {config.n_heads} heads does not give "
                f"heads of axes_dims {config.axes_dims}"
            )
        if any(size % 2 for size in config.axes_dims):
            raise ConfigError(f"{where}: axes_dims {config.axes_dims} must be even")
        return config


@dataclass(frozen=True)
class AutoencoderConfig(StrictConfig):
    """The VAE, diffusers' AutoencoderKL."""

    in_channels: int
    out_channels: int
    latent_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    norm_num_groups: int
    sample_size: int
    scaling_factor: float
    shift_factor: float
    mid_block_add_attention: bool

    fixed: ClassVar[Values] = {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "down_block_types": ["DownEncoderBlock2D"] * VAE_STAGES,
        "up_block_types": ["UpDecoderBlock2D"] * VAE_STAGES,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "latents_mean": None,
        "latents_std": None,
        "in_channels": 3,
        "out_channels": 3,
    }
    defaults: ClassVar[Values] = {"mid_block_add_attention": True}
    ignored: ClassVar[Values] = {
        **_METADATA,
        "force_upcast": "the official pipeline ignores it; precision is a choice",
    }

    @classmethod
    def from_dict(cls, values: Values, where: str) -> Self:
        """Read ``vae/config.json``.

        Raises:
            ConfigError: A key is unknown or missing, or asks for what we do not have.
        """
        config = super().from_dict(values, where)
        stages = len(config.block_out_channels)
        if stages != VAE_STAGES:
            raise ConfigError(
                f"{where}: block_out_channels has {stages} stages, "
                f"expected {VAE_STAGES}"
            )
        return config


@dataclass(frozen=True)
class SchedulerConfig(StrictConfig):
    """Flow matching with Euler steps; the shift is static in the release."""

    num_train_timesteps: int
    shift: float
    use_dynamic_shifting: bool

    defaults: ClassVar[Values] = {
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "use_dynamic_shifting": False,
    }
    # Options of diffusers' scheduler that would change the noise levels.
    fixed: ClassVar[Values] = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "invert_sigmas": False,
        "shift_terminal": None,
        "stochastic_sampling": False,
        "time_shift_type": "exponential",
        "use_beta_sigmas": False,
        "use_exponential_sigmas": False,
        "use_karras_sigmas": False,
    }
    ignored: ClassVar[Values] = {
        **_METADATA,
        "base_image_seq_len": "constants of the official pipeline are used",
        "base_shift": "constants of the official pipeline are used",
        "max_image_seq_len": "constants of the official pipeline are used",
        "max_shift": "constants of the official pipeline are used",
    }


@dataclass(frozen=True)
class GlyphVocabulary(StrictConfig):
    """``byt5_config`` of ``byt5.json``: files, and which tokens there are."""

    byt5_ckpt_path: str
    font_ann_path: str
    color_ann_path: str
    special_token: bool
    color_special_token: bool
    font_special_token: bool
    multilingual: bool

    defaults: ClassVar[Values] = {
        "special_token": False,
        "color_special_token": False,
        "font_special_token": False,
        "multilingual": False,
    }
    ignored: ClassVar[Values] = {"byt5_name": "the files count"}

    def tokens(self, folder: Path) -> tuple[str, ...]:
        """Tokens behind ByT5's own, in order, each once.

        Args:
            folder: ``byt5/``, of which the tables of colors and fonts are read.

        Raises:
            CheckpointError: One is missing or damaged.
        """
        tokens: list[str] = []
        if self.special_token and self.color_special_token:
            colors = read_json(folder / self.color_ann_path)
            tokens += [f"<color-{index}>" for index in range(len(colors))]
        if self.special_token and self.font_special_token:
            for name, index in read_json(folder / self.font_ann_path).items():
                language = name.partition("-")[0]
                has_language = self.multilingual and language in _LANGUAGES
                prefix = f"{language}-" if has_language else ""
                tokens.append(f"<{prefix}font-{index}>")
        return tuple(dict.fromkeys(tokens))


@dataclass(frozen=True)
class GlyphMapperConfig(StrictConfig):
    """``byt5_mapper_config`` of ``byt5.json``."""

    num_layers: int
    sdxl_channels: int


@dataclass(frozen=True)
class T5Sizes(StrictConfig):
    """The T5 configuration beside ByT5's tokenizer, as Transformers names it."""

    d_model: int
    d_kv: int
    d_ff: int
    num_heads: int
    num_layers: int
    vocab_size: int
    layer_norm_epsilon: float
    relative_attention_num_buckets: int
    relative_attention_max_distance: int
    feed_forward_proj: str

    # ByT5's own file, which is older than some keys, leaves these out.
    defaults: ClassVar[Values] = {
        "layer_norm_epsilon": 1e-6,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
    }
    fixed: ClassVar[Values] = {
        "model_type": "t5",
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu_new",
        "is_gated_act": True,
    }
    ignored: ClassVar[Values] = {
        "_name_or_path": "says where the file came from",
        "architectures": "only the encoder is used",
        "classifier_dropout": "inference",
        "decoder_start_token_id": "only the encoder is used",
        "dropout_rate": "inference",
        "dtype": "precision is chosen at run time",
        "eos_token_id": "tokens come from the tokenizer",
        "gradient_checkpointing": "inference",
        "initializer_factor": "training",
        "is_decoder": "only the encoder is used",
        "is_encoder_decoder": "only the encoder is used",
        "num_decoder_layers": "only the encoder is used",
        "output_past": "only the encoder is used",
        "pad_token_id": "tokens come from the tokenizer",
        "scale_decoder_outputs": "only the encoder is used",
        "tie_word_embeddings": "only the encoder is used",
        "tokenizer_class": "ByT5",
        "torch_dtype": "older spelling of dtype",
        "transformers_version": "says who wrote the file",
        "use_cache": "one forward pass",
    }


@dataclass(frozen=True)
class GlyphFile(StrictConfig):
    """``byt5.json``: the glyph encoder's parts."""

    byt5_max_length: int
    byt5_config: GlyphVocabulary
    byt5_mapper_config: GlyphMapperConfig

    fixed: ClassVar[Values] = {"byt5_mapper_type": "T5EncoderBlockByT5Mapper"}


@dataclass(frozen=True)
class GlyphConfig:
    """The glyph encoder: ByT5 and its mapper, from the files in ``byt5/``.

    Args:
        max_length: Tokens, padding included.
        width: Of the mapper's output.
        mapper_layers: Blocks of the mapper.
        tokenizer_folder: Inside ``byt5/``.
        tokens: Those behind ByT5's own: colors, then fonts.
        t5: Sizes of ByT5 and, but for its layers, of the mapper.
    """

    max_length: int
    width: int
    mapper_layers: int
    tokenizer_folder: str
    tokens: tuple[str, ...]
    t5: T5Sizes

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding: bytes, colors, fonts."""
        return self.t5.vocab_size + len(self.tokens)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read ``byt5.json`` and the files that it names.

        Raises:
            CheckpointError: A file is missing or damaged.
            ConfigError: A key is unknown or missing, or asks for what we do not have.
        """
        where = f"{folder.name}/{GLYPH_FILE}"
        file = GlyphFile.from_dict(read_json(folder / GLYPH_FILE), where)
        tokenizer = file.byt5_config.byt5_ckpt_path
        t5 = Path(tokenizer) / "config.json"
        return cls(
            max_length=file.byt5_max_length,
            width=file.byt5_mapper_config.sdxl_channels,
            mapper_layers=file.byt5_mapper_config.num_layers,
            tokenizer_folder=tokenizer,
            tokens=file.byt5_config.tokens(folder),
            t5=T5Sizes.from_dict(read_json(folder / t5), f"{folder.name}/{t5}"),
        )
