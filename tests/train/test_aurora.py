"""AURORA on the micro LVLM: resumes to the bit, leaves the base alone, and what it writes answers as it did."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from vistok.lvlm.load import load_lvlm
from vistok.lvlm.new_rows import matrices
from vistok.lvlm.perception_model import load_perception
from vistok.lvlm.point_questions import PointTexts, point_questions
from vistok.lvlm.replacement_test import OWN, replacement_test
from vistok.train.aurora import Trainer, Training, train

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning", "ignore:Model has.*tie")


@pytest.fixture
def training(tmp_path):
    return Training(
        out=str(tmp_path / "run"), features=str(tmp_path / "features"), pictures=4, reasoning=1, questions=1, batch=1,
        steps=4, fractions=(1.0, 0.5), rank=1, warmup=1, test_questions=0, save_every=1, log_every=1,
    )  # fmt: skip


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.host.trained.values()])


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_bits(training, tmp_path):
    whole = Trainer(replace(training, out=str(tmp_path / "whole")))
    whole.run()

    def interrupt(step, values):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(training).run(interrupt)
    resumed = Trainer(training)
    resumed.run()
    assert torch.equal(weights(whole), weights(resumed))
    rows = [json.loads(line) for line in Path(training.out, "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert sum(row["reasoning"] for row in rows) == 1, "half of the second epoch of two scenes"


def test_what_it_writes_is_small_and_answers_as_the_trained_model(training):
    train(training)
    folder = Path(training.out) / "model"
    with safe_open(folder / "rows.safetensors", "pt") as rows:
        assert {str(rows.get_tensor(name).dtype) for name in rows.keys()} == {"torch.float16"}  # noqa: SIM118
    host, (base, _) = load_perception(folder), load_lvlm("micro_lvlm")
    for name, matrix in matrices(base).items():
        assert torch.equal(matrices(host.model)[name][: len(matrix)], matrix), "old rows keep their bits"
    for name, value in base.state_dict().items():
        if "vision_tower" in name or "projector" in name:
            assert torch.equal(value, host.model.state_dict()[name])
    trainer = Trainer(training)
    trainer.resume()
    trainer.host.adapted.merge_and_unload()
    for name in ("embedding", "head"):
        now, then = matrices(host.model)[name], matrices(trainer.host.model)[name]
        assert torch.allclose(now, then, atol=2e-3)
    questions = point_questions(PointTexts(host.attachment.families[0]), 4)
    own = replacement_test(host, questions, ())[OWN]
    assert all(1 <= len(said.codes) <= 4 for said in own), "the grammar asks for a span before the end"


def test_slots_label_answers_alone_and_mark_conclusions(training):
    for chain in (True, False):
        trainer = Trainer(replace(training, chain=chain, questions=2))
        tokenizer, layout = trainer.host.processor.tokenizer, trainer.layouts[0]
        for reasoning in (True, False):
            packed = trainer.slots.packed([layout], [reasoning])
            ids, labels = (values.unflatten(1, (2, packed.slot_length))[0, 1] for values in (packed.ids, packed.labels))
            spoken = tokenizer.decode(labels[labels != -100])
            asked = trainer.host.texts.question(layout, 1)
            expected = trainer.host.texts.generation(layout, 1)[1]
            if reasoning:
                expected = asked.chain if chain else asked.answer
            assert spoken == f"{expected} </s>"
            assert torch.equal(ids[1:][labels[:-1] != -100], labels[labels != -100]), "a token is predicted by the last"
            assert packed.concluding.sum() == 4 * reasoning
            if reasoning:
                first = trainer.host.texts.question(layout, 0)
                found = tokenizer.convert_ids_to_tokens(packed.labels[packed.concluding].tolist())
                assert " ".join(found) == f"{first.answer} {asked.answer}"


def test_made_up_questions_need_a_chain_and_add_to_the_loss(training):
    with pytest.raises(ValueError, match="expected made_up 0 with chain: false, got 3"):
        Trainer(replace(training, chain=False, made_up=3))
    alone, both = Trainer(training), Trainer(replace(training, made_up=3))
    assert both.train_step()["loss"] > alone.train_step()["loss"]


def test_epochs_without_room_for_reasoning_are_named(training):
    with pytest.raises(ValueError, match="epochs of 2 scenes to have room for all 3 scenes of reasoning, got 0 times"):
        Trainer(replace(training, reasoning=3))


@pytest.mark.slow
def test_a_run_begins_with_the_rows_and_adapter_of_another(training, tmp_path):
    first = Trainer(replace(training, out=str(tmp_path / "first"), reasoning=0, fractions=(1.0,), steps=2))
    first.run()
    second = Trainer(replace(training, begin=str(tmp_path / "first")))
    assert torch.equal(weights(second), weights(first)) and second.step == 0
    with pytest.raises(ValueError, match="checkpoint of a run with 16 codes and rank 2, got another"):
        Trainer(replace(training, rank=2, begin=str(tmp_path / "first")))
    with pytest.raises(ValueError, match="nowhere: expected the checkpoint .* got none"):
        Trainer(replace(training, begin=str(tmp_path / "nowhere")))


def test_counts_have_lists_or_numbers_as_answers_and_one_word_concludes(training):
    for chain in (True, False):
        counting = replace(training, asks="counts", codes=12, start="waves", chain=chain, questions=2)
        trainer = Trainer(counting)
        tokenizer, layout = trainer.host.processor.tokenizer, trainer.layouts[0]
        packed = trainer.slots.packed([layout], [True])
        asked = [trainer.host.texts.question(layout, number) for number in range(2)]
        labels = packed.labels.unflatten(1, (2, packed.slot_length))[0]
        for row, question in zip(labels, asked, strict=True):
            assert tokenizer.decode(row[row != -100]) == f"{question.chain if chain else question.answer} </s>"
        found = tokenizer.convert_ids_to_tokens(packed.labels[packed.concluding].tolist())
        assert found == [question.answer for question in asked]
    rows = trainer.host.attachment.maps["cells"]
    trainer.host.adapted.merge_and_unload()
    head = matrices(trainer.host.model)["head"].detach()[list(rows.codes)]
    assert (torch.cdist(head, head) + 9 * torch.eye(12)).min() > 0.1, "waves keep codes of the head apart"
