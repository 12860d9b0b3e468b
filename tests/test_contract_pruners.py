"""What every pruner of tokens promises, over all of `vistok.list_pruners()` with a `select`: a new method needs no edit
here. Those that cut between decoder layers have test_contract_layer_pruners.py.

A method that cannot do something says so in `cannot`, by these names: "fullgraph" (torch.compile without graph breaks),
"bf16" (embeds of half precision), "fixed_budget" (an item may keep fewer tokens than it is given). Items taken one
after the other share one generator, as they do inside a batch.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import vistok
from vistok.protocols import Budget, Pruner
from vistok.rows import grid_coords
from vistok.tokens import Selection, TokenSpec, TokenTensor

LENGTHS, SLOTS, WIDTH = (9, 4, 0, 12, 1), 12, 6
Context = dict[str, Any]
# A pruner that needs something else gets a line here, the one that all pruners with this need share.
CONTEXT: dict[str, Callable[[TokenTensor, torch.Generator], Any]] = {
    "generator": lambda tokens, draw: torch.Generator().manual_seed(5),
    "attention": lambda tokens, draw: torch.rand(tokens.mask.shape, generator=draw),
    "thumbnail": lambda tokens, draw: torch.rand(tokens.mask.shape, generator=draw) < 0.5,
    "instruction_attention": lambda tokens, draw: torch.rand(tokens.mask.shape, generator=draw),
    "tower_keys": lambda tokens, draw: torch.randn(*tokens.mask.shape, WIDTH, generator=draw),
    "class_token": lambda tokens, draw: torch.randn(tokens.mask.shape[0], 1, WIDTH, generator=draw),
    "text": lambda tokens, draw: torch.randn(tokens.mask.shape[0], 3, WIDTH, generator=draw),
    "text_mask": lambda tokens, draw: torch.rand(tokens.mask.shape[0], 3, generator=draw) < 0.7,
    # Two halves of six cells, whatever the length.
    "frames": lambda tokens, draw: torch.arange(SLOTS).floor_divide(6).expand(tokens.mask.shape[0], -1),
}
BUDGETS: dict[str, tuple[Budget, list[int]]] = {
    "int": (5, [5, 4, 0, 5, 1]),
    "one": (1, [1, 1, 0, 1, 1]),
    "more_than_there_are": (40, [9, 4, 0, 12, 1]),
    "half": (0.5, [4, 2, 0, 6, 1]),
    "nearly_nothing": (0.01, [1, 1, 0, 1, 1]),
    "all": (1.0, [9, 4, 0, 12, 1]),
    "per_item": (torch.tensor([3, 9, 2, 0, 1]), [3, 4, 0, 0, 1]),
}


def make_tokens(ragged: bool = True) -> TokenTensor:
    draw = torch.Generator().manual_seed(7)
    batch = len(LENGTHS)
    return TokenTensor(
        TokenSpec("toy", dim=WIDTH, codebook_sizes=(50,), grid=(3, 4), patch=8),
        embeds=torch.randn(batch, SLOTS, WIDTH, generator=draw),
        indices=torch.randint(0, 50, (batch, SLOTS), generator=draw),
        lengths=torch.tensor(LENGTHS) if ragged else None,
        coords=grid_coords(3, 4, batch),
        scores=torch.rand(batch, SLOTS, generator=draw),
    ).check()


def make_context(pruner: Pruner, tokens: TokenTensor) -> Context:
    missing = pruner.needs - CONTEXT.keys()
    assert not missing, f"needs {sorted(missing)}: add what they look like to CONTEXT"
    draw = torch.Generator().manual_seed(11)
    return {name: make(tokens, draw) for name, make in CONTEXT.items() if name in pruner.needs}


def rows_of(context: Context, rows: slice | Tensor, slots: int = SLOTS) -> Context:
    """The context of some items, cut to `slots` tokens; what is not a tensor is shared by all."""

    def cut(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value[rows][:, :slots] if value.shape[1] == SLOTS else value[rows]

    return {name: cut(value) for name, value in context.items()}


def kept(selection: Selection, tokens: TokenTensor) -> list[list[int]]:
    """The slots that each item keeps."""
    lengths = selection.lengths if selection.lengths is not None else tokens.select(selection).valid_lengths
    return [row[:length].tolist() for row, length in zip(selection.index, lengths, strict=True)]


def skip_if_it_cannot(pruner: Pruner, name: str, what: str) -> None:
    if what in pruner.cannot:
        pytest.skip(f"{name} cannot {what!r}, by its own declaration")


def check_counts(pruner: Pruner, counts: list[int], budgets: list[int]) -> None:
    """As many tokens as budgeted, or up to so many and one at least, where a pruner says that it decides."""
    if "fixed_budget" in pruner.cannot:
        assert all(min(1, most) <= count <= most for count, most in zip(counts, budgets, strict=True))
    else:
        assert counts == budgets


def selecting() -> list[str]:
    names = vistok.list_pruners()
    return [name for name in names if isinstance(vistok.pruner(name, **vistok.info("pruner", name).tiny), Pruner)]


@pytest.fixture(params=selecting())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pruner(name: str) -> Pruner:
    return vistok.pruner(name, **vistok.info("pruner", name).tiny)


@pytest.mark.parametrize("budget", BUDGETS)
def test_it_keeps_as_many_valid_tokens_as_budgeted_in_their_order(pruner: Pruner, budget: str) -> None:
    tokens = make_tokens()
    asked, expected = BUDGETS[budget]
    selection = pruner.select(tokens, asked, **make_context(pruner, tokens))
    assert selection.index.dtype == torch.int64
    assert selection.lengths is not None and selection.lengths.dtype == torch.int64
    chosen = kept(selection, tokens)
    check_counts(pruner, [len(row) for row in chosen], expected)
    for row, length in zip(chosen, LENGTHS, strict=True):
        assert row == sorted(set(row))
        assert all(0 <= slot < length for slot in row)


def test_its_result_is_as_wide_as_the_shapes_and_the_budget_say(pruner: Pruner) -> None:
    tokens = make_tokens()
    widths = [
        pruner.select(tokens, budget, **make_context(pruner, tokens)).index.shape
        for budget in (5, 40, 0.5, torch.tensor([3, 1, 1, 1, 1]))
    ]
    assert widths == [(5, 5), (5, 12), (5, 6), (5, 12)]


@pytest.mark.parametrize("budget", [5, 0.5])
def test_full_items_all_keep_the_budget(pruner: Pruner, budget: int | float) -> None:
    tokens = make_tokens(ragged=False)
    pruned = tokens.select(pruner.select(tokens, budget, **make_context(pruner, tokens))).check()
    check_counts(pruner, pruned.valid_lengths.tolist(), [5 if budget == 5 else 6] * len(LENGTHS))


def test_a_budget_of_everything_is_the_identity(pruner: Pruner, name: str) -> None:
    skip_if_it_cannot(pruner, name, "fixed_budget")
    tokens = make_tokens(ragged=False)
    selection = pruner.select(tokens, SLOTS, **make_context(pruner, tokens))
    assert kept(selection, tokens) == [list(range(SLOTS))] * len(LENGTHS)


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_ragged_batch_gives_the_ids_of_each_item_alone(pruner: Pruner, budget: str) -> None:
    tokens = make_tokens()
    asked, _ = BUDGETS[budget]
    together = kept(pruner.select(tokens, asked, **make_context(pruner, tokens)), tokens)
    context = make_context(pruner, tokens)
    for row, length in enumerate(LENGTHS):
        one = tokens[row : row + 1].truncate(length).replace(lengths=None)
        own = asked[row : row + 1] if isinstance(asked, Tensor) else asked
        selection = pruner.select(one, own, **rows_of(context, slice(row, row + 1), length))
        assert kept(selection, one) == [together[row]]


def test_a_batch_of_one_gives_what_it_gives_inside_a_batch(pruner: Pruner) -> None:
    tokens = make_tokens(ragged=False)
    together = kept(pruner.select(tokens, 5, **make_context(pruner, tokens)), tokens)
    context = make_context(pruner, tokens)
    for row in range(len(tokens)):
        one = tokens[row : row + 1]
        assert kept(pruner.select(one, 5, **rows_of(context, slice(row, row + 1))), one) == [together[row]]


def test_a_shuffled_batch_gives_the_ids_of_each_item_alone_in_that_order(pruner: Pruner) -> None:
    order = [3, 0, 4, 2, 1]
    tokens = make_tokens()
    context = rows_of(make_context(pruner, tokens), torch.tensor(order))
    shuffled = tokens[torch.tensor(order)]
    together = kept(pruner.select(shuffled, 5, **context), shuffled)
    context = make_context(pruner, tokens)
    for row, original in enumerate(order):
        one = tokens[original : original + 1]
        selection = pruner.select(one, 5, **rows_of(context, slice(original, original + 1)))
        assert kept(selection, one) == [together[row]]


def test_the_same_input_gives_the_same_choice(pruner: Pruner) -> None:
    tokens = make_tokens()
    first, second = (kept(pruner.select(tokens, 5, **make_context(pruner, tokens)), tokens) for _ in range(2))
    assert first == second


def test_what_lies_in_padding_does_not_matter(pruner: Pruner) -> None:
    tokens = make_tokens()
    context = make_context(pruner, tokens)
    expected = kept(pruner.select(tokens, 5, **context), tokens)
    assert tokens.embeds is not None and tokens.indices is not None and tokens.scores is not None
    padding = ~tokens.mask
    for poison in (torch.nan, torch.inf, 1e30):
        poisoned = tokens.replace(
            embeds=tokens.embeds.masked_fill(padding[..., None], poison),
            indices=tokens.indices.masked_fill(padding, -1),
            scores=tokens.scores.masked_fill(padding, poison),
        )
        selection = pruner.select(poisoned, 5, **make_context(pruner, tokens))
        assert kept(selection, poisoned) == expected
        pruned = poisoned.select(selection)
        assert pruned.embeds is not None and not pruned.embeds[pruned.mask].isnan().any()


@pytest.mark.parametrize("shape", [(2, 0), (0, 4), (0, 0)])
def test_no_tokens_and_no_items_are_legal(pruner: Pruner, shape: tuple[int, int]) -> None:
    tokens = make_tokens()[: shape[0]].truncate(shape[1])
    budgets: list[Budget] = [3, 0.5, torch.full((shape[0],), 3)]
    for budget in budgets:
        context = rows_of(make_context(pruner, make_tokens()), slice(shape[0]), shape[1])
        pruned = tokens.select(pruner.select(tokens, budget, **context)).check()
        assert pruned.mask.sum() == tokens.mask[:, :3].sum() or isinstance(budget, float)


def test_the_selection_applies_to_tokens_and_records_where_they_came_from(pruner: Pruner) -> None:
    tokens = make_tokens()
    selection = pruner.select(tokens, 5, **make_context(pruner, tokens))
    pruned = tokens.select(selection).check()
    assert pruned.source is not None and pruned.indices is not None and tokens.indices is not None
    for row, slots in enumerate(kept(selection, tokens)):
        assert pruned.source[row, : len(slots)].tolist() == slots
        assert pruned.indices[row, : len(slots)].tolist() == tokens.indices[row, slots].tolist()


def test_gradients_pass_through_the_kept_tokens_only(pruner: Pruner) -> None:
    tokens = make_tokens(ragged=False)
    assert tokens.embeds is not None
    leaf = tokens.embeds.clone().requires_grad_()
    tokens = tokens.replace(embeds=leaf)
    selection = pruner.select(tokens, 5, **make_context(pruner, tokens))
    pruned = tokens.select(selection)
    assert pruned.embeds is not None
    pruned.embeds.sum().backward()
    expected = torch.zeros(tokens.mask.shape).scatter(1, selection.index, 1.0)
    assert leaf.grad is not None and torch.equal(leaf.grad[..., 0], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_it_takes_embeds_of_other_precision(pruner: Pruner, name: str, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16:
        skip_if_it_cannot(pruner, name, "bf16")
    tokens = make_tokens().to(dtype)
    pruned = tokens.select(pruner.select(tokens, 5, **make_context(pruner, tokens))).check()
    assert pruned.embeds is not None and pruned.embeds.dtype == dtype
    check_counts(pruner, pruned.valid_lengths.tolist(), BUDGETS["int"][1])


@pytest.mark.parametrize(
    "budget", ["int", pytest.param("half", marks=pytest.mark.slow), pytest.param("per_item", marks=pytest.mark.slow)]
)
def test_it_compiles_into_one_graph_with_the_same_choice(pruner: Pruner, name: str, budget: str) -> None:
    skip_if_it_cannot(pruner, name, "fullgraph")
    tokens = make_tokens()
    asked, _ = BUDGETS[budget]

    def prune(tokens: TokenTensor, context: Context) -> TokenTensor:
        return tokens.select(pruner.select(tokens, asked, **context))

    # A torch.Generator cannot enter a compiled graph: there, what is random draws from torch's own.
    context = {key: value for key, value in make_context(pruner, tokens).items() if key != "generator"}
    torch.compiler.reset()
    results = []
    for run in (prune, torch.compile(prune, fullgraph=True, backend="aot_eager")):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            results.append(run(tokens, context))
    expected, found = results
    assert found.valid_lengths.tolist() == expected.valid_lengths.tolist()
    for field, value in expected.packed().values.items():
        assert torch.equal(found.packed().values[field], value)


@pytest.mark.parametrize(
    ("budget", "error", "message"),
    [
        (0, ValueError, "at least 1 token, got 0"),
        (-2, ValueError, "at least 1 token, got -2"),
        (0.0, ValueError, r"a fraction in \(0, 1\], got 0.0"),
        (1.5, ValueError, r"a fraction in \(0, 1\], got 1.5"),
        (float("nan"), ValueError, r"a fraction in \(0, 1\], got nan"),
        (True, TypeError, "got bool True"),
        ("5", TypeError, "got str '5'"),
        (torch.ones(2).long(), ValueError, r"integers \[B\] with B=5, got \[2\]"),
        (torch.ones(5), ValueError, r"integers \[B\] .* torch.float32"),
        (torch.tensor([1, 1, 1, 1, -1]), ValueError, "tokens >= 0 per item"),
    ],
)
def test_a_budget_that_is_none_is_refused(pruner: Pruner, budget: Any, error: type[Exception], message: str) -> None:
    tokens = make_tokens()
    with pytest.raises(error, match=message):
        pruner.select(tokens, budget, **make_context(pruner, tokens))


def test_context_it_does_not_take_is_refused_by_name(pruner: Pruner) -> None:
    tokens = make_tokens()
    with pytest.raises(TypeError, match="colour"):
        pruner.select(tokens, 5, **make_context(pruner, tokens), colour="blue")


def test_it_is_a_pruner_by_its_methods(pruner: Pruner) -> None:
    assert isinstance(pruner, Pruner)
    assert isinstance(pruner.cannot, frozenset) and isinstance(pruner.needs, frozenset)
