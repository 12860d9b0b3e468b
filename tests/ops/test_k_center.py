"""k-center: picks by hand, an independent float64 greedy, what every batch and every k has in common, mistakes."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vistok.ops import explain, k_center
from vistok.ops.k_center import _op

BACKENDS = ["reference", "cpu"]
LINE = torch.tensor([[[0.0], [1.0], [2.0], [3.0], [10.0]]])


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clusters(seed: int, count: int, width: int) -> Tensor:
    """[1, count, width] tokens around few centers: most distances to a pick are cut short."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(8, width, generator=generator)
    member = torch.randint(8, (count,), generator=generator)
    return (centers[member] + 0.1 * torch.randn(count, width, generator=generator))[None]


def greedy(points: Tensor, k: int, start: int) -> tuple[list[int], list[float]]:
    """Farthest first in Python: points [N, D] float64 -> picks and the distances at which they were taken."""
    rows = points.tolist()
    picks, radius = [start], [float("inf")]
    while len(picks) < k:
        reach = [
            -1.0 if i in picks else min(sum((a - b) ** 2 for a, b in zip(row, rows[j], strict=True)) for j in picks)
            for i, row in enumerate(rows)
        ]
        picks.append(reach.index(max(reach)))
        radius.append(max(reach))
    return picks, radius


def assert_replays(x: Tensor, picks: Tensor) -> None:
    """x [N, D], picks [k]: by float64, each pick is as far from those before as any token, up to 8 D units."""
    points = x.double()
    nearest = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for step, pick in enumerate(picks.tolist()):
        assert step == 0 or nearest[pick] >= nearest.max() * (1 - 8 * x.shape[1] * 2.0**-24)
        nearest = torch.minimum(nearest, (points - points[pick]).square().sum(1))
        nearest[pick] = -torch.inf


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str) -> None:
    found = k_center(LINE, 7, backend=backend)
    assert found.indices.tolist() == [[0, 4, 3, 1, 2, 2, 2]]
    assert found.radius.tolist() == [[torch.inf, 100.0, 9.0, 1.0, 1.0, -torch.inf, -torch.inf]]
    assert found.counts.tolist() == [5]


@pytest.mark.parametrize("backend", BACKENDS)
def test_cosine_by_hand(backend: str) -> None:
    x = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [-5.0, 0.0], [0.0, 0.0]]])
    found = k_center(x, 5, "cosine", backend=backend)
    assert found.indices.tolist() == [[0, 3, 2, 4, 1]]
    assert found.radius.tolist() == [[torch.inf, 2.0, 1.0, 0.5, 0.0]]


@pytest.mark.parametrize(
    ("start", "scores", "first"),
    [
        ("first", None, [0, 2]),
        ("mean-farthest", None, [4, 4]),
        ("max-score", [0.0, 5.0, 5.0, 9.0, torch.nan], [3, 3]),
        (torch.tensor([1, 3]), None, [1, 3]),
        (torch.tensor([4, 0], dtype=torch.int32), None, [4, 2]),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_where_it_begins(start: Any, scores: list[float] | None, first: list[int], backend: str) -> None:
    valid = torch.tensor([[True] * 5, [False, False, True, True, True]])
    given = None if scores is None else torch.tensor([scores, scores])
    found = k_center(LINE.expand(2, -1, -1), 2, start=start, scores=given, valid=valid, backend=backend)
    assert found.indices[:, 0].tolist() == first


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 40), st.integers(1, 3), st.integers(0, 2**31), st.sampled_from(BACKENDS))
def test_whole_numbers_full_of_ties_are_picked_as_by_float64(
    slots: int, width: int, span: int, seed: int, backend: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randint(-span, span + 1, (slots, width), generator=generator).float()
    start = torch.randint(0, slots, (1,), generator=generator)
    for certified in (False, True):
        found = k_center(points[None], slots, start=start, certified=certified, backend=backend)
        picks, radius = greedy(points.double(), slots, int(start))
        assert found.indices[0].tolist() == picks
        assert found.radius[0].tolist() == radius


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "x",
    [draw(0, 1, 300, 200), clusters(1, 300, 700), 30 + 1e-3 * draw(2, 1, 200, 48), draw(3, 1, 300, 1)],
    ids=["gaussian", "clusters", "offset", "line"],
)
def test_every_pick_is_the_farthest_up_to_rounding(x: Tensor, backend: str) -> None:
    assert_replays(x[0], k_center(x, 150, backend=backend).indices[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_certified_picks_are_those_of_float64(metric: str, backend: str) -> None:
    x = torch.cat([clusters(4, 90, 300), 30 + 1e-3 * draw(5, 1, 90, 300)], dim=1)
    points = x[0].double()
    if metric == "cosine":
        points = points / points.norm(dim=1, keepdim=True)
    nearest, expected = torch.full((180,), torch.inf, dtype=torch.float64), [0]
    for _ in range(179):
        nearest = torch.minimum(nearest, (points - points[expected[-1]]).square().sum(1))
        nearest[expected[-1]] = -1
        expected.append(int(nearest.argmax()))
    assert k_center(x, 180, metric, certified=True, backend=backend).indices[0].tolist() == expected


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 60), st.integers(1, 70), st.sampled_from(BACKENDS), st.booleans(),
    st.sampled_from(["l2", "cosine"]),
)  # fmt: skip
def test_few_picks_are_the_first_of_many_and_the_radius_only_shrinks(
    seed: int, slots: int, width: int, backend: str, certified: bool, metric: str
) -> None:
    x = draw(seed, 2, slots, width)
    many = k_center(x, slots + 3, metric, certified=certified, backend=backend)
    assert bool((many.radius.diff(dim=1).nan_to_num(nan=0.0) <= 0).all())
    for k in (1, slots // 2):
        few = k_center(x, k, metric, certified=certified, backend=backend)
        assert torch.equal(few.indices, many.indices[:, :k]) and torch.equal(few.radius, many.radius[:, :k])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.sampled_from(BACKENDS), st.sampled_from(["l2", "cosine"]))
def test_a_ragged_batch_gives_the_picks_of_each_item_alone(seed: int, width: int, backend: str, metric: str) -> None:
    lengths = torch.tensor([23, 1, 0, 12])
    x = draw(seed, 4, 23, width)
    poisoned = x.masked_fill(torch.arange(23)[:, None] >= lengths[:, None, None], torch.nan)
    for start in ("first", "mean-farthest"):
        together = k_center(poisoned, 9, metric, start=start, lengths=lengths, backend=backend)
        for item, length in enumerate(lengths.tolist()):
            alone = k_center(x[item : item + 1, :length], 9, metric, start=start, backend=backend)
            assert all(torch.equal(a[0], b[item]) for a, b in zip(alone, together, strict=True))


def test_the_radius_covers_every_token() -> None:
    x = draw(6, 3, 80, 5)
    found = k_center(x, 20)
    distances = torch.cdist(x.double(), x.double()).square()
    for picks in range(1, 20):
        cover = distances.gather(1, found.indices[:, :picks, None].expand(-1, -1, 80)).amin(1).amax(1)
        torch.testing.assert_close(found.radius[:, picks].double(), cover, rtol=1e-5, atol=0)


def test_compiled_and_plain_code_pick_the_same_tokens_of_large_items() -> None:
    for x in (draw(7, 2, 700, 260), clusters(8, 900, 520), torch.ones(1, 200, 32)):
        plain, compiled = (k_center(x, 120, certified=True, backend=backend) for backend in BACKENDS)
        assert torch.equal(plain.indices, compiled.indices)
        torch.testing.assert_close(plain.radius, compiled.radius)


@pytest.mark.parametrize("certified", [False, True])
@pytest.mark.parametrize("items", [1, 5])
def test_the_number_of_threads_changes_nothing(items: int, certified: bool) -> None:
    x = draw(9, items, 2100, 1024 // items)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(k_center(x, 40, certified=certified, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_distances_that_overflow_are_the_largest() -> None:
    x = torch.tensor([[[0.0], [1.0], [3e38], [-3e38], [3e38]]])
    for backend in BACKENDS:
        for certified in (False, True):
            assert k_center(x, 5, certified=certified, backend=backend).indices[0, -1] == 4


def test_float64_stays_float64() -> None:
    x = torch.tensor([[[0.0], [1e9], [1e9 + 1e-3], [5.0]]], dtype=torch.float64)
    found = k_center(x, 4)
    assert found.radius.dtype == torch.float64
    assert found.indices.tolist() == [[0, 2, 3, 1]]
    assert explain(k_center, x).backend == "reference"


def test_no_gradient_passes() -> None:
    assert not k_center(LINE.clone().requires_grad_(), 3).radius.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": LINE[0]}, r"expected float x \[B, N, D\], got \[5, 1\]"),
        ({"x": LINE.long()}, "expected float x .* torch.int64"),
        ({"k": -1}, "k >= 0, got -1"),
        ({"k": 2.0}, "k >= 0, got 2.0"),
        ({"metric": "l1"}, "expected metric 'l2' or 'cosine', got 'l1'"),
        ({"start": "centre"}, "one of .*mean-farthest.* got 'centre'"),
        ({"start": torch.tensor([5])}, r"in 0..4, got \[5\]"),
        ({"start": torch.tensor([0, 1])}, r"start int64 \[1\], got \[2\]"),
        ({"start": "max-score"}, "expected scores .* with start='max-score'"),
        ({"scores": torch.zeros(1, 5)}, "and only there"),
        ({"start": "max-score", "scores": torch.zeros(5)}, r"scores \[1, 5\], got \[5\]"),
        ({"valid": torch.ones(1, 5)}, r"valid bool \[1, 5\], got .*float32"),
        ({"lengths": torch.ones(2).long()}, r"lengths int64 \[1\], got \[2\]"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"k_center: .*{message}"):
        k_center(**{"x": LINE, "k": 2, **arguments})


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_a_lawful_op(backend: str) -> None:
    valid, start = torch.ones(2, 30, dtype=torch.bool), torch.tensor([3, 0])
    torch.library.opcheck(_op, (draw(0, 2, 30, 5), valid, start, 7, "l2", False, backend))
    torch.library.opcheck(_op, (draw(0, 2, 30, 5).bfloat16(), valid, start, 7, "cosine", True, backend))


def test_vmap_maps_over_items() -> None:
    x = draw(1, 3, 2, 30, 5)
    mapped = torch.func.vmap(lambda item: k_center(item, 7).indices)(x)
    assert torch.equal(mapped, torch.stack([k_center(item, 7).indices for item in x]))
