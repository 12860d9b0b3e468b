"""The compressor's training: its loss, a planted relation that it learns, runs that resume to the bit."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import vistok
from vistok.train.explain_compressor import Trainer, Training, overlap, relevance_kl, sparse_target
from vistok.train.relevance_pairs import Pairs

TINY = {"channels": [8, 16], "kernel": 3}


def planted(count: int, seed: int = 0) -> Pairs:
    """Relevance that is attention moved on by one token, of rows of different lengths; two pairs per group."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(8, 25, (count,), generator=draw).tolist()
    attention = [torch.rand(length, generator=draw).square() + 1e-3 for length in lengths]
    groups = torch.randint(0, 2**50, (count // 2,), generator=draw).repeat_interleave(2)
    return Pairs(attention, [row.roll(1) for row in attention], groups)


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(
        out=str(tmp_path / "run"), model="none", settings=TINY, epochs=4, batch=16, learning_rate=1e-2, validation=0.25
    )


def test_the_target_keeps_the_better_half() -> None:
    relevance = torch.tensor([[4.0, 1.0, 3.0, 0.5, 2.0], [1.0, 1.0, 1.0, 1.0, 9.0]])
    mask = torch.tensor([[True] * 5, [True, True, True, True, False]])
    # Five tokens lose two, four lose two; of equal ones the earlier stay.
    expected = torch.tensor([[4 / 9, 0, 3 / 9, 0, 2 / 9], [0.5, 0.5, 0, 0, 0]])
    torch.testing.assert_close(sparse_target(relevance, mask), expected)
    torch.testing.assert_close(
        sparse_target(relevance, mask, kept=1.0)[0], torch.tensor([4.0, 1.0, 3.0, 0.5, 2.0]) / 10.5
    )


def test_no_relevance_gives_no_target_and_no_loss() -> None:
    target = sparse_target(torch.zeros(2, 4), torch.ones(2, 4, dtype=torch.bool))
    assert not target.any()
    assert relevance_kl(target, torch.randn(2, 4, generator=torch.Generator().manual_seed(0))).item() == 0


def test_the_loss_is_the_papers_sum() -> None:
    target = torch.tensor([[0.75, 0.25, 0.0], [1.0, 0.0, 0.0]])
    predicted = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.5, 0.0]]).log()
    assert relevance_kl(target, predicted).item() == pytest.approx((0.75 * math.log(1.5) + math.log(2)) / 2)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(0, 5), st.integers(0, 2**31))
def test_the_loss_is_zero_at_the_target_positive_elsewhere_and_blind_to_padding(
    lengths: list[int], extra: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    width = max(lengths) + extra
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    relevance = torch.rand(len(lengths), width, generator=draw) + 0.1
    target = sparse_target(relevance.masked_fill(~mask, torch.nan), mask)
    torch.testing.assert_close(target.sum(1), torch.ones(len(lengths)))
    assert abs(relevance_kl(target, target.log()).item()) < 1e-6
    logits = torch.randn(len(lengths), width, generator=draw).masked_fill(~mask, -torch.inf).requires_grad_()
    loss = relevance_kl(target, logits.log_softmax(1))
    assert loss.item() > -1e-6
    loss.backward()
    assert logits.grad is not None and logits.grad.isfinite().all() and not logits.grad[~mask].any()
    alone = [
        relevance_kl(target[row : row + 1, :length], logits[row : row + 1, :length].log_softmax(1))
        for row, length in enumerate(lengths)
    ]
    torch.testing.assert_close(loss, torch.stack(alone).mean())


def test_overlap_counts_the_most_relevant_tokens_that_are_found() -> None:
    relevance = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0, 0.0], [1.0, 2.0, 3.0, 4.0, 0.0, 0.0]])
    scores = torch.tensor([[5.0, 0.0, 3.0, 4.0, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0, 9.0, 9.0]])
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    torch.testing.assert_close(overlap(scores, relevance, mask), torch.tensor([2 / 3, 1.0]))


def test_a_planted_relation_is_learned_and_found_on_held_out_pictures(training: Training) -> None:
    trainer = Trainer(replace(training, epochs=40), planted(160))
    assert set(trainer.learned.tolist()).isdisjoint(trainer.held_out.tolist())
    groups = trainer.pairs.groups
    assert set(groups[trainer.learned].tolist()).isdisjoint(groups[trainer.held_out].tolist())
    metrics = trainer.run()
    first = json.loads(Path(training.out, "metrics.jsonl").read_text().splitlines()[0])
    assert metrics["loss"] < first["loss"] / 4
    # What it is given overlaps by chance, what it has learned is the relation.
    assert metrics["attention_overlap"] < 0.65 < 0.9 < metrics["overlap"]


def test_a_run_that_was_interrupted_ends_with_the_same_bits(training: Training, tmp_path: Path) -> None:
    pairs = planted(80)
    whole = Trainer(training, pairs)
    expected = whole.run()
    other = replace(training, out=str(tmp_path / "halves"))
    halves = Trainer(other, pairs)

    def stop(step: int, values: dict[str, float]) -> None:
        if step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        halves.run(stop)
    resumed = Trainer(other, pairs)
    found = resumed.run()
    assert {**found, "seconds": 0} == {**expected, "seconds": 0}
    for mine, theirs in zip(resumed.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    logged = [json.loads(line)["epoch"] for line in (tmp_path / "halves" / "metrics.jsonl").read_text().splitlines()]
    assert logged == [1, 2, 3, 4]


def test_a_finished_run_leaves_a_folder_that_checkpoint_takes(training: Training, tmp_path: Path) -> None:
    trainer = Trainer(training, planted(40))
    trainer.run()
    trainer.export()
    loaded: Any = vistok.pruner("explain_compressor", checkpoint=tmp_path / "run" / "model")
    attention: Tensor = torch.rand(1, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(attention), trainer.model(attention))
    assert not list((tmp_path / "run").glob("*.tmp.*"))
    again = Trainer(training, planted(40))
    assert again.run()["epoch"] == 4 and again.step == trainer.step


def test_all_pictures_may_be_learned_from_but_not_all_be_held_out(training: Training) -> None:
    metrics = Trainer(replace(training, validation=0.0), planted(20)).run()
    assert "overlap" not in metrics and metrics["epoch"] == 4
    with pytest.raises(ValueError, match="all of held-out pictures"):
        Trainer(replace(training, validation=1.0), planted(20))


def test_an_infinite_loss_stops_the_run_and_names_the_step(training: Training) -> None:
    with pytest.raises(FloatingPointError, match="step"):
        Trainer(replace(training, learning_rate=1e30), planted(80)).run()


def test_the_learning_rate_falls_to_nothing_at_the_end_and_only_there(training: Training) -> None:
    trainer = Trainer(replace(training, epochs=4, cooldown=0.5), planted(40))
    rates: list[float] = []
    trainer.run(lambda step, values: rates.append(trainer.optimizer.param_groups[0]["lr"]))
    half = len(rates) // 2
    assert rates[:half] == [training.learning_rate] * half
    assert rates[half:] == sorted(rates[half:], reverse=True) and 0 < rates[-1] <= training.learning_rate / half
