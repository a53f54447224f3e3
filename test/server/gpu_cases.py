# SPDX-License-Identifier: Apache-2.0
"""What is tested on a GPU: one declared case a row, run by ``test_gpu.py``.

To add a family, add a tuple of cases and name it in ``CASES``. A case says which
checkpoint, how it is loaded, what is asked of it, what the picture must agree with, and
what it cost when it was last measured. Figures that nobody measured are None.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from conftest import GOLDEN_ROOT
from sglang_ext_gen.envs import EnvironmentVariable

IDEOGRAM4_WEIGHTS = EnvironmentVariable(
    name="EXT_GEN_TEST_IDEOGRAM4",
    kind="directory",
    default="",
    effect="Released weights of ideogram-ai/ideogram-4-fp8; the cases that need them "
    "are skipped where it is not set.",
)
MING_WEIGHTS = EnvironmentVariable(
    name="EXT_GEN_TEST_MING_OMNI",
    kind="directory",
    default="",
    effect="Released weights of inclusionAI/Ming-flash-omni-2.0; the cases that need "
    "them are skipped where it is not set.",
)
LANCE_WEIGHTS = EnvironmentVariable(
    name="EXT_GEN_TEST_LANCE",
    kind="directory",
    default="",
    effect="Released weights of bytedance-research/Lance; the cases that need them are "
    "skipped where it is not set.",
)
# Their prefix is not the package's: that one is for what the package itself reads.
VARIABLES: tuple[EnvironmentVariable, ...] = (
    IDEOGRAM4_WEIGHTS,
    MING_WEIGHTS,
    LANCE_WEIGHTS,
)

FP8_GEMM_CAPABILITY = (8, 9)  # first CUDA capability with FP8 tensor cores (Ada)


@dataclass(frozen=True)
class Tiny:
    """A checkpoint that ``sglang-ext-gen tiny`` writes."""

    family: str


@dataclass(frozen=True)
class Agreement:
    """What the picture is compared with.

    Args:
        reference: A PNG file, or the name of an earlier case of ``CASES``.
        min_psnr_db: Lowest peak signal-to-noise ratio of the 8-bit pictures.
    """

    reference: Path | str
    min_psnr_db: float


@dataclass(frozen=True)
class Baseline:
    """What a case cost when it was measured; compared on the same hardware only.

    Args:
        hardware: As ``torch.cuda.get_device_name()`` says.
        date: Of the measurement, year-month-day.
        step_ms: Mean denoising step.
        peak_memory_mib: Most GPU memory that was reserved.
    """

    hardware: str
    date: str
    step_ms: float
    peak_memory_mib: float


@dataclass(frozen=True)
class GpuCase:
    """One run of ``sglang-ext-gen generate``.

    Args:
        name: Unique; starts with the family's name.
        model: A checkpoint, one to be written, or the variable that says where
            released weights are.
        request: Fields of the family's request.
        flags: How it is loaded: flags of ``generate`` and of SGLang's server.
        agreements: What the picture must agree with.
        num_gpus: How many GPUs it needs.
        min_capability: Lowest CUDA capability.
        baseline: Performance on record, or None: not measured.
    """

    name: str
    model: Path | Tiny | EnvironmentVariable
    request: Mapping[str, Any]
    flags: tuple[str, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    num_gpus: int = 1
    min_capability: tuple[int, int] = (0, 0)
    baseline: Baseline | None = None


@dataclass(frozen=True)
class GpuChat:
    """One question to a language model, through ``sglang.launch_server``.

    Args:
        name: Unique; starts with the family's name.
        model: A checkpoint, or the variable that says where released weights are.
        question: Text of the user's turn.
        image: A picture before the text.
        flags: Of the server.
        answer: What it must say, greedily; None asks for any text.
        max_tokens: Length of the answer.
        num_gpus: How many GPUs it needs.
    """

    name: str
    model: Path | EnvironmentVariable
    question: str
    image: Path | None = None
    flags: tuple[str, ...] = ()
    answer: str | None = None
    max_tokens: int = 64
    num_gpus: int = 1


# --- Ideogram 4 ---------------------------------------------------------------------

_GOLDEN = GOLDEN_ROOT / "ideogram4"
_TINY = _GOLDEN / "ideogram-4-fp8-tiny"
_WRITTEN = Tiny("ideogram4")  # four heads; the golden one has three
_PNG = _GOLDEN / "golden.png"
_CAPTION = (
    '{"high_level_description":"A red circle on the sand",'
    '"compositional_deconstruction":{"background":"flat beige",'
    '"elements":[{"type":"obj","desc":"the circle"}]}}'
)
_SMALL = {"prompt": _CAPTION, "width": 256, "height": 256, "seed": 42}
_LARGE = {"prompt": _CAPTION, "width": 1024, "height": 1024, "seed": 42}
_GUIDANCE_1 = {"preset": "V4_FAST_20"}
_FLOAT32 = ("--precision", "float32")
_EXPANDED = ("--fp8-mode", "expanded")
_W8A8 = ("--fp8-mode", "w8a8")
# Flags that share a picture between two GPUs.
_TWO_GPUS = {
    "cfg-parallel": ("--enable-cfg-parallel", "true"),
    "tensor-parallel": ("--tp-size", "2", "--enable-cfg-parallel", "false"),
    "ulysses": ("--ulysses-degree", "2", "--enable-cfg-parallel", "false"),
}
# golden.json's thresholds: right implementations reach 32 dB in bf16, whose error
# guidance 7 amplifies, and 53 dB in float32 (8-bit rounding).
_BF16_DB, _FLOAT32_DB = 28.0, 48.0
# At guidance 1, against weight-only FP8. 41 dB when quantised activations were
# simulated on a CPU.
_W8A8_DB = 34.0


def _on_two_gpus(single: GpuCase, min_psnr_db: float) -> tuple[GpuCase, ...]:
    """The same picture with every kind of parallelism."""
    return tuple(
        replace(
            single,
            name=f"{single.name}-{name}",
            flags=(*single.flags, "--num-gpus", "2", *flags),
            agreements=(Agreement(single.name, min_psnr_db),),
            num_gpus=2,
        )
        for name, flags in _TWO_GPUS.items()
    )


_WRITTEN_FLOAT32 = GpuCase("ideogram4-written", _WRITTEN, _SMALL, flags=_FLOAT32)
_RELEASED = GpuCase("ideogram4-released", IDEOGRAM4_WEIGHTS, _LARGE)

IDEOGRAM4_CASES = (
    GpuCase(
        "ideogram4-tiny-float32",
        _TINY,
        _SMALL,
        flags=_FLOAT32,
        agreements=(Agreement(_PNG, _FLOAT32_DB),),
    ),
    GpuCase(
        "ideogram4-tiny-float32-expanded",
        _TINY,
        _SMALL,
        flags=(*_FLOAT32, *_EXPANDED),
        agreements=(
            Agreement(_PNG, _FLOAT32_DB),
            Agreement("ideogram4-tiny-float32", _FLOAT32_DB),
        ),
    ),
    GpuCase(
        "ideogram4-tiny-bf16", _TINY, _SMALL, agreements=(Agreement(_PNG, _BF16_DB),)
    ),
    GpuCase(
        "ideogram4-tiny-bf16-expanded",
        _TINY,
        _SMALL,
        flags=_EXPANDED,
        agreements=(
            Agreement(_PNG, _BF16_DB),
            Agreement("ideogram4-tiny-bf16", _BF16_DB),
        ),
    ),
    GpuCase("ideogram4-tiny-guidance-1", _TINY, _SMALL | _GUIDANCE_1),
    GpuCase(
        "ideogram4-tiny-w8a8",
        _TINY,
        _SMALL | _GUIDANCE_1,
        flags=_W8A8,
        agreements=(Agreement("ideogram4-tiny-guidance-1", _W8A8_DB),),
        min_capability=FP8_GEMM_CAPABILITY,
    ),
    _WRITTEN_FLOAT32,
    *_on_two_gpus(_WRITTEN_FLOAT32, _FLOAT32_DB),
    _RELEASED,
    replace(
        _RELEASED,
        name="ideogram4-released-expanded",
        flags=_EXPANDED,
        agreements=(Agreement(_RELEASED.name, _BF16_DB),),
    ),
    # No agreement: what w8a8 does to the released model was not measured.
    replace(
        _RELEASED,
        name="ideogram4-released-w8a8",
        flags=_W8A8,
        min_capability=FP8_GEMM_CAPABILITY,
    ),
    replace(
        _RELEASED,
        name="ideogram4-released-guidance-1",
        request=_LARGE | _GUIDANCE_1,
        flags=("--no-unconditional",),
    ),
    *_on_two_gpus(_RELEASED, _BF16_DB),
)

# --- Ming-flash-omni 2.0 ------------------------------------------------------------

_OMNI = GOLDEN_ROOT / "ming_omni"
_OMNI_TINY = _OMNI / "checkpoint"
_T2I = {
    **{"prompt": "a red cube", "width": 64, "height": 96, "seed": 42},
    **{"num_inference_steps": 6, "guidance_scale": 2.0},
}
_EDIT = {
    **{"prompt": "make the sky purple", "width": 96, "height": 64, "seed": 43},
    **{"num_inference_steps": 6, "guidance_scale": 2.0},
    "image_path": str(_OMNI / "reference.png"),
}
_RELEASED_T2I = {
    **{"prompt": 'A fox in the snow beside a sign "OPEN"', "seed": 42},
    **{"width": 1024, "height": 1024, "num_inference_steps": 30},
}
# The tiny thinker shares a GPU with the generator; the released one has its own.
_TINY_THINKER = "--mem-fraction-static 0.2 --context-length 2048"
_BESIDE = ("--thinker-args=--tp-size 4 --base-gpu-id 1",)
# golden.json: right implementations reach 60 dB in float32, less in bf16, where a
# router may choose another expert.
_OMNI_FLOAT32_DB, _OMNI_BF16_DB = 48.0, 27.0

MING_CASES = (
    *(
        GpuCase(
            f"ming_omni-tiny-float32-{name}",
            _OMNI_TINY,
            request,
            flags=(*_FLOAT32, f"--thinker-args={_TINY_THINKER} --dtype float32"),
            agreements=(Agreement(_OMNI / f"{name}.png", _OMNI_FLOAT32_DB),),
        )
        for name, request in (("t2i", _T2I), ("edit", _EDIT))
    ),
    GpuCase(
        "ming_omni-tiny-bf16-edit",
        _OMNI_TINY,
        _EDIT,
        flags=(f"--thinker-args={_TINY_THINKER} --dtype bfloat16",),
        agreements=(Agreement(_OMNI / "edit.png", _OMNI_BF16_DB),),
    ),
    GpuCase(
        "ming_omni-released-t2i",
        MING_WEIGHTS,
        _RELEASED_T2I,
        flags=_BESIDE,
        num_gpus=5,
    ),
    GpuCase(
        "ming_omni-released-edit",
        MING_WEIGHTS,
        {
            **{"prompt": "make the sky purple", "seed": 43, "num_inference_steps": 30},
            "image_path": str(_OMNI / "reference.png"),
        },
        flags=_BESIDE,
        num_gpus=5,
    ),
)

# --- Lance --------------------------------------------------------------------------

_LANCE = GOLDEN_ROOT / "lance"
_LANCE_T2I = {
    "prompt": "A red fox sleeping on a wooden bench in the snow, soft morning light.",
    **{"width": 96, "height": 64, "num_inference_steps": 8, "seed": 42},
}
_LANCE_RELEASED = GpuCase(
    "lance-released-t2i",
    LANCE_WEIGHTS,
    {"prompt": _LANCE_T2I["prompt"], "seed": 42},
    flags=("--tasks", "t2i"),
)

LANCE_CASES = (
    GpuCase(
        "lance-tiny-t2i-float32",
        _LANCE / "checkpoint",
        _LANCE_T2I,
        flags=(*_FLOAT32, "--tasks", "t2i"),
        agreements=(Agreement(_LANCE / "t2i_output.png", 45.0),),
    ),
    _LANCE_RELEASED,
    # No agreement: what FP8 does to the released model was not measured.
    replace(
        _LANCE_RELEASED,
        name="lance-released-t2i-fp8",
        flags=(*_LANCE_RELEASED.flags, "--weight-format", "fp8"),
    ),
    replace(
        _LANCE_RELEASED,
        name="lance-released-t2i-tiled",
        flags=(*_LANCE_RELEASED.flags, "--vae-tiles", "on"),
    ),
)

CASES: tuple[GpuCase, ...] = (*IDEOGRAM4_CASES, *MING_CASES, *LANCE_CASES)

CHATS: tuple[GpuChat, ...] = (
    GpuChat(
        "ming_omni-tiny-chat",
        _OMNI_TINY,
        "What is 2+2?",
        flags=("--dtype", "float32", "--mem-fraction-static", "0.3"),
        answer="apy65r06c7r0",  # golden.json, case chat_text
        max_tokens=12,
    ),
    GpuChat(
        "ming_omni-released-chat",
        MING_WEIGHTS,
        "What is in this picture?",
        image=_OMNI / "reference.png",
        flags=("--tp-size", "4"),
        num_gpus=4,
    ),
)
