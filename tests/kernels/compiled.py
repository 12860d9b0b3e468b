"""Compile a kernel for a processor that is not here, and read in the machine code what it will need there."""

import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .table import Cost, Kernel

TARGETS = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64)}
# Bytes of shared memory that one program may take, by the vendors' guides.
_SHARED_LIMIT = {"sm_80": 166_912, "sm_90": 232_448, "gfx942": 65_536}
_REGISTER_LIMIT = {"sm_80": 65_536, "sm_90": 65_536, "gfx942": 4 * 512 * 64}
_TENSOR_CORES = {"sm_80": r"mma\.sync", "sm_90": r"wgmma\.mma_async|mma\.sync", "gfx942": r"v_mfma"}
_VECTOR_LOADS = {
    "sm_80": r"ld\.global\S*\.v4|ld\.global\S*\.v2\.b64|cp\.async\.c[ag]\S* .*0x10",
    "sm_90": r"ld\.global\S*\.v4|ld\.global\S*\.v2\.b64|cp\.async\.c[ag]\S* .*0x10",
    "gfx942": r"(?:global|buffer)_load_dwordx4",
}


class Needs(NamedTuple):
    """Registers per thread, spilled bytes or registers, shared bytes, warps, and what the machine code uses."""

    registers: int
    spills: int
    shared: int
    warps: int
    tensor_cores: bool
    vector_loads: bool


def needs(kernel: Kernel, target: str) -> Needs:
    """Compile for "sm_80", "sm_90" or "gfx942"."""
    options = kernel.options(target)
    built = triton.compile(_source(kernel, target), target=GPUTarget(*TARGETS[target]), options=options)
    text = built.asm["amdgcn" if target.startswith("gfx") else "ptx"]
    registers, spills = _amd_usage(text) if target.startswith("gfx") else _nvidia_usage(built)
    return Needs(
        registers,
        spills,
        int(built.metadata.shared),
        options["num_warps"],
        bool(re.search(_TENSOR_CORES[target], text)),
        bool(re.search(_VECTOR_LOADS[target], text)),
    )


def _source(kernel: Kernel, target: str) -> Any:
    names = kernel.function.arg_names
    constants = kernel.constants(target)
    signature = {name: "constexpr" if name in constants else kernel.arguments[name] for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in kernel.aligned}
    return ASTSource(kernel.function, signature, {(names.index(k),): v for k, v in constants.items()}, attributes)


def _nvidia_usage(built: Any) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    file = next(Path(path) for name, path in built.metadata_group.items() if name.endswith(".cubin"))
    told = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+)", told)
    assert usage, told
    return int(usage[1]), int(usage[2])


def _amd_usage(text: str) -> tuple[int, int]:
    found = {name: int(number) for name, number in re.findall(r"\.(\w+_count):\s+(\d+)", text)}
    return found["vgpr_count"], found["vgpr_spill_count"] + found["sgpr_spill_count"]


def faults(kernel: Kernel, target: str, found: Needs) -> list[str]:
    """Why this kernel must not be shipped; empty if nothing is wrong."""
    lanes = TARGETS[target][2]
    tests = {
        f"spills {found.spills} bytes or registers": found.spills > 0,
        f"needs {found.shared} bytes of shared memory, {target} has {_SHARED_LIMIT[target]}": found.shared
        > _SHARED_LIMIT[target],
        f"needs {found.registers} registers x {found.warps} warps": found.registers * found.warps * lanes
        > _REGISTER_LIMIT[target],
        "does not use tensor cores": kernel.tensor_cores and not found.tensor_cores,
        "has no 16-byte loads": kernel.vector_loads and not found.vector_loads,
    }
    return [fault for fault, holds in tests.items() if holds]


def roofline(cost: Cost) -> float:
    """Least microseconds on an H100 SXM by its data sheet: memory, tensor cores, other arithmetic, steps, launch."""
    throughput = (cost.bytes / 3.35e12, cost.tensor_core_flops / cost.tensor_core_rate, cost.other_flops / 29.6e12)
    return 1e6 * (max(throughput) + cost.serial_steps * 1.25e-6 + 4e-6)
