"""The explainability compressor: its net, its independence of padding and scale, its choice."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import vistok
from vistok.pruning.explain_compressor import ExplainCompressor
from vistok.tokens import TokenSpec, TokenTensor


def compressor(seed: int = 0, **setting: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return vistok.pruner("explain_compressor", **{"channels": [8, 16], **setting})


def tokens_of(slots: int, **fields: Any) -> TokenTensor:
    return TokenTensor(TokenSpec("toy"), embeds=torch.zeros(len(fields.get("lengths", [0])), slots, 2), **fields)


def test_the_net_of_the_paper_has_five_layers_and_178_thousand_weights() -> None:
    model = vistok.pruner("explain_compressor")
    assert isinstance(model, ExplainCompressor)
    assert len(model.layers) == 5
    before, after = (1, 32, 64, 128, 256), (32, 64, 128, 256, 512)
    depthwise, pointwise = sum(6 * b for b in before), sum((b + 1) * a for b, a in zip(before, after, strict=True))
    assert sum(p.numel() for p in model.parameters()) == depthwise + pointwise + 513 == 178_503


def test_the_output_is_the_logarithm_of_a_distribution() -> None:
    attention = torch.rand(3, 20, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(20) < torch.tensor([20, 7, 1])[:, None]
    out = compressor()(attention, mask)
    assert out.dtype == torch.float32 and (out[~mask] == -torch.inf).all()
    torch.testing.assert_close(out.exp().sum(1), torch.ones(3))


def test_one_layer_is_depthwise_then_pointwise_then_gelu() -> None:
    model = compressor(channels=[3], kernel=3, rescale=False)
    attention = torch.rand(1, 9, generator=torch.Generator().manual_seed(1))
    depthwise, pointwise, _ = model.layers[0]
    x = nn.functional.pad(attention[0], (1, 1)).unfold(0, 3, 1) @ depthwise.weight[0, 0] + depthwise.bias
    x = nn.functional.gelu(x[:, None] * pointwise.weight[:, 0, 0] + pointwise.bias)
    logits = x @ model.head.weight[0, :, 0] + model.head.bias
    torch.testing.assert_close(model(attention)[0], logits.log_softmax(0))


def test_the_scale_of_attention_does_not_matter_unless_asked_for() -> None:
    attention = torch.rand(2, 16, generator=torch.Generator().manual_seed(2)) / 100
    scaled, plain = compressor(), compressor(rescale=False)
    torch.testing.assert_close(scaled(attention), scaled(attention * 64))
    torch.testing.assert_close(scaled(attention), plain(attention * 16 / attention.sum(1, keepdim=True)))
    assert not torch.allclose(plain(attention), plain(attention * 64))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=4), st.integers(0, 9), st.integers(0, 2**31))
def test_padding_changes_nothing(lengths: list[int], extra: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    model, width = compressor(), max(lengths) + extra
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    attention = torch.rand(len(lengths), width, generator=draw).masked_fill(~mask, torch.nan)
    together = model(attention, mask)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(together[row, :length], model(attention[row : row + 1, :length])[0])


def test_gradients_are_finite_with_padding_and_with_an_empty_item() -> None:
    model = compressor()
    mask = torch.arange(6) < torch.tensor([6, 2, 0])[:, None]
    out = model(torch.rand(3, 6, generator=torch.Generator().manual_seed(3)), mask)
    out[mask].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


class Centre(ExplainCompressor):
    """A compressor whose logits are its input."""

    def forward(self, attention: Tensor, mask: Tensor | None = None) -> Tensor:
        masked = attention if mask is None else attention.masked_fill(~mask, -torch.inf)
        return masked.log_softmax(1)


def test_the_tokens_with_the_highest_scores_are_kept_in_their_order() -> None:
    attention = torch.tensor([[0.1, 0.9, 0.3, 0.9, 0.2]])
    pruner = Centre(channels=(4,))
    for budget, expected in ((1, [1]), (2, [1, 3]), (3, [1, 2, 3]), (0.8, [1, 2, 3, 4])):
        assert pruner.select(tokens_of(5), budget, instruction_attention=attention).index.tolist() == [expected]
    scores = pruner.select(tokens_of(5), 2, instruction_attention=attention).scores
    assert scores is not None
    torch.testing.assert_close(scores, attention.log_softmax(1))


def test_attention_that_is_no_number_counts_least_but_before_padding() -> None:
    tokens = tokens_of(4, lengths=torch.tensor([3]))
    attention = torch.tensor([[torch.nan, 1.0, 2.0, 3.0]])
    chosen = Centre(channels=(4,)).select(tokens, 4, instruction_attention=attention)
    assert chosen.lengths is not None and sorted(chosen.index[0, :3].tolist()) == [0, 1, 2]


def test_trained_weights_travel_in_a_folder(tmp_path: Path) -> None:
    model, attention = compressor(4), torch.rand(1, 12, generator=torch.Generator().manual_seed(4))
    model.save_pretrained(tmp_path / "model")
    loaded: Any = vistok.pruner("explain_compressor", checkpoint=tmp_path / "model")
    assert torch.equal(loaded(attention), model(attention))
    other = vistok.pruner("explain_compressor", channels=[8, 16])
    assert not torch.equal(other(attention), model(attention))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"channels": []}, "channels >= 1 for one layer or more"),
        ({"channels": [8, 0]}, "channels >= 1"),
        ({"kernel": 4}, "an odd kernel >= 1, got 4"),
    ],
)
def test_settings_out_of_range_are_named(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compressor(**setting)


def test_attention_that_is_missing_or_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"expected instruction_attention \[1, 4\], got none"):
        compressor().select(tokens_of(4), 2)
    with pytest.raises(ValueError, match=r"instruction_attention \[1, 4\], got \[1, 5\]"):
        compressor().select(tokens_of(4), 2, instruction_attention=torch.rand(1, 5))
    with pytest.raises(TypeError, match="attention.*it takes instruction_attention"):
        compressor().select(tokens_of(4), 2, attention=torch.rand(1, 4))
