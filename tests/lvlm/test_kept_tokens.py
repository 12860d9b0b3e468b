"""What is told to be kept is what the model was left with."""

import torch

from vistok.lvlm.kept_tokens import bits


def test_bits_are_digits_from_the_first_token_on() -> None:
    assert bits(torch.tensor([True, False, False, True, True])) == "98"
    assert bits(torch.ones(12, dtype=torch.bool)) == "fff" and bits(torch.zeros(0, dtype=torch.bool)) == ""
