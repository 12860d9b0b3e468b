"""SEED's losses: the formulas by hand, gradients that stop where they should, two processes as one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from vistok.train.seed_losses import (
    StageTwoWeights,
    contrastive_loss,
    embedding_loss,
    reconstruction_loss,
)


def units(rows: int, width: int, seed: int) -> Tensor:
    return normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def by_hand(vision: Tensor, text: Tensor, temperature: float, smoothing: float) -> float:
    """Label smoothing: a share of the weight is spread evenly over all candidates."""
    total = 0.0
    for a, b in ((vision, text), (text, vision)):
        for row in range(len(a)):
            logs = (a[row] @ b.T / temperature).double().log_softmax(0)
            total -= float((1 - smoothing) * logs[row] + smoothing * logs.mean())
    return total / (2 * len(vision))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_contrastive_loss_is_the_mean_of_both_directions(smoothing: float) -> None:
    vision, text = units(5, 7, 0), units(5, 7, 1)
    loss = contrastive_loss(vision, text, torch.tensor(0.3), smoothing)
    assert float(loss) == pytest.approx(by_hand(vision, text, 0.3, smoothing), rel=1e-5)
    assert contrastive_loss(vision, vision, torch.tensor(0.07)) < contrastive_loss(vision, text, torch.tensor(0.07))


def test_what_a_row_is_compared_with_passes_no_gradient() -> None:
    vision, text = units(4, 6, 0).requires_grad_(), units(4, 6, 1).requires_grad_()
    contrastive_loss(vision, text, torch.tensor(0.2), 0.0).backward()
    p = (vision @ text.T / 0.2).softmax(1) - torch.eye(4)
    torch.testing.assert_close(vision.grad, (p @ text / 0.2 / 8).detach())
    p = (text @ vision.T / 0.2).softmax(1) - torch.eye(4)
    torch.testing.assert_close(text.grad, (p @ vision / 0.2 / 8).detach())


def test_stage_two_weighs_its_terms() -> None:
    terms = {"quantizer": torch.tensor(1.0), "reconstruction": torch.tensor(10.0), "image": torch.tensor(100.0)}
    assert float(StageTwoWeights().total(terms)) == pytest.approx(5 + 20 + 50)
    terms = {"quantizer": torch.tensor(1.0), "reconstruction": torch.tensor(10.0), "text": torch.tensor(100.0)}
    assert float(StageTwoWeights(text=2.0).total(terms)) == pytest.approx(5 + 20 + 200)
    del terms["reconstruction"]
    with pytest.raises(ValueError, match="got quantizer, text"):
        StageTwoWeights().total(terms)
    with pytest.raises(ValueError, match="got quantizer, reconstruction, image, pixels"):
        StageTwoWeights().total(dict.fromkeys(("quantizer", "reconstruction", "image", "pixels"), torch.tensor(0.0)))
    with pytest.raises(ValueError, match="image"):
        StageTwoWeights(image=-1.0)


def test_the_reconstruction_loss_is_one_minus_the_mean_cosine_and_leaves_its_target_alone() -> None:
    made, target = torch.randn(2, 3, 5).requires_grad_(), torch.randn(2, 3, 5).requires_grad_()
    loss = reconstruction_loss(made, target)
    cosines = (normalize(made, dim=-1) * normalize(target, dim=-1)).sum(-1)
    torch.testing.assert_close(loss, (1 - cosines).mean())
    assert float(reconstruction_loss(3 * target.detach(), target)) == pytest.approx(0.0, abs=1e-6)
    loss.backward()
    assert made.grad is not None and target.grad is None


def test_the_embedding_loss_is_a_mean_square_in_float32() -> None:
    made, target = torch.full((2, 3), 2.0, dtype=torch.bfloat16), torch.tensor([[1.0, 2.0, 4.0]] * 2)
    loss = embedding_loss(made, target)
    assert loss.dtype == torch.float32 and float(loss) == pytest.approx(5 / 3)


def test_shapes_and_settings_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"\[2, 3\] and \[2, 1, 3\]"):
        embedding_loss(torch.zeros(2, 3), torch.zeros(2, 1, 3))
    with pytest.raises(ValueError, match="reconstruction_loss"):
        reconstruction_loss(torch.zeros(2, 3, 4), torch.zeros(2, 1, 4))
    with pytest.raises(ValueError, match=r"\[3, 4\] and \[2, 4\]"):
        contrastive_loss(torch.zeros(3, 4), torch.zeros(2, 4), torch.tensor(1.0))


_WORKER = """
import sys
from datetime import timedelta
import torch
from vistok.train.seed_losses import contrastive_loss

rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=120)
)
pairs = torch.load(sys.argv[4], weights_only=True)
own = slice(0, 3) if rank == 0 else slice(3, 8)
vision, text = (pairs[name][own].clone().requires_grad_() for name in ("vision", "text"))
temperature = torch.tensor(0.2, requires_grad=True)
loss = contrastive_loss(vision, text, temperature)
loss.backward()
torch.save({"loss": loss.detach(), "vision": vision.grad, "text": text.grad, "temperature": temperature.grad}, out)
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_of_uneven_batches_share_their_negatives_as_one_process_would(
    tmp_path: Path, in_two_processes: Callable[..., list[Path]]
) -> None:
    pairs = {"vision": units(8, 6, 0), "text": units(8, 6, 1)}
    torch.save(pairs, tmp_path / "pairs.pt")
    files = in_two_processes(_WORKER, tmp_path, tmp_path / "pairs.pt")
    parts = [torch.load(file, weights_only=True) for file in files]
    vision, text = (pairs[name].clone().requires_grad_() for name in ("vision", "text"))
    temperature = torch.tensor(0.2, requires_grad=True)
    whole = contrastive_loss(vision, text, temperature)
    whole.backward()
    share = [3 / 8, 5 / 8]  # each process has the mean over its own rows
    weighted = {name: [part[name] * s for part, s in zip(parts, share, strict=True)] for name in parts[0]}
    torch.testing.assert_close(sum(weighted["loss"]), whole.detach())
    torch.testing.assert_close(sum(weighted["temperature"]), temperature.grad)
    torch.testing.assert_close(torch.cat(weighted["vision"]), vision.grad)
    torch.testing.assert_close(torch.cat(weighted["text"]), text.grad)
