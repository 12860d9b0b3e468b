"""The codebook's equations on numbers worked out by hand, how it starts, and what brings dead codes back."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vistok.layers.ait_codes import LearnedCodes, MovingCodes

ROWS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [10.0, 2.0]])


def three_codes(eps: float = 0.5, **options: Any) -> MovingCodes:
    codes = MovingCodes(3, 2, decay=0.75, eps=eps, **options)
    codes.load_state_dict(
        {
            "_embedding": torch.tensor([[0.0, 0.0], [9.0, 0.0], [50.0, 50.0]]),
            "_ema_cluster_size": torch.tensor([2.0, 4.0, 1.0]),
            "_ema_w": torch.tensor([[0.0, 1.0], [36.0, 0.0], [50.0, 50.0]]),
        }
    )
    return codes


def test_one_training_step_is_the_equations_and_reads_the_old_codes():
    codes = three_codes()
    out = codes.train()(ROWS)
    assert out.indices.tolist() == [0, 0, 1]
    assert torch.equal(out.embeds, torch.tensor([[0.0, 0.0], [0.0, 0.0], [9.0, 0.0]]))
    # mean over six numbers of (1, 0), (1, 2) and zeros, squared, times the commitment
    assert float(out.loss) == pytest.approx(0.25 * (1 + 1 + 4) / 6)
    counts = torch.tensor([0.75 * 2 + 0.25 * 2, 0.75 * 4 + 0.25 * 1, 0.75 * 1])
    total = counts.sum()
    counts = (counts + 0.5) / (total + 3 * 0.5) * total
    sums = torch.tensor([[0.25, 0.75], [27 + 2.5, 0.5], [37.5, 37.5]])
    torch.testing.assert_close(codes._ema_cluster_size, counts)
    torch.testing.assert_close(codes._ema_w, sums)
    torch.testing.assert_close(codes.codebook, sums / counts[:, None])


def test_evaluation_changes_no_buffer():
    codes = three_codes().eval()
    before = {name: value.clone() for name, value in codes.named_buffers()}
    codes(ROWS)
    assert all(torch.equal(value, before[name]) for name, value in codes.named_buffers())


def test_gradients_pass_straight_through_and_the_codes_take_none():
    z = ROWS.clone().requires_grad_()
    out = three_codes().eval()(z)
    out.embeds.sum().backward()
    assert torch.equal(z.grad, torch.ones(3, 2))  # type: ignore[arg-type]


def test_the_first_batch_starts_the_codes_at_its_clusters(generator):
    centres = torch.tensor([[-5.0, 0.0], [0.0, 5.0], [5.0, 0.0]])
    rows = (centres[:, None] + 0.1 * torch.randn(3, 40, 2, generator=generator)).flatten(0, 1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        codes = MovingCodes(8, 2, decay=0.99).train()
        out = codes(rows[torch.randperm(len(rows))])
    assert float(out.stats["commitment_loss"]) < 0.05
    assert bool((codes._ema_cluster_size > 0.5).all())
    for centre in centres:
        assert float((codes.codebook - centre).norm(dim=1).min()) < 0.5


def test_the_authors_start_is_left_as_they_drew_it():
    codes = MovingCodes(8, 2, init="official")
    assert bool((codes._ema_cluster_size == 0).all()) and not torch.equal(codes._embedding, codes._ema_w)
    before = codes.codebook.clone()
    out = codes.train()(torch.ones(4, 2))
    assert torch.equal(out.embeds, before[(before - 1).square().sum(1).argmin()].expand(4, 2))
    assert float(codes.codebook.abs().max()) > 1e3, "codes that won nothing were kept near"


def test_codes_that_were_loaded_are_not_started_anew():
    codes = three_codes().train()
    assert torch.equal(codes(ROWS).embeds[2], torch.tensor([9.0, 0.0]))


def test_a_code_that_wins_too_little_for_long_becomes_a_vector_of_the_batch():
    codes = three_codes(1e-5, revive_after=3).train()
    far = torch.tensor([[0.0, 0.0], [9.0, 0.0]]).repeat(20, 1)
    restarts = [float(codes(far).stats["restarts"]) for _ in range(8)]
    assert sum(restarts) >= 1 and restarts[:2] == [0, 0]
    assert float(codes.codebook.abs().max()) < 20, "the code at (50, 50) has not come back"
    still = three_codes(1e-5, init="official").train()
    assert all(float(still(far).stats["restarts"]) == 0 for _ in range(8))


def test_codes_that_learn_have_the_loss_of_both_sides():
    codes = LearnedCodes(4, 2, commitment=0.5)
    assert float(codes.codebook.detach().abs().max()) <= 1 / 4
    z = torch.tensor([[1.0, 0.0], [0.0, 2.0]], requires_grad=True)
    out = codes(z)
    chosen = codes.codebook[out.indices]
    torch.testing.assert_close(out.loss, 1.5 * (chosen - z).square().mean())
    out.loss.backward()
    torch.testing.assert_close(z.grad, (z - chosen).detach() * 0.5 * 2 / 4)
    assert codes._embedding.weight.grad is not None and bool(codes._embedding.weight.grad.any())


@pytest.mark.parametrize("ids", [torch.tensor([3]), torch.tensor([-1]), torch.tensor([0.0])])
def test_ids_that_are_no_codes_are_refused(ids: Tensor):
    with pytest.raises(ValueError, match="expected"):
        three_codes().lookup(ids)


@pytest.mark.parametrize("wrong", [{"init": "zeros"}, {"decay": 1.0}, {"codes": 0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="moving codes: expected"):
        MovingCodes(**{"codes": 4, "dim": 2, **wrong})
