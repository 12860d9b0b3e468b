"""ToDRE: picks written out, an independent float64 greedy, every pivot, and the check inside the decoder."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import vistok
from vistok.protocols import LayerPruner, LayerView
from vistok.pruning.todre import cross_attention
from vistok.rows import grid_coords
from vistok.tokens import TokenSpec, TokenTensor

COMPASS = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]  # east, north, west, south


def tokens_of(points: list[list[float]] | Tensor, **fields: Any) -> TokenTensor:
    embeds = torch.as_tensor(points, dtype=torch.float32)
    return TokenTensor(TokenSpec("toy"), embeds=embeds if embeds.ndim == 3 else embeds[None], **fields)


def pick(points: list[list[float]] | Tensor, budget: int, attention: list[float] | Tensor, **setting: Any) -> list[int]:
    pruner = vistok.pruner("todre", **setting)
    chosen: list[int] = (
        pruner.select(tokens_of(points), budget, attention=torch.as_tensor(attention)[None]).index[0].tolist()
    )
    return chosen


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (1, [1]),  # most attention: north
        (2, [1, 3]),  # similarity to north: east 0, west 0, south -1
        (3, [0, 1, 3]),  # to north and south together: east 0, west 0; the lowest slot
        (4, [0, 1, 2, 3]),
    ],
)
def test_max_sum_starts_at_most_attention_and_takes_the_least_similar(budget: int, expected: list[int]) -> None:
    assert pick(COMPASS, budget, [0.1, 0.4, 0.3, 0.2]) == expected


def test_the_two_versions_of_the_paper_choose_differently() -> None:
    # From east: north-west and south-west are both 135 degrees away. Max-sum keeps to the far side of the sum,
    # k-center takes the token that is farthest from its nearest pick.
    degrees = torch.tensor([0.0, 135.0, 140.0, 225.0, 270.0])
    points = torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], 1)
    attention = [1.0, 0.0, 0.0, 0.0, 0.0]
    assert pick(points, 2, attention) == pick(points, 2, attention, diversity="k_center") == [0, 2]
    # Sums of cosines to 0 and 140 degrees: 135 -> 0.29, 225 -> -0.62, 270 -> -0.64.
    # Nearest of 0 and 140 degrees: 135 -> 5 degrees, 225 -> 85, 270 -> 90.
    assert pick(points, 3, attention) == pick(points, 3, attention, diversity="k_center") == [0, 2, 4]
    # To 0, 140 and 270: 135 -> -0.42, 225 -> 0.09. Nearest: 135 -> 5 degrees, 225 -> 45 degrees.
    assert pick(points, 4, attention) == [0, 1, 2, 4]
    assert pick(points, 4, attention, diversity="k_center") == [0, 2, 3, 4]


def greedy(points: Tensor, budget: int, start: int, diversity: str) -> list[int]:
    """The pseudocode over the full matrix of cosines, in float64; ties to the lowest slot."""
    unit = torch.nn.functional.normalize(points.double(), dim=1)
    cosines = unit @ unit.T
    picks = [start]
    while len(picks) < budget:
        near = cosines[picks].sum(0) if diversity == "max_sum" else cosines[picks].amax(0)
        near[picks] = torch.inf
        picks.append(int(near.argmin()))
    return sorted(picks)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(2, 9), st.sampled_from(["max_sum", "k_center"]), st.integers(0, 2**31))
def test_picks_equal_the_pseudocode_over_all_cosines(slots: int, width: int, diversity: str, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    points, attention = torch.randn(slots, width, generator=draw), torch.rand(slots, generator=draw)
    for budget in {1, max(1, slots // 3), slots}:
        expected = greedy(points, budget, int(attention.argmax()), diversity)
        assert pick(points, budget, attention, diversity=diversity) == expected


def test_the_length_of_a_token_does_not_matter() -> None:
    draw = torch.Generator().manual_seed(3)
    points, attention = torch.randn(30, 8, generator=draw), torch.rand(30, generator=draw)
    scale = 2.0 ** torch.randint(-3, 4, (30, 1), generator=draw)
    assert pick(points, 9, attention) == pick(points * scale, 9, attention)


@pytest.mark.parametrize(
    ("pivot", "expected"),
    [
        ("first", 0),
        ("center", 4),  # the middle cell of a grid of 3 x 3
        ("mean_farthest", 7),
    ],
)
def test_a_pivot_without_attention(pivot: str, expected: int) -> None:
    points = torch.tensor([[1.0, 0.1]] * 7 + [[-1.0, 0.0]] + [[1.0, 0.0]])
    tokens = tokens_of(points, coords=grid_coords(3, 3))
    assert vistok.pruner("todre", pivot=pivot).select(tokens, 1).index.tolist() == [[expected]]


def test_the_center_is_that_of_the_valid_tokens() -> None:
    tokens = tokens_of(torch.ones(2, 12, 3), coords=grid_coords(3, 4, 2), lengths=torch.tensor([12, 4]))
    # Of 3 x 4 cells the four in the middle are equally near; of one row of four, the two.
    assert vistok.pruner("todre", pivot="center").select(tokens, 1).index.tolist() == [[5], [1]]
    assert vistok.pruner("todre", pivot="center").select(tokens.replace(coords=None), 1).index.tolist() == [[6], [2]]


def test_a_random_pivot_reaches_every_valid_token_and_no_other() -> None:
    tokens = tokens_of(torch.ones(400, 5, 2), lengths=torch.full((400,), 4))
    pruner = vistok.pruner("todre", pivot="random")
    starts = pruner.select(tokens, 1, generator=torch.Generator().manual_seed(0)).index
    counts = torch.bincount(starts.flatten(), minlength=5)
    assert counts[4] == 0 and counts[:4].min() > 60
    again = pruner.select(tokens, 1, generator=torch.Generator().manual_seed(0)).index
    assert torch.equal(starts, again)


def test_the_pivot_lies_in_the_view_of_the_whole_image() -> None:
    attention = torch.tensor([[0.1, 0.3, 0.2, 0.9]])
    thumbnail = torch.tensor([[True, True, True, False]])
    chosen = vistok.pruner("todre").select(tokens_of(COMPASS), 1, attention=attention, thumbnail=thumbnail)
    assert chosen.index.tolist() == [[1]]


def test_context_that_is_missing_or_does_not_fit_is_named() -> None:
    tokens = tokens_of(COMPASS)
    with pytest.raises(ValueError, match="expected attention .* pivot='first'"):
        vistok.pruner("todre").select(tokens, 2)
    with pytest.raises(ValueError, match=r"expected attention \[1, 4\], got \[1, 3\]"):
        vistok.pruner("todre").select(tokens, 2, attention=torch.rand(1, 3))
    with pytest.raises(ValueError, match=r"expected thumbnail bool \[1, 4\], got torch.float32"):
        vistok.pruner("todre").select(tokens, 2, attention=torch.rand(1, 4), thumbnail=torch.rand(1, 4))
    with pytest.raises(TypeError, match="pivot 'first'.*attention"):
        vistok.pruner("todre", pivot="first").select(tokens, 2, attention=torch.rand(1, 4))
    with pytest.raises(ValueError, match="indices only"):
        indices = TokenTensor(TokenSpec("toy"), indices=torch.zeros(1, 4, dtype=torch.int64))
        vistok.pruner("todre", pivot="first").select(indices, 2)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"diversity": "min_sum"}, "diversity to be one of .* got 'min_sum'"),
        ({"pivot": "cls"}, "pivot to be one of .* got 'cls'"),
        ({"tau": 1.5}, r"tau in \[0, 1\], got 1.5"),
    ],
)
def test_settings_out_of_range_are_named(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vistok.pruner("todre", **setting)


@pytest.mark.parametrize(("layers", "index"), [(32, 27), (28, 23), (4, 2), (2, 0)])
def test_the_check_comes_after_seven_eighths_of_the_layers(layers: int, index: int) -> None:
    assert vistok.pruner("todre").plan.resolve(layers).prune_after == (index,)


def test_layers_may_be_listed_and_stage_two_left_out() -> None:
    assert vistok.pruner("todre", layers=[0.5, 6]).plan.resolve(8).prune_after == (3, 6)
    assert vistok.pruner("todre", stage2=False).plan.prune_after == ()
    assert isinstance(vistok.pruner("todre_v1"), LayerPruner)


class Maps:
    """Attention whose maps are given: [B, H, n, n]."""

    def __init__(self, maps: Tensor) -> None:
        self.maps = maps
        self.asked: list[Tensor] = []

    def __call__(self, rows: Tensor) -> Tensor:
        self.asked.append(rows)
        mean = self.maps.mean(1) * rows[:, :, None]
        return mean.sum(1) / rows.sum(1, keepdim=True).clamp(min=1)

    def keys(self) -> Tensor:
        raise NotImplementedError


def view_of(kinds: list[str], maps: Tensor) -> tuple[LayerView, Maps]:
    """A view of items that are strings of s (system), v (visual), t (text) and . (padding)."""
    width = max(map(len, kinds))
    letters = [list(kind.ljust(width, ".")) for kind in kinds]
    visual, system, text = (torch.tensor([[c == kind for c in row] for row in letters]) for kind in "vst")
    counts = visual.sum(1)
    slots = torch.sort((~visual).to(torch.int8), dim=1, stable=True).indices[:, : int(counts.max())]
    attention = Maps(maps)
    view = LayerView(
        layer=3, layers=4, hidden=torch.zeros(len(kinds), width, 2), visual=visual, system=system, text=text,
        instruction=text, valid=visual | system | text, source=torch.arange(width).expand(len(kinds), -1),
        image_ids=visual.long() - 1, slots=slots, counts=counts, original=counts, attention=attention,
    )  # fmt: skip
    return view, attention


def causal_maps(batch: int, size: int, seed: int = 0, heads: int = 2) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randn(batch, heads, size, size, generator=draw, dtype=torch.float64)
    return scores.masked_fill(torch.ones(size, size).triu(1).bool(), -torch.inf).softmax(-1).float()


def test_the_shares_are_the_papers_ratios_of_sums() -> None:
    kinds = ["svvtvt", "svtvtt"]
    maps = causal_maps(2, 6)
    view, _ = view_of(kinds, maps)
    ratios = []
    for item, kind in zip(maps.mean(1), kinds, strict=True):
        rows = {c: [i for i, own in enumerate(kind) if own == c] for c in "svt"}
        everything = range(6)

        def mass(rows: list[int], columns: Any, item: Tensor = item) -> float:
            return float(sum(item[i, j] for i in rows for j in columns))

        ratios.append(
            [
                mass(rows["t"], rows["v"]) / mass(rows["t"], everything),
                mass(rows["v"], rows["t"]) / mass(rows["v"], everything),
            ]
        )
    found = torch.stack(cross_attention(view), 1)
    torch.testing.assert_close(found, torch.tensor(ratios))


def test_an_image_before_all_text_asks_for_no_rows_of_it() -> None:
    view, attention = view_of(["svvtt"], causal_maps(1, 5))
    shares = cross_attention(view)
    assert shares[1].item() == 0
    assert [int(rows.sum()) for rows in attention.asked] == [2, 0]


def maps_with_text_share(shares: list[float], kind: str) -> Tensor:
    """One head; text rows give `share` to the visual tokens, the rest to token 0; other rows see token 0 only."""
    size = len(kind)
    maps = torch.zeros(len(shares), 1, size, size)
    for item, share in enumerate(shares):
        maps[item, 0, :, 0] = 1.0
        for row in (i for i, own in enumerate(kind) if own == "t"):
            maps[item, 0, row, 0] = 1 - share
            for column in (j for j, own in enumerate(kind) if own == "v"):
                maps[item, 0, row, column] = share / kind.count("v")
    return maps


@pytest.mark.parametrize(
    ("shares", "lengths", "width"),
    [
        ([0.05, 0.3], [0, 3], 3),
        ([0.05, 0.01], [0, 0], 0),
        ([0.3, 0.05], [3, 0], 3),
        ([0.2, 0.4], None, None),
    ],
)
def test_an_item_whose_text_looks_away_loses_all_visual_tokens(
    shares: list[float], lengths: list[int] | None, width: int | None
) -> None:
    view, _ = view_of(["svvvtt"] * 2, maps_with_text_share(shares, "svvvtt"))
    pruner = vistok.pruner("todre")
    cut = pruner.begin(view).prune(view)
    if lengths is None:
        assert cut is None
        return
    assert cut is not None and cut.lengths is not None
    assert cut.lengths.tolist() == lengths
    assert cut.index.tolist() == [list(range(width or 0))] * 2


def test_tau_is_a_strict_bound() -> None:
    view, _ = view_of(["svtt"], maps_with_text_share([0.25], "svtt"))
    assert vistok.pruner("todre", tau=0.25).begin(view).prune(view) is None
    assert vistok.pruner("todre", tau=0.26).begin(view).prune(view) is not None


def test_visual_tokens_that_read_text_before_them_are_kept() -> None:
    maps = torch.zeros(1, 1, 4, 4)
    maps[0, 0, :, 0] = 1.0
    maps[0, 0, 2] = torch.tensor([0.5, 0.5, 0.0, 0.0])  # the second image token looks at the text before it
    view, _ = view_of(["vtvt"], maps)
    assert cross_attention(view)[1].item() == 0.25
    text_reads_nothing = maps.clone()
    text_reads_nothing[0, 0, [1, 3]] = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    view, _ = view_of(["vtvt"], text_reads_nothing)
    assert vistok.pruner("todre").begin(view).prune(view) is None


def test_nothing_is_cut_where_nothing_is_left() -> None:
    view, _ = view_of(["sttt"], causal_maps(1, 4))
    assert vistok.pruner("todre").begin(view).prune(view) is None


def test_a_budget_inside_the_decoder_is_refused() -> None:
    view, _ = view_of(["svtt"], causal_maps(1, 4))
    with pytest.raises(ValueError, match="drops all visual tokens or none, the budget belongs to `select`"):
        vistok.pruner("todre").begin(view, 0.5)
