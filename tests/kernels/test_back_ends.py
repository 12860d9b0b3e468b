"""Every op on the reference and on the CPU back end: the shared cases, opcheck and the automatic choice."""

import pytest
import torch

from .table import Case, answer, backends, declared

CASES = [(case, backend) for case in declared("CASES") for backend in backends(case.op) if backend != "triton"]


@pytest.mark.parametrize(("case", "backend"), CASES, ids=lambda value: getattr(value, "id", value))
def test_every_back_end_answers(case: Case, backend: str) -> None:
    answer(case, backend)


def test_every_op_has_a_reference_and_a_kernel() -> None:
    for op in {case.op for case in declared("CASES")}:
        assert {"reference", "triton"} <= set(backends(op))
        assert [kernel for kernel in declared("KERNELS") if kernel.op == op]


@pytest.mark.gpu
@pytest.mark.parametrize("case", declared("CASES"), ids=lambda case: case.id)
@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_a_gpu_answers(case: Case, backend: str) -> None:
    assert torch.cuda.is_available(), "this test needs a CUDA device"
    answer(case, backend, "cuda")
