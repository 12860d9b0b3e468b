"""Every kernel on the shared cases in Triton's interpreter, without a GPU.

A process of its own, because the interpreter is chosen when a kernel is defined:
    TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreter.py
"""

import os

import pytest

from .table import Case, answer, declared


def test_the_interpreter_is_on() -> None:
    assert os.environ.get("TRITON_INTERPRET") == "1", "run with TRITON_INTERPRET=1"


@pytest.mark.parametrize("case", declared("CASES"), ids=lambda case: case.id)
def test_the_kernel_answers(case: Case) -> None:
    answer(case, "triton")
