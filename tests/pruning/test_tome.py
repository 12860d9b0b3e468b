from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vistok
from vistok.ops import bipartite_match
from vistok.pruning.tome import Tome, merged_slots, targets
from vistok.tokens import TokenSpec, TokenTensor


def tokens_of(embeds: Any) -> TokenTensor:
    values = torch.as_tensor(embeds, dtype=torch.float32)
    return TokenTensor(TokenSpec("toy", dim=values.shape[2]), embeds=values)


def test_the_closest_pair_becomes_its_mean_at_the_place_of_the_odd_token() -> None:
    tokens = tokens_of([[[1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [0.1, 4.0], [0.0, 2.0], [-1.0, 0.2]]])
    reduced = Tome().reduce(tokens, 5)
    # Token 4 points exactly to where token 1 does.
    assert reduced.source is not None and reduced.source.tolist() == [[0, 1, 2, 3, 5]]
    assert reduced.embeds is not None and reduced.embeds[0, 1].tolist() == [0.0, 1.5]
    assert reduced.sizes is not None and reduced.sizes.tolist() == [[1.0, 2.0, 1.0, 1.0, 1.0]]
    assert Tome().select(tokens, 5).index.tolist() == [[0, 1, 2, 3, 5]]


def test_tokens_that_stand_for_several_weigh_as_much() -> None:
    tokens = tokens_of([[[1.0], [3.0]]]).replace(sizes=torch.tensor([[3.0, 1.0]]))
    reduced = Tome().reduce(tokens, 1)
    assert reduced.embeds is not None and reduced.embeds.flatten().tolist() == [1.5]
    assert reduced.sizes is not None and reduced.sizes.tolist() == [[4.0]]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**31))
def test_every_token_lands_in_the_slot_whose_mean_it_is_part_of(count: int, wanted: int, seed: int) -> None:
    embeds = torch.randn(2, count, 4, generator=torch.Generator().manual_seed(seed))
    kept = min(count, wanted)
    slot, places = merged_slots(embeds, torch.ones(2, count), kept)
    reduced = Tome().reduce(tokens_of(embeds), wanted)
    assert reduced.embeds is not None and reduced.embeds.shape == (2, kept, 4)
    for row in range(2):
        assert slot[row].unique().tolist() == list(range(kept))
        assert places[row].tolist() == sorted(set(places[row].tolist()))
        assert slot[row, places[row]].tolist() == list(range(kept)), "a slot's place is one of its own tokens"
        for number in range(kept):
            torch.testing.assert_close(
                reduced.embeds[row, number], embeds[row, slot[row] == number].mean(0), rtol=1e-4, atol=1e-5
            )


def test_the_target_of_a_slot_is_its_odd_token() -> None:
    metric = torch.randn(3, 9, 4, generator=torch.Generator().manual_seed(1))
    pairs = bipartite_match(metric, 3)
    for row, found in enumerate(targets(pairs).tolist()):
        for number, place in enumerate(found):
            members = (pairs.slot[row] == number).nonzero()[:, 0].tolist()
            odd = [member for member in members if member % 2]
            assert place == (odd[0] if odd else members[0])


@pytest.mark.parametrize(
    ("tokens", "blocks", "budget", "steps"),
    [(16, 4, 8, [2, 2, 2, 2]), (16, 3, 0.5, [3, 3, 2]), (144, 5, 14, [26, 26, 36, 28, 14]), (9, 2, 3, [3, 3])],
)
def test_blocks_share_what_is_to_be_merged(tokens: int, blocks: int, budget: Any, steps: list[int]) -> None:
    assert Tome(stage="tower").blocks(tokens, blocks, budget) == steps


def test_what_blocks_cannot_reach_and_settings_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="a budget of 4 tokens or more, to which 2 blocks"):
        Tome().blocks(16, 2, 3)
    with pytest.raises(ValueError, match="one budget for all images"):
        Tome().blocks(16, 2, torch.tensor([3]))
    with pytest.raises(ValueError, match="stage to be one of"):
        vistok.pruner("tome", stage="attic")
    with pytest.raises(ValueError, match="expected tokens with embeds"):
        ids = TokenTensor(TokenSpec("toy", codebook_sizes=(9,)), indices=torch.zeros(1, 4, dtype=torch.int64))
        Tome().reduce(ids, 2)
