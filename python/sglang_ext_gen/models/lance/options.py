# SPDX-License-Identifier: Apache-2.0
"""How a Lance checkpoint may be loaded: options of the pipeline config.

One table for Python (``from_pretrained(tasks="t2i")``), ``sglang-ext-gen`` and
``sglang serve``. Imports neither torch nor SGLang.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sglang_ext_gen.diffusion.options import (
    ATTENTION,
    GRAPHS,
    MONOLITHIC,
    OF_ATTENTION,
    OWN_LOADERS,
    PARALLEL,
    QUANTIZATION,
    SEQUENCE_EXCHANGE,
    OptionRow,
    does_not_apply,
    refused,
    works,
)
from sglang_ext_gen.errors import CheckpointError, ConfigError
from sglang_ext_gen.models.lance.checkpoint import VARIANTS, LanceFiles
from sglang_ext_gen.models.lance.tasks import (
    GENERATION_TASKS,
    TASKS,
    Task,
    Variant,
)
from sglang_ext_gen.request.fields import RequestField

LOAD_OPTIONS: tuple[RequestField, ...] = (
    RequestField(
        "variant",
        "str",
        "Run every task on this checkpoint directory; by default each runs on its own.",
        choices=VARIANTS,
    ),
    RequestField(
        "tasks",
        "str",
        "Tasks to serve, separated by commas; only the weights that they need are "
        "loaded. By default all whose checkpoint directory is there.",
        max_length=200,
    ),
    RequestField(
        "vision_source",
        "str",
        "Vision tower of edits: the one in the checkpoint directory where it has one "
        "(official), or Qwen2.5-VL-ViT always.",
        choices=("checkpoint", "standalone"),
        default="checkpoint",
    ),
    RequestField(
        "uncond_positions",
        "str",
        "Positions of the branch without the user's text: as released, or counted "
        "anew.",
        choices=("released", "renumbered"),
        default="released",
    ),
    RequestField(
        "weight_format",
        "str",
        "Linears of the decoder: as they are on disk (released, the default), or "
        "quantised to FP8 row by row while they are loaded (fp8).",
        choices=("released", "fp8"),
        default="released",
    ),
    RequestField(
        "vae_tiles",
        "str",
        "Frames above 512 pixels a side go through the VAE in overlapping tiles: less "
        "memory, nearly the same result (on), or whole (off, the default).",
        choices=("off", "on"),
        default="off",
    ),
)

# What becomes of stock's options; see ``diffusion/options.py``.
STOCK_OPTIONS: tuple[OptionRow, ...] = (
    *OWN_LOADERS,
    *MONOLITHIC,
    refused(
        "this pipeline runs on one device; start one server a device",
        f"num_gpus {PARALLEL}",
        unless=(1,),
    ),
    does_not_apply("this pipeline runs on one device", SEQUENCE_EXCHANGE),
    refused(
        "attention is torch's, over a prefix of keys and values",
        ATTENTION,
        unless=("torch_sdpa",),
    ),
    does_not_apply("attention is torch's", OF_ATTENTION),
    refused(
        "a graph would serve prompts of one length alone: a prompt is a prefix of keys "
        "and values without a mask, so none can be padded",
        GRAPHS,
    ),
    refused("the linears become FP8 by --weight-format fp8", QUANTIZATION),
    refused("use --vae-tiles on", "vae_tiling"),
    works("image_encoder_cpu_offload"),
    does_not_apply("there is no text encoder", "text_encoder_cpu_offload"),
)


@dataclass(frozen=True)
class LancePlacement:
    """Which tasks a process serves, and on which checkpoint directory.

    Args:
        variants: Official task name -> checkpoint directory.
    """

    variants: dict[str, Variant]

    def variant_of(self, task: Task) -> Variant:
        """The directory that runs a task.

        Raises:
            ConfigError: The task is not served; says why.
        """
        if task.name not in self.variants:
            raise ConfigError(
                f"{task.name} is not served here: {task.variant} is missing or the "
                f"task was left out; served are {', '.join(self.variants)}"
            )
        return self.variants[task.name]

    def loaded(self) -> tuple[Variant, ...]:
        """Directories to load, in the order of the release."""
        return tuple(name for name in VARIANTS if name in self.variants.values())

    def vision(self) -> tuple[Variant, ...]:
        """Directories whose vision tower an edit needs."""
        edits = [self.variants[n] for n, task in _edits() if n in self.variants]
        return tuple(name for name in VARIANTS if name in edits)


def place_tasks(
    files: LanceFiles, variant: str | None, tasks: str | None
) -> LancePlacement:
    """Decide what is served: option, then path, then task.

    Args:
        files: The checkpoint.
        variant: Option of this name.
        tasks: Option of this name.

    Raises:
        ConfigError: An option names something that does not exist.
        CheckpointError: A directory that a named task needs is missing.
    """
    if variant is not None and variant not in VARIANTS:
        raise ConfigError(
            f"variant: {variant!r} given, expected one of {', '.join(VARIANTS)}"
        )
    fixed = files.named
    for name in VARIANTS:
        if name == variant:
            fixed = name
    names = _task_names(tasks)
    if tasks is not None or fixed is not None:
        placed: dict[str, Variant] = {}
        for name in names:
            placed[name] = fixed or TASKS[name].variant
        for chosen in set(placed.values()):
            files.folder(chosen)
        return LancePlacement(placed)
    there = files.variants()
    found: dict[str, Variant] = {
        n: TASKS[n].variant for n in names if TASKS[n].variant in there
    }
    if not found:
        raise CheckpointError(
            f"{files.root}: none of the tasks {', '.join(names)} has its checkpoint "
            f"directory ({', '.join(VARIANTS)})"
        )
    return LancePlacement(found)


def takes_sources(tasks: str | None) -> bool:
    """Whether any of the tasks encodes a picture or video.

    Args:
        tasks: Option of this name.

    Raises:
        ConfigError: It names something that does not exist.
    """
    return any(TASKS[name].source is not None for name in _task_names(tasks))


def _task_names(tasks: str | None) -> Sequence[str]:
    if tasks is None:
        return GENERATION_TASKS
    names = [name.strip() for name in tasks.split(",")]
    for name in names:
        if name not in GENERATION_TASKS:
            raise ConfigError(
                f"tasks: {name!r} given, expected some of {', '.join(GENERATION_TASKS)}"
            )
    return names


def _edits() -> list[tuple[str, Task]]:
    return [(name, task) for name, task in TASKS.items() if task.is_edit]
