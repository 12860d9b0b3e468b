"""Q-Former: causality to the bit, who sees whom, which parameters text and queries reach, the published key names."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from vistok.layers.qformer import QFormer, learned_queries

SIZES: dict[str, Any] = {
    "width": 24, "layers": 3, "heads": 3, "hidden": 40, "image_width": 10, "vocabulary": 19, "positions": 8,
}  # fmt: skip
QUERIES = 9


def model_of(causal: bool = True, **sizes: Any) -> QFormer:
    """Weights far larger than at the start of training, so that what one token sees shows in its output."""
    model = QFormer(causal=causal, **(SIZES | sizes)).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("queries", "width", "heads"), [(9, 24, 3), (32, 72, 6), (67, 64, 1)])
def test_a_replaced_query_leaves_all_outputs_before_it_the_same_to_the_bit(
    queries: int, width: int, heads: int, training: bool
) -> None:
    model = model_of(width=width, heads=heads, dropout=0.0).train(training)
    given, image = draw(1, queries, width), draw(3, 13, 10, seed=2)
    with torch.set_grad_enabled(training):
        before = model(given, image)
        for place in (1, queries // 2, queries - 1):
            other = given.clone()
            other[:, place] = 100 * draw(width, seed=3)
            after = model(other, image)
            assert torch.equal(before[:, :place], after[:, :place])
            assert not (before[:, place:] == after[:, place:]).all(-1).any()


def test_without_the_flag_every_query_sees_every_other() -> None:
    model = model_of(causal=False)
    given, image = draw(1, QUERIES, 24), draw(2, 5, 10)
    other = given.clone()
    other[:, -1] = draw(24, seed=3)
    assert not (model(given, image) == model(other, image)).all(-1).any()


def test_the_gradient_of_an_output_stops_at_its_own_query() -> None:
    model = model_of(dropout=0.0).train()
    given = draw(1, QUERIES, 24).requires_grad_()
    model(given, draw(2, 5, 10))[:, 4].square().sum().backward()
    assert given.grad is not None
    reached = given.grad[0].abs().sum(-1) > 0
    assert reached.tolist() == [True] * 5 + [False] * 4


def test_in_a_joint_input_only_queries_among_themselves_are_causal() -> None:
    model = model_of(layers=1, dropout=0.0)
    given, image = draw(2, QUERIES, 24), draw(2, 5, 10)
    text = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])
    before = model(given, image, text=text)
    other = given.clone()
    other[:, 6] = draw(24, seed=3)
    changed = (model(other, image, text=text) != before).any(-1)
    assert changed.tolist() == [[False] * 6 + [True] * 7] * 2
    another = text.clone()
    another[:, 3] = 11
    assert (model(given, image, text=another) != before).any(-1).all()


def test_masked_text_and_masked_image_tokens_are_seen_by_none() -> None:
    model = model_of()
    given, image = draw(2, QUERIES, 24), draw(2, 5, 10)
    text = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])
    text_mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]).bool()
    image_mask = torch.tensor([[1, 1, 1, 1, 0], [1, 0, 1, 1, 1]]).bool()
    masks = {"text_mask": text_mask, "image_mask": image_mask}
    before = model(given, image, text=text, **masks)
    after = model(given, image.where(image_mask[..., None], 9.0), text=text.where(text_mask, 1), **masks)
    kept = torch.cat([torch.ones(2, QUERIES, dtype=torch.bool), text_mask], 1)
    assert torch.equal(before[kept], after[kept])


def test_text_alone_is_bert_without_cross_attention_and_sees_both_ways() -> None:
    model = model_of()
    text = torch.tensor([[3, 4, 5, 6]])
    out = model(text=text)
    assert out.shape == (1, 4, 24)
    assert (model(text=torch.tensor([[3, 4, 5, 7]])) != out).any(-1).all()
    assert not torch.equal(model(text=torch.tensor([[3, 3]]))[:, 0], model(text=torch.tensor([[3, 3]]))[:, 1])
    short = model(text=text[:, :2])
    padded = model(text=text, text_mask=torch.tensor([[True, True, False, False]]))
    torch.testing.assert_close(padded[:, :2], short)


def test_the_image_is_read_in_every_nth_layer_only() -> None:
    model = model_of(layers=7, cross_every=3)
    names = {name.split(".")[3] for name in model.state_dict() if ".crossattention." in name}
    assert names == {"0", "3", "6"}


def test_queries_reach_their_own_net_and_text_reaches_its_own() -> None:
    model = model_of().train()
    queries = learned_queries(QUERIES, 24)
    assert queries.shape == (1, QUERIES, 24) and 0.01 < queries.std() < 0.03

    def reached() -> set[str]:
        found = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.abs().sum()}
        model.zero_grad()
        return {name for name in found if not name.endswith("self.key.bias")}  # softmax does not see it

    every = {name for name, _ in model.named_parameters() if not name.endswith("self.key.bias")}
    of_text = {name for name in every if re.search(r"_embeddings\.|\d\.(intermediate|output)\.", name)}
    of_queries = {name for name in every if "_query." in name or ".crossattention." in name}
    model(queries, draw(2, 5, 10)).square().sum().backward()
    assert queries.grad is not None and (queries.grad.abs().sum(-1) > 0).all()
    assert reached() == every - of_text
    model(text=torch.tensor([[3, 4], [5, 6]])).square().sum().backward()
    assert reached() == every - of_queries


def test_training_without_dropout_and_evaluation_agree() -> None:
    model = model_of(dropout=0.0)
    given, image = draw(1, QUERIES, 24), draw(2, 5, 10)
    with torch.no_grad():
        fused = model(given, image)
    torch.testing.assert_close(model.train()(given, image), fused)
    dropping = model_of(dropout=0.5).train()
    assert not torch.allclose(dropping(given, image), dropping(given, image))


def test_query_nets_start_from_text_nets() -> None:
    model = model_of()
    model.start_queries_from_text()
    state = model.state_dict()
    pairs = [(name, name.replace("_query.", ".")) for name in state if "_query." in name]
    assert len(pairs) == 3 * 6 and all(torch.equal(state[name], state[text]) for name, text in pairs)
    with pytest.raises(ValueError, match="vocabulary="):
        model_of(vocabulary=0).start_queries_from_text()


def test_keys_are_those_of_published_checkpoints() -> None:
    names = set(model_of(layers=2, vocabulary=0).state_dict())
    attention = {f"self.{part}.{kind}" for part in ("query", "key", "value") for kind in ("weight", "bias")}
    residual = {f"{part}.{kind}" for part in ("dense", "LayerNorm") for kind in ("weight", "bias")}
    expected = {f"bert.embeddings.LayerNorm.{kind}" for kind in ("weight", "bias")}
    for layer in range(2):
        root = f"bert.encoder.layer.{layer}"
        for block in ("attention",) if layer else ("attention", "crossattention"):
            expected |= {f"{root}.{block}.{name}" for name in attention}
            expected |= {f"{root}.{block}.output.{name}" for name in residual}
        expected |= {f"{root}.intermediate_query.dense.{kind}" for kind in ("weight", "bias")}
        expected |= {f"{root}.output_query.{name}" for name in residual}
    assert names == expected
    with_text = set(model_of(layers=2).state_dict()) - names
    assert {"bert.embeddings.word_embeddings.weight", "bert.embeddings.position_embeddings.weight"} < with_text
    assert len(with_text) == 2 + 2 * 6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "got none"),
        ({"queries": draw(1, 4, 24)}, "together"),
        ({"queries": draw(1, 4, 23), "image": draw(2, 5, 10)}, r"\[1, 4, 23\]"),
        ({"queries": draw(1, 4, 24), "image": draw(2, 5, 11)}, r"\[2, 5, 11\]"),
        ({"queries": draw(3, 4, 24), "image": draw(2, 5, 10)}, r"\[2, 3\]"),
        ({"text": torch.ones(2, 9, dtype=torch.long)}, r"1\.\.8"),
        ({"text": torch.ones(2, 3, dtype=torch.long), "text_mask": torch.ones(2, 4).bool()}, "text_mask"),
        ({"text": torch.ones(2, 3, dtype=torch.long), "image_mask": torch.ones(2, 4).bool()}, "image_mask none"),
    ],
)
def test_inputs_that_do_not_fit_are_named(given: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_of()(**given)


def test_sizes_and_text_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="heads that divide"):
        model_of(heads=5)
    with pytest.raises(ValueError, match="cross_every"):
        model_of(cross_every=0)
    with pytest.raises(ValueError, match="no text branch"):
        model_of(vocabulary=0)(text=torch.ones(1, 2, dtype=torch.long))
