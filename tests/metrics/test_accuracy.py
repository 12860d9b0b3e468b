from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from vistok.metrics.accuracy import (
    accuracy,
    accuracy_by_kind,
    constant_answers,
    exact_matches,
    normalized,
    paired_difference,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("said", "same"),
    [("  Left. ", "left"), ("“Yes!”", "yes"), ("2.5", "2.5"), ("a  half-open\nbox", "a half-open box"), ("?!", "")],
)
def test_case_space_and_punctuation_around_words_do_not_count(said, same):
    assert normalized(said) == same
    assert normalized(normalized(said)) == normalized(said)


def test_a_longer_or_other_answer_is_no_match():
    assert exact_matches(["Red", "red ring", "", "2.5"], ["red", "red", "red", "25"]) == [True, False, False, False]


@given(st.integers(1, 300), st.data())
@settings(max_examples=25, deadline=None)
def test_intervals_are_those_of_scipy(questions, data):
    right = data.draw(st.integers(0, questions))
    expected = binomtest(right, questions).proportion_ci(0.95, "wilson")
    assert wilson_interval(right, questions) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_intervals_stay_in_0_to_1_and_hold_the_share():
    assert wilson_interval(0, 10)[0] == 0.0 and wilson_interval(10, 10)[1] == 1.0
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I


def test_accuracy_by_kind_keeps_the_order_of_kinds():
    found = accuracy_by_kind(["b", "a", "b", "b"], [True, False, False, True])
    assert list(found) == ["b", "a"]
    assert (found["b"].accuracy, found["b"].questions, found["a"].accuracy) == (2 / 3, 3, 0.0)
    with pytest.raises(ValueError, match="at least one question"):
        accuracy([])


def test_the_constant_answer_is_the_most_frequent_one_of_its_kind():
    kinds, truths = ["a", "a", "a", "b", "b"], ["1", "2.", "2", "Red", "blue"]
    assert constant_answers(kinds, truths) == {"a": "2", "b": "red"}


def test_paired_difference_by_hand():
    """20 won, 8 lost, 72 alike: Agresti and Min with 12 / 102 and variance (29 - 144 / 102) / 102^2."""
    first = [True] * 8 + [False] * 20 + [True] * 72
    second = [False] * 8 + [True] * 20 + [True] * 72
    found = paired_difference(first, second)
    reach = 1.959964 * ((29 - 144 / 102) / 102**2) ** 0.5
    assert found.difference == pytest.approx(0.12)
    assert found.interval == pytest.approx((12 / 102 - reach, 12 / 102 + reach), abs=1e-6)
    assert found.p_value == pytest.approx(binomtest(8, 28).pvalue)


@given(st.lists(st.sampled_from(list(product([False, True], repeat=2))), min_size=1, max_size=80))
@settings(max_examples=25, deadline=None)
def test_paired_differences_change_sign_with_the_order(pairs):
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    one, other = paired_difference(first, second), paired_difference(second, first)
    assert one.difference == -other.difference == accuracy(second).accuracy - accuracy(first).accuracy or (
        one.difference == pytest.approx(accuracy(second).accuracy - accuracy(first).accuracy)
    )
    assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]))
    assert one.p_value == other.p_value
    lost = sum(a and not b for a, b in pairs)
    discordant = lost + sum(b and not a for a, b in pairs)
    assert one.p_value == pytest.approx(binomtest(lost, discordant).pvalue if discordant else 1.0)


def test_methods_on_other_questions_cannot_be_paired():
    with pytest.raises(ValueError, match="same questions"):
        paired_difference([True], [True, False])
