"""The mark by hand, the false-positive rate exact and as counted, messages, nearest codes of the right class."""

import math

import pytest
import torch

from vistok.codecs.watermark import (
    SurvivalNet,
    Watermark,
    best_places,
    binomial_tails,
    clustered_classes,
    keyed_numbers,
    threshold,
)

LINE = torch.arange(10.0)[:, None]  # ten codes on a line, their class is odd or even


def test_a_token_of_the_wrong_class_gives_way_to_the_nearest_of_the_right_one():
    mark = Watermark(LINE * torch.tensor([[1.0, 0.5]]), "k")
    ids = torch.tensor([[4, 4, 4, 4, 9, 9, 0, 0]])
    wanted = mark.wanted(8)
    assert set(wanted.tolist()) == {0, 1}
    for before, after, value in zip(ids[0].tolist(), mark.replacements(ids)[0].tolist(), wanted.tolist(), strict=True):
        assert after % 2 == value and abs(after - before) == (before % 2 != value)


def test_only_chosen_places_change_and_all_of_them_match():
    mark = Watermark(LINE, "k")
    ids = torch.randint(10, (3, 40), generator=torch.Generator().manual_seed(0))
    places = mark.random_places(40, 15, 3)
    made = mark.embed(ids, places)
    others = torch.ones(40, dtype=torch.bool).index_fill(0, places[0], False)
    assert torch.equal(made[:, others], ids[:, others]) and not torch.equal(made, ids)
    seen = mark.detect(made, places)
    assert seen.matches.tolist() == [15] * 3 and seen.found.all()
    torch.testing.assert_close(seen.p_value, torch.full((3,), 2.0**-15, dtype=torch.float64))
    assert not Watermark(LINE, "another").detect(made, places).found.any()


def test_tails_and_thresholds_by_hand():
    assert binomial_tails(3, 2) == (1.0, 7 / 8, 4 / 8, 1 / 8, 0.0)
    assert binomial_tails(2, 3) == (1.0, 5 / 9, 1 / 9, 0.0)
    assert threshold(3, 0.13) == 3 and threshold(3, 0.1) == 4  # all three by chance: 1 / 8
    counted = sum(math.comb(64, matches) for matches in range(45, 65)) / 2**64
    assert threshold(64, 1e-3) == 45 and counted <= 1e-3 < binomial_tails(64, 2)[44]


@pytest.mark.parametrize("chosen", ["by the key", "by the ids"])
def test_false_positives_are_as_rare_as_stated_whatever_the_ids(chosen):
    # Ids that chance would not make: half of the pictures all even, and places that lean on the ids.
    ids = torch.randint(5, (40, 24), generator=torch.Generator().manual_seed(0)) * 2
    ids[::2] += 1
    rate, trials, found = 0.05, 0, 0
    for number in range(150):
        mark = Watermark(LINE, f"key {number}")
        places = mark.random_places(24, 12, 40) if chosen == "by the key" else best_places(ids.float(), 12)
        found += int(mark.detect(ids, places, rate=rate).found.sum())
        trials += len(ids)
    expected = binomial_tails(12, 2)[threshold(12, rate)]
    # Pictures share keys, so they agree with one another: the spread is that of 150 keys, not of 6000 trials.
    assert expected <= rate and abs(found / trials - expected) < 4 * math.sqrt(expected / 150)


def test_a_message_is_read_back_and_another_one_is_not_seen():
    mark = Watermark(LINE, "k", 3)
    message = torch.tensor([2, 0, 1, 1, 2])
    ids = torch.randint(10, (2, 60), generator=torch.Generator().manual_seed(0))
    places = mark.random_places(60, 40, 2)
    made = mark.embed(ids, places, message)
    assert mark.read(made, places, 5).tolist() == [message.tolist()] * 2
    assert mark.detect(made, places, message).found.all()
    assert not mark.detect(made, places, (message + 1) % 3).found.any()
    assert mark.read(made, torch.tensor([[0, 1]] * 2), 4).tolist()[0][2:] == [-1, -1]


def test_a_key_says_the_same_on_every_machine():
    assert keyed_numbers("k", "pad", 2) == [3427792902143355794, 2467996529971430382]
    assert keyed_numbers("k", "pad", 3)[:2] == keyed_numbers("k", "pad", 2) != keyed_numbers("k", "places", 2)


def test_neighbours_share_a_class_of_clusters():
    classes = clustered_classes(LINE, 4)
    assert set(classes.tolist()) == {0, 1}
    changes = int((classes[1:] != classes[:-1]).sum())
    assert changes <= 3  # four clusters in a row have at most three borders, single codes nine


def test_a_net_sees_its_neighbourhood_and_no_other_item():
    torch.manual_seed(0)
    net, codes = SurvivalNet(2, 4), torch.randn(2, 5, 6, 2)
    scores = net(codes)
    assert scores.shape == (2, 30)
    changed = codes.clone()
    changed[0, 2, 2] += 5
    moved = (net(changed) - scores).abs() > 1e-6
    assert bool(moved[0, 14]) and not bool(moved[1].any()) and not bool(moved[0, 29])


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: Watermark(LINE, ""), "a key and a modulus"),
        (lambda: Watermark(LINE, "k", 11), "a modulus in 2..10"),
        (lambda: Watermark(LINE, "k", 2, torch.zeros(10, dtype=torch.int64)), "each used"),
        (lambda: Watermark(LINE, "k").wanted(4, torch.tensor([2])), "symbols in 0..1"),
        (lambda: Watermark(LINE, "k").random_places(4, 5), "1..4 places"),
        (lambda: Watermark(LINE, "k").embed(torch.tensor([[10]]), torch.tensor([[0]])), "watermark: expected"),
        (lambda: Watermark(LINE, "k").embed(torch.tensor([[-1]]), torch.tensor([[0]])), "take ids without padding"),
        (lambda: Watermark(LINE, "k").detect(torch.tensor([[-1]]), torch.tensor([[0]])), "take ids without padding"),
        (lambda: Watermark(LINE, "k").read(torch.tensor([[10]]), torch.tensor([[0]]), 1), "watermark: expected ids"),
        (lambda: best_places(torch.zeros(1, 3), 0), "1..3 places"),
        (lambda: threshold(5, 0.0), "false-positive rate"),
        (lambda: clustered_classes(LINE, 1), "clusters in 2..10"),
    ],
)
def test_what_makes_no_mark_is_told(call, told):
    with pytest.raises(ValueError, match=told):
        call()
