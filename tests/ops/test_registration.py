"""What an op of torch.library promises: vmap, gradients or their refusal, hiding from compilers, a light first call."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vistok
from vistok.ops import code_statistics, nearest_code
from vistok.ops.registration import define_op

CODES = torch.eye(3)
FIRST_CALL = """
import sys
import torch
from vistok.ops import code_statistics, fsq, nearest_code
x = torch.ones(4, 3)
ids = nearest_code(x, x)
y = x.clone().requires_grad_()
(fsq(y, [5, 5, 5])[0].sum() + code_statistics(y, ids, x).sums.sum()).backward()
torch.func.vmap(lambda item: nearest_code(item, x))(x[None])
found = [name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules]
assert not found, found
"""


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _weigh(x: Tensor, weight: Tensor, powers: list[int]) -> tuple[Tensor, Tensor]:
    """x, weight [..., D] -> (x * weight) to each power, and its sum [...]."""
    product = x * weight
    return product ** torch.tensor(powers), product.sum(-1)


def _weigh_fake(x: Tensor, weight: Tensor, powers: list[int]) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1])


weighted = define_op("vistok_test::weighted", _weigh, _weigh_fake)


def _copy(x: Tensor) -> Tensor:
    """x, or zeros where a compiler traces this."""
    return torch.zeros_like(x) if torch.compiler.is_compiling() else x.clone()


def _pass_on(ctx: Any, gradient: Tensor) -> Tensor:
    return gradient


copied = define_op("vistok_test::copied", _copy, torch.empty_like, _pass_on)


@pytest.mark.parametrize("axis", [0, 1])
def test_vmap_maps_over_any_axis_and_leaves_shared_tensors_and_lists_alone(axis: int) -> None:
    x, weight = draw(0, 4, 5, 3), draw(1, 4, 5, 3)
    shared = weight.select(axis, 0)
    found = torch.func.vmap(lambda a, b: weighted(a, b, [1, 2, 3]), (axis, None))(x, shared)
    expected = [weighted(a, shared, [1, 2, 3]) for a in x.unbind(axis)]
    for result, parts in zip(found, zip(*expected, strict=True), strict=True):
        assert torch.equal(result, torch.stack(parts))
    with pytest.raises(ValueError, match="at least one item"):
        torch.func.vmap(lambda a: weighted(a, a, [1, 2, 3]))(x[:0])


def test_vmap_gives_what_each_item_gives_alone() -> None:
    batch = draw(1, 4, 6, 3)
    mapped = torch.func.vmap(lambda x: nearest_code(x, CODES))(batch)
    assert torch.equal(mapped, torch.stack([nearest_code(x, CODES) for x in batch]))
    ids = nearest_code(batch, CODES)
    counts = torch.func.vmap(lambda x, i: code_statistics(x, i, CODES).counts)(batch, ids)
    assert torch.equal(counts.sum(1), torch.full((4,), 6))


def test_an_op_without_gradient_says_so_instead_of_passing_none() -> None:
    x = draw(0, 3).requires_grad_()
    powers, _ = weighted(x, torch.ones(3), [1, 1, 1])
    with pytest.raises(RuntimeError, match="vistok_test::weighted: has no gradient"):
        powers.sum().backward()


def test_a_compiled_graph_holds_an_op_and_its_gradient() -> None:
    x = draw(0, 5).requires_grad_()
    compiled = torch.compile(lambda x: copied(x) * 2, backend="aot_eager", fullgraph=True)
    (gradient,) = torch.autograd.grad(compiled(x).sum(), x)
    assert torch.equal(compiled(x), 2 * x) and torch.equal(gradient, torch.full((5,), 2.0))


def test_a_compiler_never_traces_the_body_of_an_op() -> None:
    @torch.compiler.disable(recursive=False)
    def passed_over(x: Tensor) -> Tensor:
        return copied(x)

    x = draw(0, 5)
    compiled = torch.compile(lambda x: passed_over(x) * 2, backend="eager")
    assert torch.equal(compiled(x), 2 * x)


def test_the_profiler_calls_an_op_by_its_name() -> None:
    with torch.profiler.profile() as profile:
        nearest_code(CODES, CODES)
    assert "vistok::nearest_code" in {event.name for event in profile.events()}


def test_the_first_calls_of_a_process_load_no_compiler_and_leave_no_files(tmp_path: Path) -> None:
    given = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(vistok.__file__).parents[1]), "HOME": str(tmp_path)}
    given |= {"TMPDIR": str(tmp_path), "VISTOK_NO_PLUGINS": "1", "VISTOK_OPS": "reference"}
    done = subprocess.run([sys.executable, "-B", "-c", FIRST_CALL], env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
