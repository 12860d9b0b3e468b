import pytest
import torch

from vistok.layers.key_value_cache import KeyValueCache, LayerCache, causal_mask


def test_a_cache_gives_back_everything_in_order_however_it_came(generator: torch.Generator) -> None:
    keys, values = torch.randn(2, 2, 3, 70, 4, generator=generator)
    for chunks in ([1] * 70, [33, 1, 36], [70]):
        cache = LayerCache()
        for k, v in zip(keys.split(chunks, 2), values.split(chunks, 2), strict=True):
            seen_keys, seen_values = cache.append(k, v)
        assert cache.length == 70
        assert torch.equal(seen_keys, keys) and torch.equal(seen_values, values)


def test_another_batch_is_refused() -> None:
    cache = KeyValueCache(1)
    assert cache.length == 0
    cache.layers[0].append(torch.zeros(2, 1, 1, 4), torch.zeros(2, 1, 1, 4))
    with pytest.raises(ValueError, match="batch of 2 as in earlier steps, got 1"):
        cache.layers[0].append(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4))
    assert cache.length == 1


def test_new_tokens_see_the_past_and_each_other_up_to_themselves() -> None:
    assert causal_mask(2, 5, torch.device("cpu")).int().tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert causal_mask(3, 3, torch.device("cpu")).int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
