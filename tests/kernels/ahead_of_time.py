"""Every kernel compiled for three processors without a GPU: no spills, memory within limits, no growth unseen.

A process of its own, without TRITON_INTERPRET, because an interpreted kernel cannot be compiled:
    python -m pytest tests/kernels/ahead_of_time.py
After a change that is meant: VISTOK_BASELINE=write, with -k OP for one op, rewrites those entries of baseline.json.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import triton

from .compiled import TARGETS, Needs, faults, needs, roofline
from .table import Kernel, declared

BASELINE = Path(__file__).parent / "baseline.json"
_MORE_REGISTERS = 16
KERNELS = declared("KERNELS")


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that was compiled before is used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.fixture(scope="module")
def baseline() -> Iterator[dict[str, Any]]:
    """The recorded needs; on request the file is rewritten with what the tests of this run put in."""
    known = json.loads(BASELINE.read_text(encoding="utf-8")) if BASELINE.exists() else {"kernels": {}}
    if os.environ.get("VISTOK_BASELINE") != "write":
        yield known
        return
    written: dict[str, Any] = {"triton": triton.__version__, "kernels": {}}
    yield written
    known = json.loads(BASELINE.read_text(encoding="utf-8")) if BASELINE.exists() else {"kernels": {}}
    merged = {"triton": triton.__version__, "kernels": dict(sorted((known["kernels"] | written["kernels"]).items()))}
    BASELINE.write_text(json.dumps(merged, indent=1) + "\n", encoding="utf-8")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.id)
def test_it_compiles_within_its_limits(kernel: Kernel, target: str, baseline: dict[str, Any]) -> None:
    found = needs(kernel, target)
    assert not faults(kernel, target, found)
    key = f"{kernel.id}-{target}"
    if os.environ.get("VISTOK_BASELINE") == "write":
        baseline["kernels"][key] = entry(kernel, found)
    else:
        assert not growth(baseline, key, entry(kernel, found))


def entry(kernel: Kernel, found: Needs) -> dict[str, Any]:
    """What baseline.json keeps of one kernel on one target."""
    at = kernel.cost
    return {
        **found._asdict(),
        "shape": at.shape,
        "bytes": at.bytes,
        "flops": at.tensor_core_flops + at.other_flops,
        "h100_floor_us": round(roofline(at), 1),
    }


def growth(baseline: dict[str, Any], key: str, found: dict[str, Any]) -> str:
    """What baseline.json does not allow; register counts mean something only under the Triton that recorded them."""
    known = baseline["kernels"].get(key)
    if known is None:
        return f"{key} is not in {BASELINE.name}: run with VISTOK_BASELINE=write"
    if baseline["triton"] == triton.__version__ and found["registers"] > known["registers"] + _MORE_REGISTERS:
        return f"{key} takes {found['registers']} registers, {known['registers']} before"
    return ""


def test_the_baseline_holds_no_kernel_that_is_gone(baseline: dict[str, Any]) -> None:
    gone = set(baseline["kernels"]) - {f"{kernel.id}-{target}" for kernel in KERNELS for target in TARGETS}
    assert not gone, "delete these entries"


@pytest.fixture
def sound() -> Kernel:
    return next(kernel for kernel in KERNELS if kernel.id == "nearest_code-exact-d256")


def test_a_kernel_that_takes_too_much_shared_memory_is_refused(sound: Kernel) -> None:
    whole = sound._replace(constants=lambda target: {**sound.constants(target), "CHUNK": 256})
    assert any("shared memory" in fault for fault in faults(whole, "sm_90", needs(whole, "sm_90")))


def test_a_kernel_that_spills_is_refused(sound: Kernel) -> None:
    wide = {"ROWS": 256, "CODES": 64, "CHUNK": 16, "PRECISION": "ieee"}
    spilling = sound._replace(constants=lambda target: {**sound.constants(target), **wide})
    assert any("spills" in fault for fault in faults(spilling, "sm_80", needs(spilling, "sm_80")))


def test_a_kernel_without_the_vector_loads_it_should_have_is_refused(sound: Kernel) -> None:
    unaligned = sound._replace(aligned=())
    assert faults(unaligned, "sm_90", needs(unaligned, "sm_90"))[-1:] == ["has no 16-byte loads"]


def test_growth_and_new_kernels_are_refused() -> None:
    known = {"triton": triton.__version__, "kernels": {"a": {"registers": 100}}}
    assert growth(known, "a", {"registers": 116}) == ""
    assert "100 before" in growth(known, "a", {"registers": 117})
    assert "is not in" in growth(known, "b", {"registers": 1})
    assert growth({**known, "triton": "0"}, "a", {"registers": 200}) == ""
