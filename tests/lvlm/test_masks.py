"""Masks of prompts from which tokens are missing, for every kind of attention."""

import pytest
import torch
from torch import Tensor

from vistok.lvlm.masks import decode_mask, padding_mask, prefill_mask

INDEX = torch.tensor([[0, 2, 3], [1, 2, 4]])
DEAD = torch.tensor([[True, False, False], [False, False, False]])
HIDDEN = torch.zeros(2, 3, 8)


def visible(mask: Tensor | None, rows: int, keys: int) -> Tensor:
    """[2, rows, keys] bool, whatever the form."""
    if mask is None:
        return torch.ones(2, rows, keys, dtype=torch.bool).tril(keys - rows)
    if mask.ndim == 2:
        return torch.ones(2, rows, keys, dtype=torch.bool).tril(keys - rows) & mask.bool()[:, None]
    return (mask if mask.dtype == torch.bool else mask == 0)[:, 0].expand(2, rows, keys)


def forms(valid: Tensor) -> dict[str, Tensor]:
    """One padding mask [B, n] as every kind of attention has it during a prefill."""
    seen = torch.ones(5, 5, dtype=torch.bool).tril() & valid[:, None, None]
    return {"sdpa": seen, "eager": torch.where(seen, 0.0, torch.finfo(torch.float32).min), "flash_attention_2": valid}


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash_attention_2"])
@pytest.mark.parametrize("dead", [None, DEAD])
def test_a_prefill_mask_shows_what_is_left(attention: str, dead: Tensor | None) -> None:
    valid = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]).bool()
    mask = prefill_mask(forms(valid)[attention], INDEX, dead, HIDDEN, attention)
    left = valid.gather(1, INDEX) if dead is None else valid.gather(1, INDEX) & ~dead
    expected = torch.ones(3, 3, dtype=torch.bool).tril() & left[:, None]
    seen = visible(mask, 3, 3)
    alive = torch.ones(2, 3, dtype=torch.bool) if dead is None else ~dead
    assert torch.equal(seen[alive], expected[alive])
    if attention != "flash_attention_2":
        assert seen.any(2).all()


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash_attention_2"])
def test_a_causal_prompt_needs_a_mask_only_where_tokens_are_dead(attention: str) -> None:
    assert prefill_mask(None, INDEX, None, HIDDEN, attention) is None
    seen = visible(prefill_mask(None, INDEX, DEAD, HIDDEN, attention), 3, 3)
    expected = torch.ones(3, 3, dtype=torch.bool).tril() & ~DEAD[:, None]
    assert torch.equal(seen[~DEAD], expected[~DEAD])


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash_attention_2"])
@pytest.mark.parametrize("rows", [1, 2])
def test_new_rows_see_what_is_left_and_each_other_in_order(attention: str, rows: int) -> None:
    like = torch.zeros(2, rows, 8)
    # Five prompt tokens, one new one in the cache, and `rows` now.
    assert decode_mask(None, INDEX, None, 5, 6, like, attention) is None
    keys = 3 + 1 + rows
    left = torch.nn.functional.pad(~DEAD, (0, 1 + rows), value=True)
    expected = torch.ones(2, rows, keys, dtype=torch.bool).tril(keys - rows) & left[:, None]
    assert torch.equal(visible(decode_mask(None, INDEX, DEAD, 5, 6, like, attention), rows, keys), expected)
    total = 6 + rows
    valid = torch.ones(2, total, dtype=torch.bool)
    valid[1, 1] = False
    seen = torch.ones(rows, total, dtype=torch.bool).tril(total - rows) & valid[:, None, None]
    given = {"sdpa": seen, "eager": torch.where(seen, 0.0, torch.finfo(torch.float32).min), "flash_attention_2": valid}
    mask = decode_mask(given[attention], INDEX, DEAD, 5, 6, like, attention)
    expected[1, :, 0] = False
    assert torch.equal(visible(mask, rows, keys), expected)


def test_a_padding_mask_covers_the_kept_prompt_and_what_follows() -> None:
    full = torch.tensor([[1, 1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1, 1]])
    assert padding_mask(full, INDEX, DEAD, 5, 7).tolist() == [[0, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert padding_mask(None, INDEX, DEAD, 5, 7).tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
    with pytest.raises(ValueError, match=r"attention_mask \[B, 7\]"):
        padding_mask(full[:, :2], INDEX, DEAD, 5, 7)
