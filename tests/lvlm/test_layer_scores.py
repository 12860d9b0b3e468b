"""What pruners between layers choose in a model, against the maps that its eager attention gives out."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import vistok
import vistok.lvlm
from vistok.protocols import LayerCut


@pytest.fixture(params=["llava", "qwen"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(str(request.param))


def first_cut(model: Any, inputs: dict[str, Tensor], pruner: Any) -> LayerCut:
    made: list[LayerCut] = []
    begin = pruner.begin

    def begun(*args: Any) -> Any:
        run = begin(*args)

        def prune(view: Any) -> LayerCut:
            made.append(run.prune(view))
            return made[-1]

        return SimpleNamespace(observe=run.observe, prune=prune)

    pruner.begin = begun
    with vistok.lvlm.prune(model, pruner):
        model(**inputs)
    return made[0]


def eager(model: Any, inputs: dict[str, Tensor]) -> Any:
    """Attention maps, hidden states and keys of the model without pruning."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        return model(**inputs, output_attentions=True, output_hidden_states=True, use_cache=True)
    finally:
        model.set_attn_implementation(before)


def places(model: Any, inputs: dict[str, Tensor], row: int) -> tuple[list[int], list[int]]:
    """Of the visual tokens and of the words behind the last one."""
    visual = (inputs["input_ids"][row] == model.config.image_token_id).nonzero().flatten().tolist()
    return visual, list(range(visual[-1] + 1, inputs["input_ids"].shape[1]))


def check(cut: LayerCut, row: int, scores: Tensor, count: int) -> None:
    assert cut.scores is not None and cut.lengths is not None and int(cut.lengths[row]) == count
    torch.testing.assert_close(cut.scores[row], scores.float(), rtol=1e-4, atol=1e-6)
    assert cut.index[row, :count].tolist() == sorted(scores.argsort(descending=True, stable=True)[:count].tolist())


@pytest.mark.parametrize(("name", "layer", "seen"), [("fastv", 2, 2), ("pyramiddrop", 0, 1)])
@torch.no_grad()
def test_the_last_token_sees_what_it_sees_in_the_eager_layer(model: Any, name: str, layer: int, seen: int) -> None:
    inputs = model.inputs(texts=(4, 9), images=2)
    settings = {"layer": layer} if name == "fastv" else {"prune_after": [layer], "ratios": [0.5]}
    cut = first_cut(model.model, inputs, vistok.pruner(name, **settings))
    maps = eager(model.model, inputs).attentions[seen].double().mean(1)
    for row in range(2):
        visual, _ = places(model.model, inputs, row)
        check(cut, row, maps[row, -1, visual], 16)


@torch.no_grad()
def test_raters_of_the_decoders_input_rate_by_the_eager_layer(model: Any) -> None:
    inputs = model.inputs(texts=(4, 9), images=2)
    settings: Any = {"prune_after": [1], "counts": [1], "of": 4, "recycle": False}
    cut = first_cut(model.model, inputs, vistok.pruner("sparsevlm", **settings))
    out = eager(model.model, inputs)
    for row in range(2):
        visual, words = places(model.model, inputs, row)
        hidden = out.hidden_states[0][row].double()
        share = (hidden[visual] @ hidden[words].T).softmax(1).mean(0)
        raters = [word for word, own in zip(words, share, strict=True) if own > share.mean()]
        check(cut, row, out.attentions[1][row].double().mean(0)[raters][:, visual].mean(0), 8)


@torch.no_grad()
def test_pivots_are_those_with_the_largest_keys_in_the_cache(model: Any) -> None:
    inputs = model.inputs(texts=(4, 9), images=2)
    settings: Any = {"layer": 1, "ratio": 3 / 32, "image_pivots": 2, "text_pivots": 0}
    cut = first_cut(model.model, inputs, vistok.pruner("dart", **settings))
    out = eager(model.model, inputs)
    for row in range(2):
        visual, _ = places(model.model, inputs, row)
        sizes = out.past_key_values.layers[1].keys[row].double().abs().sum(2).sum(0)[visual]
        pivots = sizes.argsort(descending=True)[:2].tolist()
        hidden = out.hidden_states[2][row, visual].double()
        likeness = torch.cosine_similarity(hidden[pivots[0]][None], hidden, dim=1)
        others = [i for i in likeness.argsort().tolist() if i not in pivots]
        assert cut.index[row].tolist() == sorted([*pivots, others[0]])
