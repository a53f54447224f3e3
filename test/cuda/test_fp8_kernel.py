# SPDX-License-Identifier: Apache-2.0
"""The FP8 kernel compiled for GPUs that are not here, and its conversion of weights."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from lazy import LazyModule

kernel = LazyModule("sglang_ext_gen.kernels.fp8_gemm_triton")
triton = LazyModule("triton")
compiler = LazyModule("triton.compiler")
backends = LazyModule("triton.backends.compiler")
# Matrix instruction of each architecture with tiles of many rows.
MATRIX_UNITS = {80: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}
# The name of an instruction behind its address and predicate.
_OPERATION = r"^\s+(?:/\*[0-9a-f]+\*/\s+)?(?:@!?U?P\d+ )?([A-Z][A-Z0-9]*)"
# Shared memory of a block.
SHARED_KIB = {80: 163, 89: 99, 90: 227, 100: 227, 120: 99}


def compiled(architecture: int, tile: Any) -> Any:
    """The kernel for bfloat16 and a bias, as Triton compiles it at a launch."""
    names = kernel.fp8_gemm_kernel.arg_names
    constants = {
        **tile.sizes(),
        "DOT_DTYPE": LazyModule("triton.language").bfloat16,
        "stride_xk": 1,
        "stride_wk": 1,
    }
    pointers = {"x_ptr": "*bf16", "w_ptr": "*u8", "scale_ptr": "*fp32"}
    pointers |= {"bias_ptr": "*bf16", "y_ptr": "*bf16"}
    types = dict.fromkeys(names, "i32") | pointers
    types |= dict.fromkeys(constants, "constexpr")
    # What Triton finds out at a launch: whole vectors.
    aligned = [*pointers, "N", "K", "stride_xm", "stride_wn", "stride_ym"]
    hints = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = compiler.ASTSource(kernel.fp8_gemm_kernel, types, constants, hints)
    target = backends.GPUTarget("cuda", architecture, 32)
    return triton.compile(source, target=target, options=tile.schedule())


def disassembled(binary: bytes, folder: Path) -> str:
    """Machine code, one instruction a line."""
    file = folder / "kernel.cubin"
    file.write_bytes(binary)
    tools = Path(triton.compile.__code__.co_filename).parents[1] / "backends/nvidia/bin"
    command = [tools / "nvdisasm", "-c", file]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("rows", [16, None])
@pytest.mark.parametrize("architecture", MATRIX_UNITS)
def test_tiles_in_use_have_no_slow_conversion_and_no_spill(
    architecture, rows, tmp_path
):
    capability = divmod(architecture, 10)
    for tile in kernel.tiles_for(kernel.TILES[rows], capability):
        found = compiled(architecture, tile)
        if found.metadata.shared > SHARED_KIB[architecture] * 1024:
            continue  # the tuner leaves it out as well
        code = disassembled(found.asm["cubin"], tmp_path)
        operations = set(re.findall(_OPERATION, code, re.MULTILINE))
        assert "F2F" not in operations
        assert not {"LDL", "STL"} & operations, "registers were spilt"
        if rows is None:
            assert MATRIX_UNITS[architecture] in operations


def prmt(a: int, selector: int) -> int:
    """Bytes of a and of zero, as PTX picks them."""
    pool = a.to_bytes(4, "little") + bytes(4)
    picked = (pool[selector >> 4 * place & 7] for place in range(4))
    return int.from_bytes(bytes(picked), "little")


def run_ptx(text: str, word: int) -> list[int]:
    """Registers $0 and $1 after the instructions, with $2 = word."""
    registers = {"$2": word}
    for line in re.findall(r"[a-z.][^;{]*(?=;)", text):
        name, *operands = re.split(r"[ ,]+", line.strip())
        if name == ".reg" or not operands:
            continue
        values = [
            registers[o] if o in registers else int(o, 0) if o[0].isdigit() else 0
            for o in operands
        ]
        target, (_, a, *rest) = operands[0], values
        b, c = (*rest, 0, 0)[:2]
        if name == "mov.b32":
            registers[target] = a
        elif name == "prmt.b32":
            assert b == 0
            registers[target] = prmt(a, c)
        elif name == "shr.u32":
            registers[target] = a >> b
        elif name == "and.b32":
            registers[target] = a & b
        elif name == "lop3.b32":
            assert values[4] == 0xEA  # (a and b) or c
            registers[target] = a & b | c
        else:
            assert name == "fma.rn.bf16x2"
            halves = [
                torch.tensor([v & 0xFFFF, v >> 16])
                .to(torch.uint16)
                .view(torch.bfloat16)
                for v in (a, b, c)
            ]
            exact = halves[0] * halves[1] + halves[2]
            low, high = exact.to(torch.bfloat16).view(torch.uint16).tolist()
            registers[target] = high << 16 | low
    return [registers["$0"], registers["$1"]]


def test_every_finite_weight_is_converted_with_the_same_bits():
    codes = torch.arange(256, dtype=torch.int64)
    codes = codes[(codes & 0x7F) != 0x7F].to(torch.uint8)  # without the two NaN
    codes = torch.cat([codes, codes[:2]])
    expected = codes.view(torch.float8_e4m3fn).to(torch.bfloat16).view(torch.uint16)
    found = []
    for four in codes.view(-1, 4).tolist():
        word = int.from_bytes(bytes(four), "little")
        for pair in run_ptx(kernel.BFLOAT16_FROM_E4M3.value, word):
            found += [pair & 0xFFFF, pair >> 16]
    assert found == expected.tolist()


def test_the_tuner_leaves_out_what_would_spill(monkeypatch):
    tuner = kernel.fp8_linear_triton.__globals__["_TUNED"][None]
    for capability, count in {(8, 0): 2, (9, 0): 4}.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda c=capability: c)
        assert len(tuner.early_config_prune(tuner.configs, {})) == count
