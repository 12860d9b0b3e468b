"""Replaced spans keep length, markers and text; each mode writes the codes it is named for."""

import pytest
import torch

from vistok.lvlm.span_replacement import MODES, replace_span
from vistok.lvlm.vocabulary import VocabMap

FAMILY = VocabMap("depth", range(10, 18), begin=(3,), end=(4,))
IDS = torch.tensor([1, 3, 12, 13, 4, 7, 3, 15, 10, 4, 2])
CODES = [2, 3, 7, 8]


def replaced(mode, **options):
    made = replace_span(IDS, FAMILY, mode, **options)
    others = torch.ones(len(IDS), dtype=torch.bool)
    others[CODES] = False
    assert torch.equal(made[others], IDS[others]) and len(made) == len(IDS)
    return made[CODES].tolist()


def test_each_mode_writes_its_codes():
    assert replaced("identity") == [12, 13, 15, 10]
    assert replaced("oracle", oracle=torch.tensor([7, 0, 1, 2])) == [17, 10, 11, 12]
    assert replaced("first_repeat") == [12, 12, 15, 15]
    assert replaced("constant") == [14] * 4
    drawn = replaced("random", generator=torch.Generator().manual_seed(0))
    assert drawn == replaced("random", generator=torch.Generator().manual_seed(0)) != [12, 13, 15, 10]


def test_random_codes_come_from_the_whole_family():
    draw = torch.Generator().manual_seed(0)
    seen = {code for _ in range(40) for code in replaced("random", generator=draw)}
    assert seen == set(range(10, 18))


def test_a_sequence_without_spans_stays_as_it_is():
    plain = torch.tensor([1, 7, 2])
    for mode in MODES:
        options = {"generator": torch.Generator(), "oracle": torch.tensor([], dtype=torch.int64)}
        assert torch.equal(replace_span(plain, FAMILY, mode, **options), plain)


@pytest.mark.parametrize(
    ("mode", "options", "message"),
    [
        ("mean", {}, "a mode among identity, oracle, random, first_repeat, constant, got 'mean'"),
        ("random", {}, "a generator for mode 'random'"),
        ("oracle", {}, r"oracle codes \[4\] for 2 spans, got none"),
        ("oracle", {"oracle": torch.tensor([1])}, r"oracle codes \[4\] for 2 spans, got \[1\]"),
    ],
)
def test_mistakes_are_named(mode, options, message):
    with pytest.raises(ValueError, match=message):
        replace_span(IDS, FAMILY, mode, **options)
