"""A picture's tokens as a strip of slots, whatever slots a file says they sit in."""

import pytest
import torch

from vistok.report.token_pictures import slot_count, token_colors, token_picture
from vistok.tokens import TokenSpec, TokenTensor


@pytest.mark.parametrize(("last", "shown"), [(40, True), (2_000_000_000, False)])
def test_a_strip_has_a_cell_for_every_slot_unless_they_are_too_many_to_see(last: int, shown: bool) -> None:
    spec = TokenSpec("made", codebook_sizes=(900,), order="1d")
    tokens = TokenTensor(indices=torch.tensor([[1, 2]]), source=torch.tensor([[3, last]]), spec=spec)
    (colors,) = token_colors([tokens])
    slots = slot_count(tokens, None)
    assert slots == last + 1
    strip = token_picture("name", None, tokens, colors, slots).strip
    assert (strip is not None) == shown
    assert strip is None or (strip.height == 3 and strip.text == "2 of 41 slots hold a token.")
