"""The choice of a back end: who decides, what is an obstacle, and that a wish is never overruled."""

import threading
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from vistok.ops import code_statistics, dispatch, explain, nearest_code, use
from vistok.ops.cpu import library
from vistok.ops.dispatch import NAMES, SINGLE, Backend, choose, run, survey

X, CODES = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.eye(3)


def tagged(tag: str) -> Callable[..., str]:
    return lambda *_: tag


TABLE = {
    "reference": Backend(tagged("reference")),
    "cpu": Backend(tagged("cpu"), "cpu", SINGLE, fits=lambda x: "x is too long" if len(x) > 8 else None),
    "triton": Backend(tagged("triton"), "cuda", SINGLE),
}


@pytest.fixture(autouse=True)
def nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISTOK_OPS", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def chosen(x: Tensor, backend: str | None = None) -> str:
    return choose("op", TABLE, (x,), backend).backend


def test_the_argument_beats_use_which_beats_the_environment_which_beats_the_tensors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert chosen(X) == "cpu"
    monkeypatch.setenv("VISTOK_OPS", "reference")
    assert chosen(X) == "reference"
    with use("cpu"):
        assert chosen(X) == "cpu"
        assert chosen(X, "reference") == "reference"
        with use("auto"):
            assert chosen(X) == "cpu"
            assert chosen(X.double()) == "reference"
    assert chosen(X) == "reference"


def test_the_reason_names_every_obstacle() -> None:
    choice = choose("op", TABLE, (X.double(),), None)
    assert choice.backend == "reference"
    assert "triton" in choice.reason and "cpu: it does not compute in float64" in choice.reason
    assert "x is too long" in choose("op", TABLE, (torch.zeros(9),), None).reason


@pytest.mark.parametrize(
    ("x", "backend", "reason"),
    [
        (X, "triton", "the tensors are on cpu, not on cuda"),
        (X.double(), "cpu", "does not compute in float64"),
        (torch.zeros(9), "cpu", "x is too long"),
        (X.to("meta"), "cpu", "hold no numbers"),
    ],
)
def test_a_wish_that_cannot_be_met_raises_with_the_reason(x: Tensor, backend: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"op: backend= asks for back end '{backend}', but .*{reason}"):
        choose("op", TABLE, (x,), backend)
    with use(backend), pytest.raises(ValueError, match="vistok.ops.use asks"):
        choose("op", TABLE, (x,), None)


def test_an_op_without_that_back_end_says_so() -> None:
    with pytest.raises(ValueError, match="this op has no such back end"):
        choose("op", {"reference": TABLE["reference"]}, (X,), "cpu")


def test_unknown_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="backend=: expected a back end in .* got 'numba'"):
        nearest_code(X, CODES, backend="numba")
    with pytest.raises(ValueError, match="vistok.ops.use"), use("gpu"):
        pass
    monkeypatch.setenv("VISTOK_OPS", "fast")
    with pytest.raises(ValueError, match="VISTOK_OPS: .* got 'fast'"):
        nearest_code(X, CODES)
    with pytest.raises(KeyError, match="no_op"):
        explain("no_op", X)
    with pytest.raises(KeyError, match="code_counts"):
        explain("code_counts", X)


def test_meta_and_fake_tensors_are_left_to_the_reference() -> None:
    assert chosen(X.to("meta")) == "reference"
    with FakeTensorMode() as mode:
        assert chosen(mode.from_tensor(X)) == "reference"


def test_tensors_on_a_gpu_go_to_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # the interpreter takes CPU tensors for those of a GPU
    assert chosen(X) == "triton"


def test_a_machine_without_triton_has_no_triton_back_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="triton is not installed"):
        choose("op", TABLE, (X,), "triton")


def test_a_library_that_cannot_be_built_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_loaded", {"some_op": "there is no C++ compiler"})
    table = {**TABLE, "cpu": Backend(tagged("cpu"), "cpu", library="some_op")}
    assert choose("op", table, (X,), None).backend == "reference"
    with pytest.raises(ValueError, match="there is no C\\+\\+ compiler"):
        choose("op", table, (X,), "cpu")


def test_explain_takes_the_function_or_its_name() -> None:
    assert explain(nearest_code, X, CODES) == explain("nearest_code", X, CODES)
    assert explain(code_statistics, X.double(), torch.zeros(6), CODES).backend == "reference"
    assert explain(nearest_code, X, CODES, backend="reference") == ("reference", "backend= asks for it")


def test_back_ends_run_outside_autograd_and_autocast() -> None:
    def product(x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return x @ x.T

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert run("op", {"reference": Backend(product)}, "reference", (X,)).dtype == torch.float32


def test_a_wish_holds_in_its_own_thread_only() -> None:
    seen: list[str] = []
    with use("reference"):
        thread = threading.Thread(target=lambda: seen.append(chosen(X)))
        thread.start()
        thread.join()
    assert seen == ["cpu"]


def test_a_compiled_graph_holds_one_node_and_chooses_when_it_runs() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(lambda x: nearest_code(x, CODES), backend=keep, fullgraph=True)
    expected = nearest_code(X, CODES)
    assert torch.equal(compiled(X), expected)
    (graph,) = graphs
    assert sum("nearest_code" in str(node.target) for node in graph.graph.nodes) == 1
    with use("triton"), pytest.raises(ValueError, match="not on cuda"), warnings.catch_warnings():
        compiled(X)


def test_the_survey_names_a_back_end_and_a_reason_for_every_op() -> None:
    found = survey("cpu")
    assert {"nearest_code", "code_statistics"} <= found.keys()
    assert all(choice.backend in NAMES and choice.reason for choice in found.values())
    with use("reference"):
        assert {choice.backend for choice in survey("cpu").values()} == {"reference"}
