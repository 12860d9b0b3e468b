"""What every op declares for the shared suites: one file in cases/, with CASES and KERNELS."""

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import vistok.ops

from .guard import Block, fence_all, fenced_back_ends


class Case(NamedTuple):
    """One call of an op that every back end must answer.

    op: name in vistok.ops. make: device -> arguments, the same numbers every time. check: arguments and result;
    it compares with a float64 computation of its own and asserts.
    """

    op: str
    name: str
    make: Callable[[str], dict[str, Any]]
    check: Callable[[dict[str, Any], Any], None]

    @property
    def id(self) -> str:
        return f"{self.op}-{self.name}"


class Cost(NamedTuple):
    """What a kernel must at least move and compute at a shape of practice, for the roofline."""

    shape: str
    bytes: float
    tensor_core_flops: float = 0.0
    other_flops: float = 0.0
    serial_steps: float = 0.0
    tensor_core_rate: float = 989e12


class Kernel(NamedTuple):
    """One compiled variant of a Triton kernel.

    arguments: type of every run-time argument, in Triton's words ("*fp32", "i32"). aligned: those that the launcher's
    tensors make multiples of 16. constants, options: from a target such as "sm_90" to compile-time arguments and to
    num_warps and num_stages; options may return None where the variant does not exist. tensor_cores, vector_loads:
    the machine code must have them.
    """

    op: str
    name: str
    function: Any
    arguments: Mapping[str, str]
    aligned: tuple[str, ...]
    constants: Callable[[str], dict[str, Any]]
    options: Callable[[str], dict[str, int]]
    tensor_cores: bool
    vector_loads: bool
    cost: Cost

    @property
    def id(self) -> str:
        return f"{self.op}-{self.name}"


def declared(what: str) -> list[Any]:
    """CASES or KERNELS of every file in cases/."""
    stems = sorted(path.stem for path in (Path(__file__).parent / "cases").glob("*.py"))
    found = (getattr(importlib.import_module(f".cases.{stem}", __package__), what) for stem in stems)
    return [item for items in found for item in items]


def backends(op: str) -> tuple[str, ...]:
    """The back ends that an op declares."""
    return tuple(sys.modules[getattr(vistok.ops, op).__module__].BACKENDS)


def answer(case: Case, backend: str, device: str = "cpu") -> None:
    """Call the op twice on a back end, the second time with poison around all memory.

    It must be right, the same bits both times, and leave the arguments and everything beside tensors as they were.
    """
    op = getattr(vistok.ops, case.op)
    arguments, again = case.make(device), case.make(device)
    found = op(**arguments, backend=backend)
    _unchanged(arguments, again)
    case.check(again, found)
    blocks: list[Block] = []
    amid_poison = fence_all(again, blocks)
    with fenced_back_ends(blocks):
        repeated = op(**amid_poison, backend=backend)
    assert all(block.intact for block in blocks), "something was written beside a tensor"
    _unchanged(amid_poison, arguments)
    torch.testing.assert_close(found, repeated, rtol=0, atol=0, equal_nan=True)


def _unchanged(arguments: dict[str, Any], before: dict[str, Any]) -> None:
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.numel() < 1 << 24:
            torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True, msg=f"{name} has changed")
