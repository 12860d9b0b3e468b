"""Given codes stand where the model would write codes, and nowhere else."""

import pytest
import torch

from vistok.lvlm.forced_codes import ForcedCodes
from vistok.lvlm.vocabulary import VocabMap

CODES = VocabMap("depth", (7, 5, 6), begin=(3,), end=(4,))


def test_the_next_given_code_takes_the_place_of_a_code_and_words_stay():
    scores = torch.zeros(3, 9)
    scores[0, 5] = scores[1, 2] = scores[2, 6] = 4.0  # a code, a word, a code
    ids = torch.tensor([[5, 3, 3], [1, 3, 3], [1, 7, 3]])
    made = ForcedCodes(CODES, [[2], [2], [0]], prompt_length=1)(ids, scores)
    assert made.argmax(1).tolist() == [6, 2, 6], "the last row has used up its own"
    assert torch.equal(made[1:], scores[1:]) and made[0, [7, 5]].eq(float("-inf")).all()
    made = ForcedCodes(CODES, [[2], [2], [0, 0]], prompt_length=1)(ids, scores)
    assert made.argmax(1).tolist() == [6, 2, 7]


def test_beams_are_refused():
    with pytest.raises(ValueError, match=r"expected 1 rows.*got 3; search with num_beams=1"):
        ForcedCodes(CODES, [[1]], 0)(torch.zeros(3, 1).long(), torch.zeros(3, 9))
