# SPDX-License-Identifier: Apache-2.0
"""The image generator's parts of a Ming checkpoint, which has no ``model_index.json``.

    connector/ mlp/ transformer/ vae/ scheduler/   needed
    byt5/                                          optional: lettering
    config.json, model-*.safetensors, tokenizer    the thinker: thinker/checkpoint.py

``mlp/`` states two of its widths only by its tensors; that they fit the connector and
the thinker is checked apart. ``byt5/`` holds pickles, whose tensors are checked without
running anything; ``byt5_model/base.pt`` is never opened.
"""

from pathlib import Path

from sglang_ext_gen.checkpoint.component import (
    Component,
    check_components,
    found_by,
    problem_of,
    read_or_empty,
)
from sglang_ext_gen.models.ming_omni.config import (
    GLYPH_FILE,
    AutoencoderConfig,
    BridgeConfig,
    ConnectorConfig,
    GlyphConfig,
    SchedulerConfig,
    TransformerConfig,
)
from sglang_ext_gen.models.ming_omni.tensors import (
    bridge_specs,
    bridge_widths,
    connector_specs,
    glyph_encoder_specs,
    glyph_mapper_specs,
    transformer_specs,
    vae_specs,
)
from sglang_ext_gen.models.ming_omni.weights import (
    BRIDGE_RULES,
    CONNECTOR_RULES,
    GLYPH_ENCODER_RULES,
    GLYPH_MAPPER_RULES,
    TRANSFORMER_RULES,
    VAE_RULES,
)

_BUILD = "sglang_ext_gen.models.ming_omni.build"


# The parts of the condition encoder, a module of two files.
CONNECTOR = Component(
    "connector",
    connector_specs,
    CONNECTOR_RULES,
    ConnectorConfig,
    file="model.safetensors",
    unchecked=("lm_head.",),
)
BRIDGE = Component(
    "mlp", bridge_specs, BRIDGE_RULES, BridgeConfig, file="model.safetensors"
)
CONDITION_ENCODER = Component(
    "text_encoder",
    build=f"{_BUILD}:condition_encoder",
    folder="",
    precision="text_encoder",
    parts={"connector": CONNECTOR, "bridge": BRIDGE},
)
# The parts of the glyph encoder; their config is spread over the files of its folder.
BYT5 = Component(
    "byt5_model",
    glyph_encoder_specs,
    GLYPH_ENCODER_RULES,
    read_config=GlyphConfig.read,
    folder="",
    file="byt5_model/byt5_model.pt",
    config_file=GLYPH_FILE,
)
GLYPH_MAPPER = Component(
    "byt5_mapper",
    glyph_mapper_specs,
    GLYPH_MAPPER_RULES,
    read_config=GlyphConfig.read,
    folder="",
    file="byt5_mapper/byt5_mapper.pt",
    config_file=GLYPH_FILE,
)
GLYPH_ENCODER = Component(
    "glyph_encoder",
    build=f"{_BUILD}:glyph_encoder",
    folder="byt5",
    precision="text_encoder",
    parts={"encoder": BYT5, "mapper": GLYPH_MAPPER},
)
TRANSFORMER = Component(
    "transformer",
    transformer_specs,
    TRANSFORMER_RULES,
    TransformerConfig,
    build=f"{_BUILD}:transformer",
)
VAE = Component(
    "vae",
    vae_specs,
    VAE_RULES,
    AutoencoderConfig,
    build=f"{_BUILD}:vae",
    precision="vae",
)
# It has no weights, only a config.
SCHEDULER = Component(
    "scheduler", config=SchedulerConfig, config_file="scheduler_config.json"
)
COMPONENTS = (CONDITION_ENCODER, GLYPH_ENCODER, TRANSFORMER, VAE)


def has_glyphs(path: Path) -> bool:
    """Whether a checkpoint can letter."""
    return GLYPH_ENCODER.at(path).folder.is_dir()


def glyph_config(path: Path) -> GlyphConfig | None:
    """The config of the glyph encoder; None where a checkpoint cannot letter.

    Raises:
        CheckpointError: A file is missing or damaged.
        ConfigError: A key is unknown or missing, or asks for what we do not have.
    """
    return GLYPH_ENCODER.at(path).parts["encoder"].config if has_glyphs(path) else None


def recognises(path: Path) -> bool:
    """Whether a folder holds this generator, with or without its thinker."""
    transformer, vae = (
        read_or_empty(path / name / "config.json") for name in ("transformer", "vae")
    )
    return (
        transformer.get("_class_name") == "ZImageTransformer2DModel"
        and vae.get("_class_name", "AutoencoderKL") == "AutoencoderKL"
        and (path / "mlp" / "config.json").is_file()
        and (path / "connector").is_dir()
    )


def check_checkpoint(path: Path) -> list[str]:
    """Everything that keeps the generator from being served, one line each.

    Only JSON files and safetensors headers are read. The thinker may be elsewhere; it
    is not looked at.
    """
    if not path.is_dir():
        return [f"{path} is not a folder"]
    needed = [row for row in COMPONENTS if row is not GLYPH_ENCODER or has_glyphs(path)]
    problems = [
        *check_components(path, needed),
        *problem_of(lambda: SCHEDULER.at(path).config),
        *found_by(lambda: _disagreements(path)),
    ]
    return list(dict.fromkeys(problems))


def _disagreements(path: Path) -> list[str]:
    """Numbers that two parts must share and do not."""
    connector, bridge = CONNECTOR.at(path), BRIDGE.at(path)
    transformer = TRANSFORMER.at(path).config
    connector_width, thinker_width = bridge_widths(bridge.stored)
    pairs = [
        (
            "mlp/: height of proj_in.weight",
            connector_width,
            "hidden_size of connector/config.json",
            connector.config.hidden_size,
        ),
        (
            "transformer/config.json: cap_feat_dim",
            transformer.cap_feat_dim,
            "diffusion_c_input_dim of mlp/config.json",
            bridge.config.diffusion_c_input_dim,
        ),
        (
            "transformer/config.json: in_channels",
            transformer.in_channels,
            "latent_channels of vae/config.json",
            VAE.at(path).config.latent_channels,
        ),
    ]
    if (glyphs := glyph_config(path)) is not None:
        pairs.append(
            (
                f"byt5/{GLYPH_FILE}: sdxl_channels",
                glyphs.width,
                "diffusion_c_input_dim of mlp/config.json",
                bridge.config.diffusion_c_input_dim,
            )
        )
    root = read_or_empty(path / "config.json")
    if isinstance(root.get("llm_config"), dict):
        pairs.append(
            (
                "mlp/: width of proj_in.weight",
                thinker_width,
                "hidden_size of the thinker's config.json",
                root["llm_config"].get("hidden_size"),
            )
        )
    return [
        f"{one} is {value}, but {other} is {other_value}"
        for one, value, other, other_value in pairs
        if value != other_value
    ]
