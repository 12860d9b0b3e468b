"""Conclusions from given codes: what a step asks, what its loss is over, on from a checkpoint, what is learned."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vistok.train.aurora import Trainer as Aurora
from vistok.train.aurora import Training as AuroraTraining
from vistok.train.aurora_conclusions import Trainer, Training, train

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning", "ignore:Model has.*tie")


@pytest.fixture
def training(tmp_path):
    return Training(
        out=str(tmp_path / "run"), rank=1, batch=4, steps=4, pairs=2, warmup=0, test_questions=4, save_every=1,
        log_every=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    return Trainer(Training(out=str(tmp_path_factory.mktemp("run")), rank=1, batch=8, pairs=40, bf16=False))


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.host.trained.values()])


def test_steps_begin_with_pairs_far_apart_and_come_to_the_contrast_of_scenes(untrained):
    trainer = untrained
    early = [trainer.questions(step) for step in range(10)]
    late = [trainer.questions(step) for step in range(40, 60)]
    assert sum(asked[0].points == 2 for asked in early) > 6 and {asked[0].points for asked in late} == {2, 3}
    assert all(len({question.points for question in asked}) == 1 for asked in early + late)
    gaps = [abs(np.subtract(*q.codes)) for steps in (early, late) for asked in steps for q in asked if q.points == 2]
    wide = [abs(np.subtract(*q.codes)) for asked in early for q in asked if q.points == 2]
    assert min(wide) >= 5 > min(gaps) >= 1
    assert trainer.questions(3) == trainer.questions(3) != trainer.questions(4)


def test_the_loss_is_over_conclusions_and_copied_words_and_knows_no_code(untrained):
    trainer = untrained
    asked = trainer.questions(0)
    ids, chains, conclusions, ends = trainer.conclusions.ids(asked)
    tokenizer = trainer.host.processor.tokenizer
    for row, chain, conclusion, end, question in zip(ids, chains, conclusions, ends, asked, strict=True):
        assert end == len(row), "two things each, or three each"
        assert tokenizer.decode(row) == f"{question.text} assistant : {question.chain} </s>"
        assert tokenizer.decode(row[chain:conclusion]) + f" {question.conclusion}" == question.chain
    logits = trainer.conclusions.logits(ids)
    alone = trainer.conclusions.logits(ids[1:2])
    assert torch.allclose(logits[1], alone[0], atol=1e-4), "questions of a step do not see one another"
    loss, right = trainer.conclusions.loss(asked)
    assert right.shape == (8,) and not right.any(), "nobody has trained it"
    head = trainer.host.trained["base_model.model.lm_head.token_adapter.trainable_tokens_delta.default"]
    loss.backward()
    assert head.grad is not None and head.grad.abs().sum() > 0


def test_an_interrupted_run_ends_with_the_same_bits_and_aurora_begins_there(training, tmp_path):
    whole = Trainer(replace(training, out=str(tmp_path / "whole")))
    whole.run()

    def interrupt(step, values):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(training).run(interrupt)
    row = train(training)
    resumed = Trainer(training)
    resumed.resume()
    assert torch.equal(weights(whole), weights(resumed))
    assert 0 <= row["accuracy"] <= 1 and {"accuracy_2", "accuracy_3", "step"} <= set(row)
    begun = Aurora(
        AuroraTraining(
            out=str(tmp_path / "next"),
            begin=training.out,
            rank=1,
            pictures=2,
            reasoning=0,
            questions=1,
            batch=1,
            steps=2,
            fractions=(1.0,),
            seed=1,
        )  # fmt: skip
    )
    assert torch.equal(weights(begun), weights(whole)), "rows and matrices are those of the conclusions"


@pytest.mark.slow
def test_in_fifty_steps_it_names_things_of_the_list_more_often_than_at_first(training):
    row = train(replace(training, rank=16, batch=32, steps=50, pairs=50, warmup=10, test_questions=100, log_every=50))
    assert row["accuracy_2"] > 0.15, "none before, a half by guessing which of two"


def test_lists_of_any_length_are_asked_together_and_the_loss_knows_their_numbers_alone(tmp_path):
    trainer = Trainer(
        Training(out=str(tmp_path), asks="counts", codes=12, start="waves", rank=1, batch=8, copied=0.0, bf16=False)
    )
    asked = trainer.questions(0)
    assert len({question.points for question in asked}) > 1
    ids, _, conclusions, ends = trainer.conclusions.ids(asked)
    tokenizer = trainer.host.processor.tokenizer
    for row, conclusion, end, question in zip(ids, conclusions, ends, asked, strict=True):
        assert tokenizer.decode(row[conclusion:end]) == f"{question.points} </s>"
        assert (row[end:] == tokenizer.pad_token_id).all()
    loss, _ = trainer.conclusions.loss(asked)
    alone = torch.stack([trainer.conclusions.loss([question])[0] for question in asked])
    assert torch.allclose(loss, alone.mean(), atol=1e-4), "padding and other questions change nothing"
    logits = trainer.conclusions.logits(ids)
    expected = [
        torch.nn.functional.cross_entropy(row[conclusion - 1 : end - 1], answer[conclusion:end])
        for row, answer, conclusion, end in zip(logits, ids, conclusions, ends, strict=True)
    ]
    assert torch.allclose(loss, torch.stack(expected).mean(), atol=1e-4)
    assert "accuracy_0" in trainer.tested(14) and "accuracy_6" in trainer.tested(14)
