# SPDX-License-Identifier: Apache-2.0
"""The image generator's part of a Ming checkpoint on disk, checked without loading.

Source: the folder layout of the release, which has no ``model_index.json``:

    connector/  mlp/  transformer/  vae/  scheduler/   needed
    byt5/                                              optional: lettering
    config.json, model-*.safetensors, tokenizer        the thinker: thinker/layout.py

Pickles are only looked for here; what is in them is checked when they are loaded, and
``byt5_model/base.pt`` is never opened. torch is not imported.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

from sglang_ext_gen.checkpoint.autoencoder_layout import autoencoder_kl_specs
from sglang_ext_gen.checkpoint.layout import (
    TensorSpec,
    check_tensors,
    read_json,
    read_tensors,
)
from sglang_ext_gen.errors import CheckpointError, ConfigError
from sglang_ext_gen.models.ming_omni.config import (
    AutoencoderConfig,
    BridgeConfig,
    ConnectorConfig,
    GlyphConfig,
    SchedulerConfig,
    TransformerConfig,
    glyph_section,
)
from sglang_ext_gen.models.ming_omni.tensors import (
    bridge_specs,
    connector_specs,
    transformer_specs,
)
from sglang_ext_gen.models.ming_omni.weights import (
    BRIDGE_FILE,
    CONNECTOR_FILE,
    GLYPH_CONFIG,
    GLYPH_ENCODER,
    GLYPH_MAPPER,
    TRANSFORMER_FILE,
    VAE_FILE,
)

# Far above any release: keeps a wrong layer count from filling the memory.
_MAX_TENSORS = 100_000
_SHOWN_PROBLEMS = 5


@dataclass(frozen=True)
class MingFiles:
    """The parts of a checkpoint, read as they are asked for.

    Args:
        root: Folder of the checkpoint.
    """

    root: Path

    @cached_property
    def connector(self) -> ConnectorConfig:
        """``connector/config.json``."""
        return ConnectorConfig.from_dict(*self._config("connector/config.json"))

    @cached_property
    def bridge(self) -> BridgeConfig:
        """``mlp/config.json``."""
        return BridgeConfig.from_dict(*self._config("mlp/config.json"))

    @cached_property
    def transformer(self) -> TransformerConfig:
        """``transformer/config.json``."""
        return TransformerConfig.from_dict(*self._config("transformer/config.json"))

    @cached_property
    def vae(self) -> AutoencoderConfig:
        """``vae/config.json``."""
        return AutoencoderConfig.from_dict(*self._config("vae/config.json"))

    @cached_property
    def scheduler(self) -> SchedulerConfig:
        """``scheduler/scheduler_config.json``."""
        return SchedulerConfig.from_dict(
            *self._config("scheduler/scheduler_config.json")
        )

    @property
    def has_glyphs(self) -> bool:
        """Whether the checkpoint can letter."""
        return self.byt5.is_dir()

    @property
    def byt5(self) -> Path:
        """Folder of the glyph encoder."""
        return self.root / "byt5"

    @cached_property
    def glyphs(self) -> GlyphConfig:
        """``byt5/byt5.json`` and the T5 configuration that it names."""
        values, where = self._config(f"byt5/{GLYPH_CONFIG}")
        t5 = f"byt5/{glyph_section(values, where)['byt5_ckpt_path']}/config.json"
        return GlyphConfig.from_dicts(values, where, *self._config(t5))

    @cached_property
    def thinker_width(self) -> int:
        """Width of the thinker's hidden states, which ``mlp/`` takes.

        Raises:
            CheckpointError: The tensor that tells it is missing.
        """
        stored = read_tensors(self.root / "mlp" / BRIDGE_FILE)
        if "proj_in.weight" not in stored or len(stored["proj_in.weight"].shape) != 2:
            raise CheckpointError("mlp/: proj_in.weight is missing or no matrix")
        return stored["proj_in.weight"].shape[1]

    def _config(self, name: str) -> tuple[dict[str, Any], str]:
        return read_json(self.root / name), name


def recognises(path: Path) -> bool:
    """Whether a folder holds this generator, with or without its thinker."""
    transformer, vae = (
        _read_or_empty(path / name / "config.json") for name in ("transformer", "vae")
    )
    return (
        transformer.get("_class_name") == "ZImageTransformer2DModel"
        and vae.get("_class_name", "AutoencoderKL") == "AutoencoderKL"
        and (path / "mlp" / "config.json").is_file()
        and (path / "connector").is_dir()
    )


def glyph_bytes(path: Path) -> int | None:
    """How many bytes can be lettered, their end included; None without ``byt5/``."""
    files = MingFiles(path)
    return files.glyphs.max_length if files.has_glyphs else None


def refuse_damage(path: Path) -> None:
    """Raise unless ``check_checkpoint`` finds nothing.

    Raises:
        CheckpointError: Names the first problems and how to see all of them.
    """
    problems = check_checkpoint(path)
    if problems:
        shown = "; ".join(problems[:_SHOWN_PROBLEMS])
        raise CheckpointError(
            f"{path}: {len(problems)} problem(s): {shown}. Run "
            f"`sglang-ext-gen doctor --model {path}` for all of them"
        )


def check_checkpoint(path: Path) -> list[str]:
    """Everything that keeps the generator from being served, one line each.

    Only JSON files and safetensors headers are read. The thinker may be elsewhere; it
    is not looked at.
    """
    if not path.is_dir():
        return [f"{path} is not a folder"]
    files = MingFiles(path)
    checks: list[Callable[[MingFiles], list[str]]] = [
        _check_connector,
        _check_bridge,
        _check_transformer,
        _check_vae,
        _check_scheduler,
        _check_agreement,
    ]
    if files.has_glyphs:
        checks.append(_check_glyphs)
    problems = [line for check in checks for line in _collect(partial(check, files))]
    return list(dict.fromkeys(problems))


def _collect(check: Callable[[], list[str]]) -> list[str]:
    try:
        return check()
    except (CheckpointError, ConfigError) as error:
        return [str(error)]


def _check_connector(files: MingFiles) -> list[str]:
    return check_tensors(
        _listed(connector_specs(files.connector), "connector/config.json"),
        read_tensors(files.root / "connector" / CONNECTOR_FILE),
        where="connector/",
        unchecked=("lm_head.",),
    )


def _check_bridge(files: MingFiles) -> list[str]:
    specs = bridge_specs(files.bridge, files.connector, files.thinker_width)
    stored = read_tensors(files.root / "mlp" / BRIDGE_FILE)
    return check_tensors(_listed(specs, "mlp/config.json"), stored, where="mlp/")


def _check_transformer(files: MingFiles) -> list[str]:
    return check_tensors(
        _listed(transformer_specs(files.transformer), "transformer/config.json"),
        read_tensors(files.root / "transformer" / TRANSFORMER_FILE),
        where="transformer/",
    )


def _check_vae(files: MingFiles) -> list[str]:
    assert files.vae.latent_channels, "read strictly"
    config = {
        "mid_block_add_attention": files.vae.mid_block_add_attention,
        **read_json(files.root / "vae" / "config.json"),
    }
    specs = _listed(autoencoder_kl_specs(config), "vae/config.json")
    stored = read_tensors(files.root / "vae" / VAE_FILE)
    return check_tensors(specs, stored, where="vae/")


def _check_scheduler(files: MingFiles) -> list[str]:
    assert files.scheduler.num_train_timesteps, "read strictly"
    return []


def _check_glyphs(files: MingFiles) -> list[str]:
    config, problems = files.glyphs, []
    for name in (GLYPH_ENCODER, GLYPH_MAPPER):
        forms = [files.byt5 / f"{name}{suffix}" for suffix in (".safetensors", ".pt")]
        if not any(form.is_file() for form in forms):
            problems.append(f"{forms[1]} is missing")
    for name in (config.color_file, config.font_file):
        if name is not None:
            read_json(files.byt5 / name)
    return problems


def _check_agreement(files: MingFiles) -> list[str]:
    """Numbers that two parts must share."""
    width = files.bridge.diffusion_c_input_dim
    pairs = [
        (
            "transformer/config.json: cap_feat_dim",
            files.transformer.cap_feat_dim,
            "diffusion_c_input_dim of mlp/config.json",
            width,
        ),
        (
            "transformer/config.json: in_channels",
            files.transformer.in_channels,
            "latent_channels of vae/config.json",
            files.vae.latent_channels,
        ),
    ]
    if files.has_glyphs:
        pairs.append(
            (
                f"byt5/{GLYPH_CONFIG}: sdxl_channels",
                files.glyphs.width,
                "diffusion_c_input_dim of mlp/config.json",
                width,
            )
        )
    root = _read_or_empty(files.root / "config.json")
    if "llm_config" in root:
        pairs.append(
            (
                "mlp/: width of proj_in.weight",
                files.thinker_width,
                "hidden_size of the thinker's config.json",
                root["llm_config"].get("hidden_size"),
            )
        )
    return [
        f"{one} is {value}, but {other} is {other_value}"
        for one, value, other, other_value in pairs
        if value != other_value
    ]


def _listed(specs: Iterable[TensorSpec], where: str) -> list[TensorSpec]:
    """All specs; ``where`` says which file their number comes from."""
    listed = list(islice(specs, _MAX_TENSORS + 1))
    if len(listed) > _MAX_TENSORS:
        raise ConfigError(f"{where}: it describes over {_MAX_TENSORS} tensors")
    return listed


def _read_or_empty(file: Path) -> dict[str, Any]:
    try:
        return read_json(file)
    except CheckpointError:
        return {}
