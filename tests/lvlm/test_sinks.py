"""Sinks and massive activations: measures by hand, a planted one found in a real forward, the model left as it was."""

from typing import Any

import pytest
import torch

from vistok.lvlm.prompting import batches
from vistok.lvlm.scene_questions import scene_picture, scene_questions
from vistok.lvlm.sinks import TokenStates, received_attention, state_measures, token_states

from .micro_fixtures import tiny_micro


@pytest.fixture(scope="module")
def host() -> tuple[Any, Any]:
    return tiny_micro()


@pytest.fixture(scope="module")
def inputs(host: tuple[Any, Any]) -> dict[str, Any]:
    model, processor = host
    return next(iter(batches(model, processor, scene_questions("test", 4), scene_picture(64), batch=4))).inputs


def test_received_attention_is_in_shares_of_even_attention() -> None:
    even = torch.tensor([[1, 0, 0], [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]])[None, None]
    assert torch.allclose(received_attention(even, torch.ones(1, 3, dtype=torch.bool)), torch.ones(1, 3))
    first = torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, 0, 0]])
    heads = torch.stack([first, even[0, 0]])[None]  # a mean over heads of 1, 3/4, 2/3 where 1, 1/2, 1/3 are even
    found = received_attention(heads, torch.ones(1, 3, dtype=torch.bool))
    assert found[0].tolist() == pytest.approx([(1 + 3 / 4 + 2 / 3) / (11 / 6), (1 / 4 + 1 / 6) / (5 / 6), 1 / 2])


def test_padding_gives_and_gets_no_attention() -> None:
    weights = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([[False, True, True, True]])
    own = weights[..., 1:, 1:]
    assert torch.allclose(
        received_attention(weights, valid)[:, 1:], received_attention(own, torch.ones(1, 3, dtype=torch.bool))
    )
    assert float(received_attention(weights, valid)[0, 0]) == 0


def test_state_measures_by_hand() -> None:
    hidden = torch.tensor([[[9.0, 9.0], [3.0, -4.0], [6.0, -8.0], [0.0, 2.0]]])
    valid = torch.tensor([[False, True, True, True]])
    largest, cosine, median = state_measures(hidden, valid)
    assert largest[0, 1:].tolist() == [4, 8, 2]
    assert cosine[0, 1:].tolist() == pytest.approx([1, 1, -0.8])  # to (3, -4), the first that is no padding
    assert float(median) == 3  # of 0 2 3 4 6 8, the lower of the two in the middle


def test_massive_is_large_and_far_above_the_median_and_sinks_draw_several_shares() -> None:
    valid = torch.tensor([[True, True, True, False]])
    visual = torch.tensor([[False, True, True, False]])
    activation = torch.tensor([[[90.0, 150.0, 150.0, 900.0]], [[90.0, 150.0, 99.0, 900.0]]])
    attention = torch.tensor([[[9.0, 5.0, 4.9, 9.0]], [[0.0, 0.0, 7.0, 0.0]]])
    found = TokenStates(valid, visual, attention, activation, attention, torch.tensor([0.2, 0.05]))
    assert found.massive().tolist() == [[[False] * 4], [[False, True, False, False]]]
    assert found.massive(ratio=10).tolist()[0] == [[False, True, True, False]]
    assert found.sinks().tolist() == [[[True, True, False, False]], [[False, False, True, False]]]
    assert found.largest_ratio == pytest.approx(150 / 0.05)


def test_a_planted_massive_activation_is_found_where_it_is(host: tuple[Any, Any], inputs: dict[str, Any]) -> None:
    model, _ = host
    before = token_states(model, inputs)
    place = int(before.visual[1].nonzero()[7, 0])
    assert not bool(before.massive().any())

    def plant(module: Any, args: Any, output: Any) -> Any:
        output[1, place, 3] = 1e6
        return output

    handle = model.model.language_model.layers[2].mlp.register_forward_hook(plant)
    try:
        found = token_states(model, inputs).massive()
    finally:
        handle.remove()
    assert found[2:-1].nonzero()[:, 1:].unique(dim=0).tolist() == [[1, place]]  # behind the last layer stands a norm
    assert not bool(found[:2].any())


def test_attention_adds_up_and_the_model_attends_as_before(host: tuple[Any, Any], inputs: dict[str, Any]) -> None:
    model, _ = host
    ways = {name: part.config._attn_implementation for name, part in model.named_modules() if hasattr(part, "config")}
    found = token_states(model, inputs)
    assert ways == {
        name: part.config._attn_implementation for name, part in model.named_modules() if hasattr(part, "config")
    }
    layers = model.config.text_config.num_hidden_layers
    assert found.attention.shape == (layers, *inputs["input_ids"].shape) and found.median.shape == (layers,)
    assert found.visual.sum(1).tolist() == [36] * 4
    seen = found.valid.cumsum(1)
    for item in range(4):
        rows = seen[item][found.valid[item]]
        even = torch.stack([(1 / rows[start:]).sum() for start in range(len(rows))])
        drawn = found.attention[:, item][:, found.valid[item]] * even
        assert torch.allclose(drawn.sum(1), torch.full((layers,), float(len(rows))), atol=1e-3)
