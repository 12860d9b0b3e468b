"""A random subset: repeatable, per item, and really random."""

import torch
from torch import Tensor

import vistok
from vistok.pruning.random import _splitmix64
from vistok.tokens import TokenSpec, TokenTensor


def toy(batch: int, slots: int) -> TokenTensor:
    return TokenTensor(TokenSpec("toy"), indices=torch.zeros(batch, slots, dtype=torch.int64))


def choose(tokens: TokenTensor, budget: int, seed: int) -> Tensor:
    return vistok.pruner("random").select(tokens, budget, generator=torch.Generator().manual_seed(seed)).index


def test_the_hash_is_splitmix64() -> None:
    # The first outputs of the reference implementation for seed 0: states 1, 2 and 3 times the golden gamma.
    gamma = 0x9E3779B97F4A7C15
    states = torch.tensor([(i * gamma + 2**63) % 2**64 - 2**63 for i in (1, 2, 3)])
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [value % 2**64 for value in _splitmix64(states).tolist()] == expected


def test_a_seed_repeats_the_choice_and_another_changes_it() -> None:
    tokens = toy(4, 50)
    assert torch.equal(choose(tokens, 20, 0), choose(tokens, 20, 0))
    assert not torch.equal(choose(tokens, 20, 0), choose(tokens, 20, 1))


def test_one_generator_gives_every_call_and_every_item_another_choice() -> None:
    generator = torch.Generator().manual_seed(0)
    pruner = vistok.pruner("random")
    rows = torch.cat([pruner.select(toy(3, 50), 20, generator=generator).index for _ in range(3)])
    assert len(rows.unique(dim=0)) == 9


def test_items_one_after_the_other_get_what_they_get_together() -> None:
    generator = torch.Generator().manual_seed(3)
    pruner = vistok.pruner("random")
    alone = torch.cat([pruner.select(toy(1, 30), 7, generator=generator).index for _ in range(4)])
    assert torch.equal(alone, choose(toy(4, 30), 7, 3))


def test_a_smaller_budget_keeps_a_subset() -> None:
    few, many = choose(toy(2, 40), 5, 9), choose(toy(2, 40), 25, 9)
    for small, large in zip(few.tolist(), many.tolist(), strict=True):
        assert set(small) < set(large)


def test_every_slot_and_every_pair_of_neighbours_is_kept_equally_often() -> None:
    draws, slots, budget = 4000, 12, 4
    index = choose(toy(draws, slots), budget, 1)
    kept = torch.zeros(draws, slots).scatter(1, index, 1.0)
    share = budget / slots
    spread = (share * (1 - share) / draws) ** 0.5
    assert (kept.mean(0) - share).abs().max() < 4.5 * spread
    pair = share * (budget - 1) / (slots - 1)
    both = (kept[:, 1:] * kept[:, :-1]).mean(0)
    assert (both - pair).abs().max() < 4.5 * (pair * (1 - pair) / draws) ** 0.5


def test_without_a_generator_it_draws_from_the_one_of_torch() -> None:
    pruner = vistok.pruner("random")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        first, second = pruner.select(toy(2, 40), 10).index, pruner.select(toy(2, 40), 10).index
        torch.manual_seed(5)
        again = pruner.select(toy(2, 40), 10).index
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
