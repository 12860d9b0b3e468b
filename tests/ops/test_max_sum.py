"""Max-sum: picks by hand, the published pseudocode, what every batch and every k has in common, mistakes."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vistok.ops import explain, max_sum
from vistok.ops.max_sum import _op

BACKENDS = ["reference", "cpu"]
AXES = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [-5.0, 0.0], [0.0, 0.0], [0.0, -1.0]]])


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def published(x: Tensor, k: int, pivot: int) -> list[int]:
    """The paper's algorithm on x [N, D] in float64, with the matrix of similarities."""
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    similarity = unit @ unit.T
    chosen, total = [pivot], similarity[pivot].clone()
    total[pivot] = torch.inf
    for _ in range(k - 1):
        token = int((total == total.min()).nonzero()[0])
        chosen.append(token)
        total += similarity[token]
        total[token] = torch.inf
    return chosen


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str) -> None:
    found = max_sum(AXES, 8, backend=backend)
    assert found.indices.tolist() == [[0, 3, 1, 2, 5, 4, 4, 4]]
    assert found.similarity.tolist() == [[0.0, -1.0, 0.0, 0.0, -1.0, 0.0, torch.inf, torch.inf]]
    assert found.counts.tolist() == [6]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(2, 90), st.sampled_from(BACKENDS))
def test_the_picks_are_those_of_the_published_algorithm(seed: int, slots: int, width: int, backend: str) -> None:
    x, pivot = draw(seed, slots, width), seed % slots
    found = max_sum(x[None], slots, start=torch.tensor([pivot]), backend=backend).indices[0].tolist()
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    expected = published(x, slots, pivot)
    if found != expected:  # two tokens that float32 cannot tell apart
        step = next(step for step, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1])
        total = unit @ unit[found[:step]].sum(0)
        assert abs(total[found[step]] - total[expected[step]]) < 8 * width**0.5 * step * 2.0**-24


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(1, 70), st.sampled_from(BACKENDS))
def test_few_picks_are_the_first_of_many(seed: int, slots: int, width: int, backend: str) -> None:
    x = draw(seed, 2, slots, width)
    many = max_sum(x, slots + 3, start="mean-farthest", backend=backend)
    for k in (1, slots // 2):
        few = max_sum(x, k, start="mean-farthest", backend=backend)
        assert torch.equal(few.indices, many.indices[:, :k]) and torch.equal(few.similarity, many.similarity[:, :k])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.sampled_from(BACKENDS))
def test_a_ragged_batch_gives_the_picks_of_each_item_alone(seed: int, width: int, backend: str) -> None:
    lengths = torch.tensor([23, 1, 0, 12])
    x, scores = draw(seed, 4, 23, width), draw(seed + 1, 4, 23)
    padding = torch.arange(23) >= lengths[:, None]
    poisoned = x.masked_fill(padding[:, :, None], torch.nan)
    for start in ("first", "mean-farthest", "max-score"):
        given = scores if start == "max-score" else None
        together = max_sum(poisoned, 9, start=start, scores=given, lengths=lengths, backend=backend)
        for item, length in enumerate(lengths.tolist()):
            own = scores[item : item + 1, :length] if start == "max-score" else None
            alone = max_sum(x[item : item + 1, :length], 9, start=start, scores=own, backend=backend)
            assert all(torch.equal(a[0], b[item]) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_length_of_tokens_does_not_matter(backend: str) -> None:
    x = draw(2, 1, 50, 20)
    scale = 2.0 ** torch.randint(-3, 4, (1, 50, 1), generator=torch.Generator().manual_seed(3))
    assert torch.equal(max_sum(x, 20, backend=backend).indices, max_sum(x * scale, 20, backend=backend).indices)


def test_compiled_and_plain_code_agree_on_large_items() -> None:
    x = draw(4, 2, 701, 261)
    plain, compiled = (max_sum(x, 120, backend=backend) for backend in BACKENDS)
    torch.testing.assert_close(plain.similarity, compiled.similarity, rtol=0, atol=1e-4)


@pytest.mark.parametrize("items", [1, 5])
def test_the_number_of_threads_changes_nothing(items: int) -> None:
    x = draw(5, items, 2101, 1024 // items)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(max_sum(x, 20, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_float64_stays_float64() -> None:
    assert max_sum(AXES.double(), 3).similarity.dtype == torch.float64
    assert explain(max_sum, AXES.double()).backend == "reference"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": AXES[0]}, r"expected float x \[B, N, D\], got \[6, 2\]"),
        ({"k": True}, "k >= 0, got True"),
        ({"start": "pivot"}, "one of .*max-score.* got 'pivot'"),
        ({"start": torch.tensor([-1])}, r"in 0..5, got \[-1\]"),
        ({"valid": torch.ones(6, dtype=torch.bool)}, r"valid bool \[1, 6\], got \[6\]"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"max_sum: .*{message}"):
        max_sum(**{"x": AXES, "k": 2, **arguments})


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_a_lawful_op(backend: str) -> None:
    valid, start = torch.ones(2, 30, dtype=torch.bool), torch.tensor([3, 0])
    torch.library.opcheck(_op, (draw(0, 2, 30, 5), valid, start, 7, backend))
    torch.library.opcheck(_op, (draw(0, 2, 30, 5).bfloat16(), valid, start, 7, backend))
