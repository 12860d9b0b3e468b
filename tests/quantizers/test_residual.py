"""Residual quantization against its recursion, over several kinds of level."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from vistok.quantizers.residual import Residual
from vistok.registry import create

VQ_LEVEL: dict[str, Any] = {"method": "vq", "dim": 4, "codebook_size": 16}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trained(**settings: Any) -> Residual:
    torch.manual_seed(0)
    residual: Residual = create("quantizer", "residual", **{"levels": 3, "quantizer": VQ_LEVEL, **settings})
    residual.train()
    for seed in range(20):
        residual(randn(200, 4, seed=seed))
    return residual


def test_levels_quantize_what_the_levels_before_left_over() -> None:
    residual, z = trained().eval(), randn(50, 4, seed=99)
    out = residual(z)
    left, loss = z, torch.zeros(())
    for level, quantizer in enumerate(residual.quantizers):
        part = quantizer(left)
        assert torch.equal(out.indices[:, level], part.indices)
        loss = loss + part.loss
        left = left - part.embeds
    torch.testing.assert_close(out.embeds, z - left)
    torch.testing.assert_close(out.loss, loss)


def test_each_level_brings_the_sum_nearer() -> None:
    residual, z = trained().eval(), randn(500, 4, seed=99)
    ids = residual(z).indices
    errors = []
    for kept in range(4):
        some = ids.clone()
        some[:, kept:] = -1
        errors.append(float((z - residual.lookup(some)).square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 0.25 * errors[0]


def test_gradients_of_the_levels_add_up() -> None:
    z, g = randn(6, 4, seed=99).requires_grad_(), randn(6, 4, seed=1)
    out = trained().eval()(z)
    torch.testing.assert_close(torch.autograd.grad(out.embeds, z, g)[0], 3 * g)


def test_each_level_rotates_its_own_gradient() -> None:
    residual = trained(quantizer={**VQ_LEVEL, "gradient": "rotation", "dead_code_threshold": 0.0})
    alone = copy.deepcopy(residual)
    z, g = randn(6, 4, seed=99).requires_grad_(), randn(6, 4, seed=1)
    found = torch.autograd.grad(residual(z).embeds, z, g)[0]
    left, expected = z.detach(), torch.zeros_like(g)
    for quantizer in alone.quantizers:
        left = left.clone().requires_grad_()
        part = quantizer(left)
        expected += torch.autograd.grad(part.embeds, left, g)[0]
        left = left.detach() - part.embeds.detach()
    torch.testing.assert_close(found, expected)


def test_a_shared_codebook_is_one_codebook() -> None:
    residual = trained(shared=True)
    assert len(residual.quantizers) == 1
    assert residual.codebook_sizes == (16, 16, 16)
    out = residual.eval()(randn(50, 4, seed=99))
    codes = residual.quantizers[0].codebook  # type: ignore[union-attr]
    torch.testing.assert_close(out.embeds, codes[out.indices].sum(-2))  # type: ignore[index]


def test_a_shared_codebook_stays_the_same_within_a_step_and_moves_once_at_its_end() -> None:
    level = {**VQ_LEVEL, "decay": 0.5, "dead_code_threshold": 0.0}
    residual, z = trained(shared=True, quantizer=level), randn(50, 4, seed=99)
    book: Any = residual.quantizers[0]
    before, state = copy.deepcopy(book), copy.deepcopy(book.library._codebook)
    out = residual.train()(z)
    torch.testing.assert_close(out.embeds, before.codebook[out.indices].sum(-2))
    for column in out.indices.unbind(-1):  # every level adds to the averages, in its turn
        state.cluster_size.lerp_(torch.bincount(column, minlength=16).float(), 0.5)
    torch.testing.assert_close(book.library._codebook.cluster_size, state.cluster_size)
    assert not torch.equal(book.codebook, before.codebook)


def test_restarts_of_a_shared_codebook_are_counted_once_per_step() -> None:
    residual = trained(shared=True, quantizer={**VQ_LEVEL, "decay": 0.0, "dead_code_threshold": 1.0})
    book: Any = residual.quantizers[0]
    book.set_codebook(torch.cat([randn(10, 4), 100 + randn(6, 4)]))
    assert int(residual(randn(50, 4, seed=99)).stats["restarts"]) >= 6


def test_a_failed_step_does_not_hold_the_updates_of_later_ones() -> None:
    residual = trained(shared=True)
    book: Any = residual.quantizers[0]
    with pytest.raises(ValueError, match="expected float vectors"):
        residual(randn(5, 3))
    before = book.codebook
    book.train()(randn(50, 4))
    assert not torch.equal(book.codebook, before)


def test_quantize_dropout_keeps_first_levels_and_trains_only_them() -> None:
    residual = trained(quantize_dropout=True)
    z, kept = randn(30, 4, seed=99), set()
    for seed in range(30):
        before = copy.deepcopy(residual)
        torch.manual_seed(seed)
        out = residual(z)
        levels = int((out.indices[0] >= 0).sum())
        kept.add(levels)
        assert bool((out.indices[:, :levels] >= 0).all()) and bool((out.indices[:, levels:] == -1).all())
        torch.testing.assert_close(before.lookup(out.indices), out.embeds)
        for level in range(3):
            pair = [q.quantizers[level].library._codebook.embed_avg for q in (before, residual)]  # type: ignore[union-attr]
            assert torch.equal(*pair) == (level >= levels)
    assert kept == {1, 2, 3}
    assert bool((residual.eval()(z).indices >= 0).all())


def test_sign_codes_of_halved_scale_are_binary_digits() -> None:
    residual = Residual(8, quantizer={"method": "lfq", "dim": 2}, scale=0.5).eval()
    z = torch.rand(100, 2, generator=torch.Generator().manual_seed(0)) * 4 - 2
    out = residual(z)
    assert float((out.embeds - z).abs().max()) <= 2 * 0.5**7 / 2 + 1e-6
    assert torch.equal(residual.lookup(out.indices), out.embeds)


@pytest.mark.parametrize("level", [{"method": "fsq", "levels": [5, 5]}, {"method": "bsq", "dim": 2}])
def test_other_kinds_of_level_work(level: dict[str, Any]) -> None:
    residual = Residual(2, quantizer=level)
    out = residual(randn(10, 2))
    assert out.indices.shape == (10, 2)
    assert torch.equal(residual.lookup(out.indices), out.embeds)


def test_loss_terms_add_up_over_the_levels() -> None:
    residual = trained().eval()
    out = residual(randn(50, 4, seed=99))
    torch.testing.assert_close(out.loss, 0.25 * out.stats["commitment_loss"])


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="residual: expected levels >= 1"):
        Residual(0, quantizer=VQ_LEVEL)
    with pytest.raises(ValueError, match="expected quantizer={'method'"):
        Residual(2, quantizer={"dim": 4})
    with pytest.raises(ValueError, match="expected levels of one codebook, 'residual' has 2"):
        Residual(2, quantizer={"method": "residual", "levels": 2, "quantizer": VQ_LEVEL})
    with pytest.raises(ValueError, match=r"expected ids \[..., 2\], got \[5\]"):
        Residual(2, quantizer=VQ_LEVEL).lookup(torch.zeros(5, dtype=torch.int64))
    with pytest.raises(TypeError, match="codebook_sise"):
        Residual(2, quantizer={"method": "vq", "codebook_sise": 4})
