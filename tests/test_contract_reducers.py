"""What every pruner with a `reduce` promises, over all of `vistok.list_pruners()`: as many tokens as budgeted.

Each stands at a place of its own, though they are no subset of what there was. test_contract_pruners.py holds what
`select` promises.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

import vistok
from vistok.tokens import TokenTensor

from .test_contract_pruners import BUDGETS, LENGTHS, SLOTS, make_context, make_tokens, rows_of, skip_if_it_cannot


def reducers() -> list[str]:
    names = vistok.list_pruners()
    return [name for name in names if hasattr(vistok.pruner(name, **vistok.info("pruner", name).tiny), "reduce")]


@pytest.fixture(params=reducers())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def reducer(name: str) -> Any:
    return vistok.pruner(name, **vistok.info("pruner", name).tiny)


def assert_same(first: TokenTensor, second: TokenTensor) -> None:
    """Equal in all that is valid, up to the order in which a sum was made."""
    ours, theirs = first.packed(), second.packed()
    assert ours.values.keys() == theirs.values.keys() and torch.equal(ours.cu_seqlens, theirs.cu_seqlens)
    for field, value in ours.values.items():
        torch.testing.assert_close(value, theirs.values[field], msg=lambda text, field=field: f"{field}: {text}")


def test_there_are_such_pruners() -> None:
    assert "pool" in reducers()


@pytest.mark.parametrize("budget", BUDGETS)
def test_it_leaves_as_many_tokens_as_budgeted_each_at_a_place_of_its_own(reducer: Any, budget: str) -> None:
    tokens = make_tokens()
    asked, expected = BUDGETS[budget]
    reduced = reducer.reduce(tokens, asked, **make_context(reducer, tokens)).check()
    assert reduced.valid_lengths.tolist() == expected
    assert reduced.source is not None
    for row, count, length in zip(reduced.source.tolist(), expected, LENGTHS, strict=True):
        assert len(set(row[:count])) == count and all(0 <= place < length for place in row[:count])


def test_a_budget_of_everything_is_the_identity(reducer: Any) -> None:
    tokens = make_tokens(ragged=False)
    reduced = reducer.reduce(tokens, SLOTS, **make_context(reducer, tokens))
    assert reduced.source.tolist() == [list(range(SLOTS))] * len(LENGTHS)
    assert torch.equal(reduced.embeds, tokens.embeds)


@pytest.mark.parametrize("budget", ["int", "half", "per_item"])
def test_a_ragged_batch_gives_the_tokens_of_each_item_alone(reducer: Any, budget: str) -> None:
    tokens = make_tokens()
    asked, _ = BUDGETS[budget]
    together = reducer.reduce(tokens, asked, **make_context(reducer, tokens))
    context = make_context(reducer, tokens)
    for row, length in enumerate(LENGTHS):
        one = tokens[row : row + 1].truncate(length).replace(lengths=None)
        own = asked[row : row + 1] if isinstance(asked, Tensor) else asked
        alone = reducer.reduce(one, own, **rows_of(context, slice(row, row + 1), length))
        assert_same(together[row : row + 1], alone)


def test_what_lies_in_padding_does_not_matter(reducer: Any) -> None:
    tokens = make_tokens()
    expected = reducer.reduce(tokens, 5, **make_context(reducer, tokens))
    assert tokens.embeds is not None and tokens.scores is not None and tokens.coords is not None
    padding = ~tokens.mask
    for poison in (torch.nan, torch.inf, 1e30):
        poisoned = tokens.replace(
            embeds=tokens.embeds.masked_fill(padding[..., None], poison),
            scores=tokens.scores.masked_fill(padding, poison),
            coords=tokens.coords.masked_fill(padding[..., None], -7),
        )
        assert_same(reducer.reduce(poisoned, 5, **make_context(reducer, tokens)), expected)


@pytest.mark.parametrize("shape", [(2, 0), (0, 4), (0, 0)])
def test_no_tokens_and_no_items_are_legal(reducer: Any, shape: tuple[int, int]) -> None:
    tokens = make_tokens()[: shape[0]].truncate(shape[1])
    context = rows_of(make_context(reducer, make_tokens()), slice(shape[0]), shape[1])
    assert reducer.reduce(tokens, 3, **context).check().mask.sum() == tokens.mask[:, :3].sum()


def test_gradients_reach_the_tokens(reducer: Any) -> None:
    tokens = make_tokens(ragged=False)
    assert tokens.embeds is not None
    leaf = tokens.embeds.clone().requires_grad_()
    tokens = tokens.replace(embeds=leaf)
    reducer.reduce(tokens, 5, **make_context(reducer, tokens)).embeds.sum().backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all() and (leaf.grad.abs().sum((1, 2)) > 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_embeds_keep_their_precision(reducer: Any, name: str, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16:
        skip_if_it_cannot(reducer, name, "bf16")
    tokens = make_tokens().to(dtype)
    assert reducer.reduce(tokens, 5, **make_context(reducer, tokens)).embeds.dtype == dtype


def test_it_compiles_into_one_graph_with_the_same_tokens(reducer: Any, name: str) -> None:
    skip_if_it_cannot(reducer, name, "fullgraph")
    tokens = make_tokens()
    context = {key: value for key, value in make_context(reducer, tokens).items() if key != "generator"}
    torch.compiler.reset()
    compiled = torch.compile(lambda given: reducer.reduce(given, 5, **context), fullgraph=True, backend="aot_eager")
    assert_same(compiled(tokens), reducer.reduce(tokens, 5, **context))


def test_context_it_does_not_take_is_refused_by_name(reducer: Any) -> None:
    tokens = make_tokens()
    with pytest.raises(TypeError, match="colour"):
        reducer.reduce(tokens, 5, **make_context(reducer, tokens), colour="blue")
